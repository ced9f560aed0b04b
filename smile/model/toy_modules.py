"""Modules that visibly do something, without training: for tests, examples and benchmarks.

numpy only. Unlike `initial_tensors`, every tensor is random, so no op is the identity.
"""

from __future__ import annotations

import numpy as np

from smile.model import layout
from smile.model.initial import NUMPY_DTYPES, StoredArray, choose, packed_bits
from smile.model.specs import BackboneShape, Choice, ModuleSpec, TensorSpec

MATRIX_GAIN = 0.7
BIAS_STD = 0.2


def random_tensors(spec: ModuleSpec, shape: BackboneShape, *, seed: int) -> dict[str, StoredArray]:
    """Random tensors of a module, in their stored types; states keep their size through them."""
    random = np.random.default_rng(seed)
    return {
        name: _random_tensor(tensor, random) for name, tensor in layout.tensors(spec, shape).items()
    }


def _random_tensor(tensor: TensorSpec, random: np.random.Generator) -> StoredArray:
    if tensor.dtype is Choice.BITS:
        return packed_bits(choose(random, tensor), tensor.entries)
    if tensor.dtype is Choice.INDICES:
        return choose(random, tensor).astype(np.int32)
    matrix = len(tensor.shape) == 2
    std = MATRIX_GAIN / np.sqrt(tensor.shape[1]) if matrix else BIAS_STD
    values = std * random.standard_normal(tensor.shape)
    found: StoredArray = values.astype(NUMPY_DTYPES[tensor.dtype])
    return found
