"""Products of many modules' rows, each with its own module's weights, in one call.

Rows of one module lie together, so its weights are read once however many rows it has, and nothing
is padded to the longest. `TorchGrouped` runs wherever torch does; `NativeGrouped`
(native_grouped.py) on CPUs.

Torch's grouped product asks for widths that are multiples of 16 bytes, and a batch wants few
different shapes, so matrices are zero-padded once, when a module is decoded, to one of a few
widths. Zero columns and rows leave every product as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from smile.model.kernels.activation import Activation
from smile.model.kernels.dense import ACTIVATIONS
from smile.model.kernels.rows import Members

WIDTH_MIN = 8
SPARSE_ELEMENTS_MAX = 1 << 24  # matrices of one eager sparse step: 64 MiB in float32
GROUPED_STRIDE_BYTES = 16  # torch's grouped product wants rows at multiples of it


@dataclass(frozen=True, slots=True)
class BottleneckFields:
    """Names of a bottleneck adapter's tensors.

    Attributes:
        down_weight: [width, rank]
        down_bias: [rank]
        up_weight: [rank, width]
        up_bias: [width]
    """

    down_weight: str
    down_bias: str
    up_weight: str
    up_bias: str


class GroupedKernels(Protocol):
    """Task ops. x is [rows, inputs] and y [rows, outputs], of one dtype, float32 or bfloat16, with
    any row stride; sums are accumulated in float32. Names are of the members' layout, whose
    matrices may be of either dtype. Run in inference mode.
    """

    def linear(self, x: Tensor, members: Members, weight: str, bias: str | None) -> Tensor:
        """x W + b: [rows, outputs], of x's dtype. W is [inputs, outputs], b [outputs]."""
        ...

    def add_low_rank(self, x: Tensor, y: Tensor, members: Members, a: str, b: str) -> None:
        """y += (x A) B. A is [inputs, rank], B [rank, outputs]."""
        ...

    def add_bottleneck(
        self,
        x: Tensor,
        y: Tensor,
        members: Members,
        fields: BottleneckFields,
        activation: Activation,
    ) -> None:
        """y += activation(x D + d) U + u. x may be y."""
        ...

    def add_vectors(self, y: Tensor, members: Members, vector: str) -> None:
        """y += v, [outputs]."""
        ...

    def add_sparse(self, x: Tensor, y: Tensor, members: Members, indices: str, values: str) -> None:
        """y[:, o] += x[:, i] * value, for every entry.

        `indices` is [entries] int32, i << 16 | o, sorted by (o, i) for speed; `values` is
        [entries], 0 where an entry is padding. An entry outside the matrix adds nothing.
        """
        ...


class TorchGrouped:
    """The task ops in eager torch."""

    def linear(self, x: Tensor, members: Members, weight: str, bias: str | None) -> Tensor:
        product = _product(x, members, weight)
        return product if bias is None else product.add_(_vectors(members, bias, x.dtype))

    def add_low_rank(self, x: Tensor, y: Tensor, members: Members, a: str, b: str) -> None:
        y.add_(_product(_product(x, members, a), members, b))

    def add_bottleneck(
        self,
        x: Tensor,
        y: Tensor,
        members: Members,
        fields: BottleneckFields,
        activation: Activation,
    ) -> None:
        narrow = self.linear(x, members, fields.down_weight, fields.down_bias)
        narrow = ACTIVATIONS[activation](narrow)
        y.add_(self.linear(narrow, members, fields.up_weight, fields.up_bias))

    def add_vectors(self, y: Tensor, members: Members, vector: str) -> None:
        y.add_(_vectors(members, vector, y.dtype))

    def add_sparse(self, x: Tensor, y: Tensor, members: Members, indices: str, values: str) -> None:
        """As dense products, of as many members at a time as there is memory for: a scatter per
        row would take torch ten times as long."""
        shape = (x.shape[1], y.shape[1])
        entries = _Entries.of(members, (indices, values), shape)
        step = max(1, SPARSE_ELEMENTS_MAX // (shape[0] * shape[1]))
        begin = 0
        for first in range(0, len(members.rows), step):
            part = slice(first, first + step)
            end = begin + sum(members.counts[part])
            matrices = entries.dense(part, shape, x.dtype)
            ends = members.ends[part] - begin
            y[begin:end].add_(grouped_matmul(x[begin:end], matrices, ends))
            begin = end


@dataclass(frozen=True, slots=True)
class _Entries:
    """Every member's sparse matrix, [members, entries] each: places in the matrix, int64, and
    values. Entries outside the matrix became zeros at its corner."""

    places: Tensor
    values: Tensor

    @classmethod
    def of(cls, members: Members, names: tuple[str, str], shape: tuple[int, int]) -> _Entries:
        indices, values = members.gather(names[0]).to(torch.int64), members.gather(names[1])
        inputs, outputs = (indices >> 16) & 0xFFFF, indices & 0xFFFF
        inside = (inputs < shape[0]) & (outputs < shape[1])
        places = torch.where(inside, inputs * shape[1] + outputs, 0)
        return cls(places, torch.where(inside, values, 0))

    def dense(self, part: slice, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The matrices of some members, [members, *shape]."""
        places, values = self.places[part], self.values[part].to(dtype)
        matrices = values.new_zeros(places.shape[0], shape[0] * shape[1])
        return matrices.scatter_add_(1, places, values).view(-1, *shape)


def grouped_matmul(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Multiplies each group's rows by the group's matrix.

    Args:
        x: [rows, inputs].
        weights: [groups, inputs, outputs]; both widths multiples of 16 bytes.
        ends: [groups] int32, ascending: group g has rows `ends[g - 1]` (0 for the first) up to
            `ends[g]`; the last is `rows`. A group may be empty.

    Returns:
        [rows, outputs].
    """
    if weights.shape[0] == 1:
        return x @ weights[0]
    if x.stride(0) * x.itemsize % GROUPED_STRIDE_BYTES:
        x = x.contiguous()
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
    """`tensor` in the leading corner of zeros of `shape`; itself where it has that shape."""
    if tensor.shape == shape:
        return tensor
    padded = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    padded[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return padded


def _product(x: Tensor, members: Members, weight: str) -> Tensor:
    return grouped_matmul(x, members.gather(weight).to(x.dtype), members.ends)


def _vectors(members: Members, name: str, dtype: torch.dtype) -> Tensor:
    """Each row's member's vector: [rows, width], or [1, width] for a single member."""
    vectors = members.gather(name).to(dtype)
    return vectors if vectors.shape[0] == 1 else vectors.index_select(0, members.owners)
