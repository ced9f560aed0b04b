"""The dense kernels in C++ (linear.cpp, dense.cpp, attention.cpp), for inference on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from smile.model.kernels.activation import NUMBERS, Activation
from smile.model.kernels.dense import EmbeddingTables, NormWeights, Spans
from smile.model.kernels.linear import Linear, arguments, pack
from smile.model.kernels.tape import Calls, matrix, real
from smile.model.packing import PackedTokens


class NativeDense:
    """The kernels of one library. Norm weights must be float32. As safe with threads as `calls`.

    Raises:
        IndexError: from `embed`, where a token or its position is outside its table.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._function = calls.library.function

    def embed(
        self, packed: PackedTokens, tables: EmbeddingTables, out: Tensor | None = None
    ) -> Tensor:
        parts = (tables.word, tables.position, tables.segment)
        assert all(part.is_contiguous() and part.dtype == tables.word.dtype for part in parts)
        assert packed.positions.is_contiguous() and packed.ids.is_contiguous()
        _check_rows(packed.ids, tables.word.shape[0], 0)
        _check_rows(packed.positions, tables.position.shape[0], tables.position_offset)
        out = _place(out, (packed.tokens, tables.word.shape[1]), tables.word)
        words = (
            packed.ids.data_ptr(),
            packed.positions.data_ptr(),
            tables.position_offset,
            *(part.data_ptr() for part in parts),
            *matrix(out),
            *_norm(tables.norm),
            *out.shape,
            self._calls.threads,
        )
        self._calls.add(self._function("embed", out.dtype), words, packed, tables, out)
        return out

    def pack(self, weight: Tensor, bias: Tensor) -> Linear:
        return pack(self._calls.library.handle, weight, bias)

    def linear(
        self,
        x: Tensor,
        linear: Linear,
        activation: Activation | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        out = _place(out, (x.shape[0], linear.outputs), x)
        words = arguments(x, linear, out, activation, self._calls.threads)
        self._calls.add(self._function("linear", x.dtype), words, x, linear, out)
        return out

    def attend(
        self, qkv: Tensor, packed: PackedTokens, heads: int, out: Tensor | None = None
    ) -> Tensor:
        tokens, width = qkv.shape
        assert tokens == packed.tokens and width % (3 * heads) == 0, f"{qkv.shape}, {heads} heads"
        out = _place(out, (tokens, width // 3), qkv)
        offsets = packed.offsets.data_ptr()
        sizes = (len(packed.lengths), heads, width // (3 * heads))
        words = (*matrix(qkv), *matrix(out), offsets, *sizes, self._calls.threads)
        self._calls.add(self._function("attend", qkv.dtype), words, qkv, packed, out)
        return out

    def add_norm(
        self, y: Tensor, residual: Tensor, norm: NormWeights, out: Tensor | None = None
    ) -> Tensor:
        shape = y.shape
        assert shape == residual.shape and y.dtype is residual.dtype
        out = _place(out, shape, y)
        places = (*matrix(y), *matrix(residual), *matrix(out))
        words = (*places, *_norm(norm), *shape, self._calls.threads)
        self._calls.add(self._function("add_norm", y.dtype), words, y, residual, norm, out)
        return out

    def activate_(self, y: Tensor, activation: Activation) -> Tensor:
        words = (*matrix(y), NUMBERS[activation], *y.shape, self._calls.threads)
        self._calls.add(self._function("activate", y.dtype), words, y)
        return y

    def pool(self, states: Tensor, spans: Spans) -> Tensor:
        first, last = spans.first, spans.last
        assert spans.rows_max <= states.shape[0], f"{spans.rows_max} of {states.shape[0]} rows"
        assert first.dtype is last.dtype is torch.int64
        assert first.is_contiguous() and last.is_contiguous()
        shape = (first.shape[0], states.shape[1])
        out = states.new_empty(shape, dtype=torch.float32)
        bounds = (first.data_ptr(), last.data_ptr())
        words = (*matrix(states), *bounds, *matrix(out), *shape, self._calls.threads)
        self._calls.add(self._function("pool", states.dtype), words, states, spans, out)
        return out

    def unit_(self, x: Tensor) -> Tensor:
        words = (*matrix(x), *x.shape, self._calls.threads)
        self._calls.add(self._function("unit", x.dtype), words, x)
        return x

    def select(self, x: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        _check_rows(rows, x.shape[0], 0)
        assert rows.dtype is torch.int64 and rows.is_contiguous()
        out = _place(out, (rows.shape[0], x.shape[1]), x)
        words = (*matrix(x), rows.data_ptr(), *matrix(out), *out.shape, self._calls.threads)
        self._calls.add(self._function("take", x.dtype), words, x, rows, out)
        return out

    def join(self, parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        out = _place(out, (sum(part.shape[0] for part in parts), parts[0].shape[1]), parts[0])
        pieces = out.split([part.shape[0] for part in parts])
        for part, piece in zip(parts, pieces, strict=True):
            assert part.shape[1] == piece.shape[1] and part.dtype is out.dtype
            words = (*matrix(part), 0, *matrix(piece), *part.shape, self._calls.threads)
            self._calls.add(self._function("take", out.dtype), words, part, piece)
        return out


def _place(out: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """Where a result goes: `out`, which must fit, or a new matrix."""
    if out is None:
        return like.new_empty(shape)
    assert out.shape == shape and out.dtype is like.dtype, f"{out.shape} for {shape}"
    return out


def _check_rows(rows: Tensor, count: int, offset: int) -> None:
    """`rows` + `offset` are of a table of `count`."""
    if rows.numel() == 0:
        return
    least, most = (int(bound) + offset for bound in torch.aminmax(rows))
    if least < 0 or most >= count:
        raise IndexError(f"rows {least} to {most} of a table of {count}")


def _norm(norm: NormWeights) -> tuple[int, int, int]:
    weight, bias = norm.weight, norm.bias
    assert weight.dtype is bias.dtype is torch.float32, f"{weight.dtype}, {bias.dtype}"
    assert weight.is_contiguous() and bias.is_contiguous()
    return weight.data_ptr(), bias.data_ptr(), real(norm.epsilon)
