"""Stored tensors into torch, checked against the layout; and back, as they are stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from smile.errors import DataCorrupted
from smile.model import layout
from smile.model.initial import NUMPY_DTYPES, StoredArray
from smile.model.masking import masked_of
from smile.model.specs import BackboneShape, Choice, ModuleSpec, TensorSpec


def to_torch(
    tensors: Mapping[str, StoredArray], spec: ModuleSpec, shape: BackboneShape
) -> dict[str, Tensor]:
    """Copies in the layout's order: numbers in float32, indices in int64, bits as bool [entries].

    Raises:
        DataCorrupted: names or shapes are not those of the spec.
    """
    expected = layout.tensors(spec, shape)
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())
        raise DataCorrupted(f"tensors do not fit their spec: {len(odd)} missing or extra, {odd[0]}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise DataCorrupted(
                f"tensor '{name}' must have shape {tensor.shape}, got {tensors[name].shape}"
            )
    return {name: _to_torch(tensors[name], tensor) for name, tensor in expected.items()}


def to_stored(
    tensors: Mapping[str, Tensor], spec: ModuleSpec, shape: BackboneShape
) -> dict[str, StoredArray]:
    """Copies as they are stored, numbers rounded to the spec's dtype; masks come as scores."""
    expected = layout.tensors(spec, shape)
    return {name: _to_stored(tensors[name].detach(), tensor) for name, tensor in expected.items()}


def _to_torch(array: StoredArray, tensor: TensorSpec) -> Tensor:
    if tensor.dtype is Choice.BITS:
        bits = np.unpackbits(array.astype(np.uint8, copy=False), count=tensor.entries)
        return torch.from_numpy(bits.astype(np.bool_))
    dtype = torch.int64 if tensor.dtype is Choice.INDICES else torch.float32
    return torch.tensor(array, dtype=dtype)


def _to_stored(values: Tensor, tensor: TensorSpec) -> StoredArray:
    if tensor.dtype is Choice.BITS:
        return np.packbits(masked_of(values, tensor.chosen_max).cpu().numpy())
    stored: StoredArray = values.cpu().numpy().astype(NUMPY_DTYPES[tensor.dtype], copy=True)
    return stored
