"""Matrices as native kernels see them."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

# Address, elements from one row to the next, rows, columns, storage type.
Matrix: TypeAlias = tuple[int, int, int, int, torch.dtype]


def matrix(x: Tensor) -> Matrix:
    """A matrix on the CPU; elements of a row lie side by side, and no two rows overlap."""
    assert x.is_cpu and x.dim() == 2, (x.device, x.shape)
    rows, columns = x.shape
    stride, step = x.stride()
    assert step == 1 or columns <= 1, f"elements of a row lie together, strides {x.stride()}"
    assert rows <= 1 or stride >= columns, f"rows do not overlap, strides {x.stride()}"
    return x.data_ptr(), stride, rows, columns, x.dtype
