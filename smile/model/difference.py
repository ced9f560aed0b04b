"""How far two modules are apart, tensor by tensor.

What is stored as a choice of a matrix's entries is compared as the matrix it describes: sparse
updates as the change they make to each entry, masks as ones where an entry counts as zero. numpy
only; sums are in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smile.model import layout, weights
from smile.model.specs import BackboneShape, Choice, ModuleSpec, TensorSpec
from smile.versioning import TensorDiff

_VALUES_SUFFIX = ".delta.values"
_INDICES_SUFFIX = ".indices"
_BITS_SUFFIX = ".bits"


@dataclass(frozen=True, slots=True)
class StoredModule:
    """A module's stored bytes, and what they are made for."""

    data: bytes
    spec: ModuleSpec
    shape: BackboneShape


@dataclass(frozen=True, slots=True)
class Difference:
    """All tensors of both, by name; norms over those that can be compared. `relative` is None where
    the first module's tensors are all zero.
    """

    tensors: tuple[TensorDiff, ...]
    l2: float
    relative: float | None


def difference(base: StoredModule, other: StoredModule) -> Difference:
    """From `base` to `other`, one tensor of each in memory at a time beside what is stored.

    Raises:
        DataCorrupted: bytes are not the tensors of their spec.
    """
    before, after = _Matrices(base), _Matrices(other)
    found: list[TensorDiff] = []
    moved_square = norm_square = 0.0
    for name in sorted({*before.names, *after.names}):
        diff, norm = _compared(name, before.matrix(name), after.matrix(name))
        found.append(diff)
        moved_square += diff.l2**2
        norm_square += norm**2
    l2, norm = math.sqrt(moved_square), math.sqrt(norm_square)
    return Difference(tuple(found), l2, l2 / norm if norm else None)


def _compared(
    name: str, before: NDArray[np.float64] | None, after: NDArray[np.float64] | None
) -> tuple[TensorDiff, float]:
    """With the norm of `before`, 0 where they cannot be compared."""
    if before is None or after is None or before.shape != after.shape:
        return TensorDiff(name, _shape(before), _shape(after)), 0.0
    moved = after - before
    l2, norm = _norm(moved), _norm(before)
    largest = float(np.abs(moved).max(initial=0.0))
    relative = l2 / norm if norm else None
    return TensorDiff(name, before.shape, after.shape, l2, largest, relative), norm


def _shape(values: NDArray[np.float64] | None) -> tuple[int, ...]:
    return () if values is None else values.shape


def _norm(values: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(values.ravel()))


class _Matrices:
    """What a module's tensors say, by name, each made when it is asked for."""

    def __init__(self, module: StoredModule) -> None:
        wanted = layout.tensors(module.spec, module.shape)
        self._stored = weights.decode(module.data, module.spec, module.shape)
        self.names: dict[str, TensorSpec] = {
            _plain(name): tensor
            for name, tensor in wanted.items()
            if not name.endswith(_VALUES_SUFFIX)
        }

    def matrix(self, name: str) -> NDArray[np.float64] | None:
        """The tensor's values in its own shape; a choice's flat, one for each of its entries."""
        tensor = self.names.get(name)
        if tensor is None:
            return None
        if tensor.dtype is Choice.INDICES:
            flat = np.zeros(tensor.entries)
            flat[self._stored[f"{name}.indices"]] = self._stored[f"{name}.values"]
            return flat
        if tensor.dtype is Choice.BITS:
            bits = np.unpackbits(self._stored[f"{name}.bits"].astype(np.uint8, copy=False))
            return bits[: tensor.entries].astype(np.float64)
        return self._stored[name].astype(np.float64)


def _plain(name: str) -> str:
    """`x.delta` for `x.delta.indices`, `x.mask` for `x.mask.bits`."""
    return name.removesuffix(_INDICES_SUFFIX).removesuffix(_BITS_SUFFIX)
