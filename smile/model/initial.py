"""The tensors of a new module: a PET that changes nothing yet, and a small random head.

numpy only, so the creator needs no torch. A tensor depends on (seed, its name, its shape) alone.
"""

from __future__ import annotations

import hashlib
import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from smile.model import layout
from smile.model.specs import BackboneShape, Choice, DType, ModuleSpec, TensorSpec

StoredArray: TypeAlias = NDArray[np.float16 | np.float32 | np.int32 | np.uint8]

HEAD_STD = 0.02  # as BERT initialises its own heads
StoredType: TypeAlias = type[np.float16] | type[np.float32] | type[np.int32] | type[np.uint8]
NUMPY_DTYPES: dict[DType | Choice, StoredType] = {
    DType.FLOAT16: np.float16,
    DType.FLOAT32: np.float32,
    Choice.INDICES: np.int32,
    Choice.BITS: np.uint8,
}


def initial_tensors(spec: ModuleSpec, shape: BackboneShape, seed: int) -> dict[str, StoredArray]:
    """Tensors of an untrained module, in the layout's order and the spec's dtype.

    Adapters' `up`, LoRA's `b` and BitFit's deltas are zero, diff-pruning's updates too, and masks
    keep everything, so the module answers as the bare backbone does. `down` and `a` are uniform
    within 1/sqrt(inputs): Kaiming's with a=sqrt(5), as in LoRA (Hu et al. 2022) and in the adapters
    of He et al. (2022). Which entries diff-pruning updates is drawn here, once for all.

    Raises:
        InvalidSpec: the spec does not fit the backbone.
    """
    return {
        name: _initial(name, tensor, seed) for name, tensor in layout.tensors(spec, shape).items()
    }


def choose(random: np.random.Generator, tensor: TensorSpec) -> NDArray[np.int64]:
    """As many different entries as a choice may have, ascending, every set equally likely."""
    drawn = random.choice(tensor.entries, tensor.chosen_max, replace=False, shuffle=False)
    drawn.sort()
    return drawn


def packed_bits(chosen: NDArray[np.int64], entries: int) -> NDArray[np.uint8]:
    """A choice as bits: `Choice.BITS`."""
    bits = np.zeros(entries, dtype=np.uint8)
    bits[chosen] = 1
    return np.packbits(bits)


def _initial(name: str, tensor: TensorSpec, seed: int) -> StoredArray:
    dtype = NUMPY_DTYPES[tensor.dtype]
    if tensor.dtype is Choice.INDICES:
        return choose(_random(name, seed), tensor).astype(dtype)
    if name in (layout.HEAD_WEIGHT, layout.POOLER_WEIGHT):
        values = HEAD_STD * _random(name, seed).standard_normal(tensor.shape)
    elif name.endswith((".down.weight", ".lora.a")):
        bound = 1 / math.sqrt(tensor.shape[1])
        values = _random(name, seed).uniform(-bound, bound, tensor.shape)
    else:
        values = np.zeros(tensor.shape)
    return values.astype(dtype)


def _random(name: str, seed: int) -> np.random.Generator:
    """A stream of its own for each (seed, name)."""
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
