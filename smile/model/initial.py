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
from smile.model.specs import BackboneShape, DType, ModuleSpec, TensorSpec

FloatArray: TypeAlias = NDArray[np.float16 | np.float32]

HEAD_STD = 0.02  # as BERT initialises its own heads
NUMPY_DTYPES: dict[DType, type[np.float16] | type[np.float32]] = {
    DType.FLOAT16: np.float16,
    DType.FLOAT32: np.float32,
}


def initial_tensors(spec: ModuleSpec, shape: BackboneShape, seed: int) -> dict[str, FloatArray]:
    """Tensors of an untrained module, in the layout's order and the spec's dtype.

    Adapters' `up`, LoRA's `b` and BitFit's deltas are zero, so the module answers as the bare
    backbone does. `down` and `a` are uniform within 1/sqrt(inputs): Kaiming's with a=sqrt(5), as
    in LoRA (Hu et al. 2022) and in the adapters of He et al. (2022).

    Raises:
        InvalidSpec: the spec does not fit the backbone.
    """
    return {
        name: _initial(name, tensor, seed) for name, tensor in layout.tensors(spec, shape).items()
    }


def _initial(name: str, tensor: TensorSpec, seed: int) -> FloatArray:
    dtype = NUMPY_DTYPES[tensor.dtype]
    if name == layout.HEAD_WEIGHT:
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
