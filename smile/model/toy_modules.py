"""Modules that visibly do something, without training: for tests, examples and benchmarks.

numpy only. Unlike `initial_tensors`, every tensor is random, so no op is the identity.
"""

from __future__ import annotations

import numpy as np

from smile.model import layout
from smile.model.initial import NUMPY_DTYPES, FloatArray
from smile.model.specs import BackboneShape, ModuleSpec

MATRIX_GAIN = 0.7
BIAS_STD = 0.2


def random_tensors(spec: ModuleSpec, shape: BackboneShape, *, seed: int) -> dict[str, FloatArray]:
    """Random tensors of a module, in the spec's dtype; states keep their size through them."""
    random = np.random.default_rng(seed)
    found: dict[str, FloatArray] = {}
    for name, tensor in layout.tensors(spec, shape).items():
        matrix = len(tensor.shape) == 2
        std = MATRIX_GAIN / np.sqrt(tensor.shape[1]) if matrix else BIAS_STD
        values = std * random.standard_normal(tensor.shape)
        found[name] = values.astype(NUMPY_DTYPES[tensor.dtype])
    return found
