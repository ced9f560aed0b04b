"""Stored tensors into torch, checked against the layout; and back, rounded to the stored dtype."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from smile.errors import DataCorrupted
from smile.model import layout
from smile.model.initial import NUMPY_DTYPES, FloatArray
from smile.model.specs import BackboneShape, DType, ModuleSpec


def to_torch(
    tensors: Mapping[str, FloatArray], spec: ModuleSpec, shape: BackboneShape
) -> dict[str, Tensor]:
    """Copies in float32, in the layout's order.

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
    return {name: torch.tensor(tensors[name], dtype=torch.float32) for name in expected}


def to_stored(tensors: Mapping[str, Tensor], dtype: DType) -> dict[str, FloatArray]:
    """Copies in the stored dtype."""
    return {
        name: tensor.detach().cpu().numpy().astype(NUMPY_DTYPES[dtype], copy=True)
        for name, tensor in tensors.items()
    }
