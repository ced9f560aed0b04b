"""The task ops in C++ (grouped.cpp), for CPUs. Everything a pointer needs is checked here.

What depends on a layout alone is checked once and kept with it: a batch makes a hundred calls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smile.model.kernels.activation import NUMBERS, Activation
from smile.model.kernels.grouped import BottleneckFields
from smile.model.kernels.rows import Members, RowLayout
from smile.model.kernels.tape import ABSENT, Calls

SPARSE_WIDTH_MAX = 1 << 16  # of an index's half
_TYPES = {torch.float32: 0, torch.bfloat16: 1}


class NativeGrouped:
    """The task ops of one library. As safe with threads as `calls`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._function = calls.entries.function

    def linear(self, x: Tensor, members: Members, weight: str, bias: str | None) -> Tensor:
        outputs = members.layout.fields[weight].shape[-1]
        y = x.new_empty((x.shape[0], outputs))
        matrix_shape = (x.shape[1], outputs)
        names = (weight,) if bias is None else (weight, bias)
        kind, *offsets = _offsets(members.layout, names, (matrix_shape, (outputs,)))
        self._add("grouped_linear", x, y, members, (kind, *offsets, *(ABSENT,) * (bias is None)))
        return y

    def add_low_rank(self, x: Tensor, y: Tensor, members: Members, a: str, b: str) -> None:
        rank = members.layout.fields[a].shape[-1]
        shapes = ((x.shape[1], rank), (rank, y.shape[1]))
        kind, down, up = _offsets(members.layout, (a, b), shapes)
        own = (kind, rank, down, ABSENT, up, ABSENT, NUMBERS[None])
        self._add("grouped_through", x, y, members, own)

    def add_bottleneck(
        self,
        x: Tensor,
        y: Tensor,
        members: Members,
        fields: BottleneckFields,
        activation: Activation,
    ) -> None:
        rank = members.layout.fields[fields.down_weight].shape[-1]
        inputs, outputs = x.shape[1], y.shape[1]
        names = (fields.down_weight, fields.down_bias, fields.up_weight, fields.up_bias)
        shapes = ((inputs, rank), (rank,), (rank, outputs), (outputs,))
        kind, *offsets = _offsets(members.layout, names, shapes)
        own = (kind, rank, *offsets, NUMBERS[activation])
        self._add("grouped_through", x, y, members, own)

    def add_vectors(self, y: Tensor, members: Members, vector: str) -> None:
        own = _offsets(members.layout, (vector,), ((y.shape[1],),))
        self._add("grouped_vectors", y, y, members, own)

    def add_sparse(self, x: Tensor, y: Tensor, members: Members, indices: str, values: str) -> None:
        assert 0 < x.shape[1] <= SPARSE_WIDTH_MAX, f"{x.shape[1]} inputs"
        assert 0 < y.shape[1] <= SPARSE_WIDTH_MAX, f"{y.shape[1]} outputs"
        index = members.layout.fields[indices]
        assert index.dtype is torch.int32 and len(index.shape) == 1, index
        kind, value = _offsets(members.layout, (values,), (index.shape,))
        own = (kind, index.offset, value, index.shape[0])
        self._add("grouped_sparse", x, y, members, own)

    def _add(self, name: str, x: Tensor, y: Tensor, members: Members, own: tuple[int, ...]) -> None:
        """A call: what every one takes, and its `own` words, of which the first is the type of the
        weights. x and y are checked to be what it may read and write."""
        at_x, at_y = self._calls.matrix(x), self._calls.matrix(y)
        assert at_x[2] == at_y[2] == members.rows_total, (at_x, at_y, members.rows_total)
        assert at_x[4] is at_y[4] and at_x[4] in _TYPES, (at_x, at_y)
        words = (
            *at_x[:2],
            *at_y[:2],
            *members.table,
            at_x[3],
            at_y[3],
            _TYPES[at_x[4]],
            *own,
            self._calls.threads,
        )
        self._calls.add(self._function(name), words, members)


def _offsets(
    layout: RowLayout, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> tuple[int, ...]:
    """The one type of the fields `names`, which have these shapes, and the offset of each."""
    key = (names, shapes)
    found = layout.found.get(key)
    if found is None:
        fields = [layout.fields[name] for name in names]
        for name, one, shape in zip(names, fields, shapes, strict=False):
            assert one.shape == shape, f"{name} is {list(one.shape)}, not {list(shape)}"
        dtypes = {one.dtype for one in fields}
        assert len(dtypes) == 1 and dtypes <= _TYPES.keys(), f"{names} are {dtypes}"
        dtype = dtypes.pop()
        found = layout.found[key] = (_TYPES[dtype], *(one.offset for one in fields))
    return found
