"""The grouped product: rows of many vPLMs, each times its own vPLM's matrix, in one call.

This is the one seam between the task ops and a device. Rows of one vPLM lie together, so a matrix
is read once however many rows it has, and nothing is padded to the longest vPLM.

The kernel asks for widths that are multiples of 16 bytes, and a batch wants few different shapes,
so stored matrices are zero-padded once, when a module is loaded, to one of a few widths. Zero
columns and rows leave every product as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

WIDTH_MIN = 8

Weights: TypeAlias = Mapping[str, Tensor]  # by the layout's names


@dataclass(frozen=True, slots=True)
class Segments:
    """Consecutive rows that belong to vPLMs, one segment each.

    Attributes:
        members: Serving weights of each vPLM, in row order; one entry however many rows it has.
        ends: [members] int32, where each member's rows end.
        owners: [rows] int64, the member of each row.
    """

    members: tuple[Weights, ...]
    ends: Tensor
    owners: Tensor

    @classmethod
    def of(cls, members: Sequence[Weights], rows: Sequence[int], device: torch.device) -> Segments:
        """Segments of `rows[i]` rows for `members[i]`."""
        counts = torch.tensor(rows, dtype=torch.int64)
        return cls(
            tuple(members),
            counts.cumsum(0).to(device, torch.int32),
            torch.repeat_interleave(torch.arange(len(rows)), counts).to(device),
        )

    def first(self, members: int, rows: int) -> Segments:
        """The first `members` members, which have the first `rows` rows."""
        return Segments(self.members[:members], self.ends[:members], self.owners[:rows])

    def product(self, x: Tensor, name: str) -> Tensor:
        """Each row of x [rows, inputs] times its member's matrix `name`: [rows, outputs]."""
        return grouped_matmul(x, self._stacked(name), self.ends)

    def vectors(self, name: str) -> Tensor:
        """Each row's member's vector `name`: [rows, width]."""
        return self._stacked(name).index_select(0, self.owners)

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([weights[name] for weights in self.members])


def grouped_matmul(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Multiplies each group's rows by the group's matrix.

    Args:
        x: [rows, inputs].
        weights: [groups, inputs, outputs].
        ends: [groups] int32, ascending: group g has rows `ends[g - 1]` (0 for the first) up to
            `ends[g]`; the last is `rows`. A group may be empty.

    Returns:
        [rows, outputs].
    """
    if weights.shape[0] == 1:
        return x @ weights[0]
    return functional.grouped_mm(x, weights, offs=ends)


def padded_width(width: int) -> int:
    """The least of 8, 16, 24, 32, 48, 64, 96, 128, ... that holds `width`.

    Above 16 at most half is added, mostly less; all widths up to 1024 share 14 shapes.
    """
    padded = WIDTH_MIN
    while padded < width:
        padded *= 2
    three_quarters = padded * 3 // 4
    fits = three_quarters >= width and three_quarters % WIDTH_MIN == 0
    return three_quarters if fits else padded


def zero_padded(tensor: Tensor, *shape: int) -> Tensor:
    """`tensor` in the leading corner of zeros of `shape`, contiguous."""
    padded = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    padded[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return padded
