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

from smile.model.kernels.dense import ACTIVATIONS, Activation
from smile.model.kernels.rows import Members

WIDTH_MIN = 8
SPARSE_TERMS_MAX = 1 << 21  # of one eager sparse step: 50 MiB of temporaries at 24 bytes a term
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
        entries = _Entries.of(members, (indices, values), (x.shape[1], y.shape[1]))
        step = max(1, SPARSE_TERMS_MAX // max(1, entries.values.shape[1]))
        for start in range(0, x.shape[0], step):
            block = slice(start, start + step)
            entries.add(x[block], y[block], members.owners[block])


@dataclass(frozen=True, slots=True)
class _Entries:
    """Every member's sparse matrix, [members, entries] each: inputs and outputs int64, values
    float32. Entries outside the matrix became zeros at its corner."""

    inputs: Tensor
    outputs: Tensor
    values: Tensor

    @classmethod
    def of(cls, members: Members, names: tuple[str, str], shape: tuple[int, int]) -> _Entries:
        indices, values = members.gather(names[0]), members.gather(names[1])
        inputs, outputs = (indices >> 16) & 0xFFFF, indices & 0xFFFF
        inside = (inputs < shape[0]) & (outputs < shape[1])
        return cls(
            torch.where(inside, inputs, 0).to(torch.int64),
            torch.where(inside, outputs, 0).to(torch.int64),
            torch.where(inside, values, 0).to(torch.float32),
        )

    def add(self, x: Tensor, y: Tensor, owners: Tensor) -> None:
        """Adds the products of some rows [rows, widths], which belong to `owners` [rows]."""
        terms = x.to(torch.float32).gather(1, self.inputs[owners]).mul_(self.values[owners])
        total = y.to(torch.float32)
        total.scatter_add_(1, self.outputs[owners], terms)
        if total is not y:
            y.copy_(total)


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
    """`tensor` in the leading corner of zeros of `shape`, contiguous."""
    padded = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    padded[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return padded


def _product(x: Tensor, members: Members, weight: str) -> Tensor:
    return grouped_matmul(x, members.gather(weight).to(x.dtype), members.ends)


def _vectors(members: Members, name: str, dtype: torch.dtype) -> Tensor:
    """Each row's member's vector: [rows, width], or [1, width] for a single member."""
    vectors = members.gather(name).to(dtype)
    return vectors if vectors.shape[0] == 1 else vectors.index_select(0, members.owners)
