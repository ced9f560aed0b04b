"""The dense kernels in C++ (linear.cpp, dense.cpp, attention.cpp), for inference on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from smile.model.kernels.activation import NUMBERS, Activation
from smile.model.kernels.dense import EmbeddingTables, NormWeights, Spans
from smile.model.kernels.linear import Linear, arguments, pack
from smile.model.kernels.tape import Calls, real
from smile.model.packing import PackedTokens


class NativeDense:
    """The kernels of one library. Norm weights must be float32. As safe with threads as `calls`.

    Raises:
        IndexError: from `embed`, where a token or its position is outside its table.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._function = calls.entries.function

    def embed(
        self, packed: PackedTokens, tables: EmbeddingTables, out: Tensor | None = None
    ) -> Tensor:
        parts = (tables.word, tables.position, tables.segment)
        assert all(part.is_contiguous() and part.dtype is tables.word.dtype for part in parts)
        assert packed.positions.is_contiguous() and packed.ids.is_contiguous()
        _check_rows(packed.ids, tables.word.shape[0], 0)
        _check_rows(packed.positions, tables.position.shape[0], tables.position_offset)
        out = place_for(out, (packed.tokens, tables.word.shape[1]), tables.word)
        address, stride, rows, width, dtype = self._calls.matrix(out)
        words = (
            packed.ids.data_ptr(),
            packed.positions.data_ptr(),
            tables.position_offset,
            *(part.data_ptr() for part in parts),
            address,
            stride,
            *norm_words(tables.norm),
            rows,
            width,
            self._calls.threads,
        )
        self._calls.add(self._function("embed", dtype), words, packed, tables)
        return out

    def pack(self, weight: Tensor, bias: Tensor) -> Linear:
        return pack(self._calls.entries.handle, weight, bias)

    def linear(
        self,
        x: Tensor,
        linear: Linear,
        activation: Activation | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        calls = self._calls
        at = calls.matrix(x)
        out = x.new_empty((at[2], linear.outputs)) if out is None else out
        words = arguments(at, linear, calls.matrix(out), activation, calls.threads)
        calls.add(self._function("linear", at[4]), words, linear)
        return out

    def attend(
        self, qkv: Tensor, packed: PackedTokens, heads: int, out: Tensor | None = None
    ) -> Tensor:
        address, stride, tokens, width, dtype = self._calls.matrix(qkv)
        assert tokens == packed.tokens and width % (3 * heads) == 0, f"{qkv.shape}, {heads} heads"
        out = place_for(out, (tokens, width // 3), qkv)
        words = (
            address,
            stride,
            *self._calls.matrix(out)[:2],
            packed.offsets.data_ptr(),
            len(packed.lengths),
            heads,
            width // (3 * heads),
            self._calls.threads,
        )
        self._calls.add(self._function("attend", dtype), words, packed)
        return out

    def add_norm(
        self, y: Tensor, residual: Tensor, norm: NormWeights, out: Tensor | None = None
    ) -> Tensor:
        calls = self._calls
        out = y.new_empty(y.shape) if out is None else out
        at_y, at_residual, at_out = calls.matrix(y), calls.matrix(residual), calls.matrix(out)
        assert at_y[2:] == at_residual[2:] == at_out[2:], f"{at_y}, {at_residual}, {at_out}"
        places = (*at_y[:2], *at_residual[:2], *at_out[:2])
        words = (*places, *norm_words(norm), at_y[2], at_y[3], calls.threads)
        calls.add(self._function("add_norm", at_y[4]), words, norm)
        return out

    def activate_(self, y: Tensor, activation: Activation) -> Tensor:
        address, stride, rows, width, dtype = self._calls.matrix(y)
        words = (address, stride, NUMBERS[activation], rows, width, self._calls.threads)
        self._calls.add(self._function("activate", dtype), words)
        return y

    def pool(self, states: Tensor, spans: Spans) -> Tensor:
        address, stride, rows, width, dtype = self._calls.matrix(states)
        first, last = spans.first, spans.last
        assert spans.rows_max <= rows, f"{spans.rows_max} of {rows} rows"
        assert first.dtype is last.dtype is torch.int64
        assert first.is_contiguous() and last.is_contiguous()
        out = states.new_empty((first.shape[0], width), dtype=torch.float32)
        at_out = self._calls.matrix(out)
        bounds = (first.data_ptr(), last.data_ptr())
        words = (address, stride, *bounds, *at_out[:4], self._calls.threads)
        self._calls.add(self._function("pool", dtype), words, spans)
        return out

    def unit_(self, x: Tensor) -> Tensor:
        address, stride, rows, width, dtype = self._calls.matrix(x)
        words = (address, stride, rows, width, self._calls.threads)
        self._calls.add(self._function("unit", dtype), words)
        return x

    def select(self, x: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        _check_rows(rows, x.shape[0], 0)
        assert rows.dtype is torch.int64 and rows.is_contiguous()
        out = place_for(out, (rows.shape[0], x.shape[1]), x)
        self._take(x, rows.data_ptr(), out, rows)
        return out

    def join(self, parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        out = place_for(out, (sum(part.shape[0] for part in parts), parts[0].shape[1]), parts[0])
        pieces = out.split([part.shape[0] for part in parts])
        for part, piece in zip(parts, pieces, strict=True):
            self._take(part, 0, piece, None)
        return out

    def _take(self, x: Tensor, chosen: int, out: Tensor, kept: object) -> None:
        """Rows of x, those whose numbers lie at `chosen` or all of them, to `out`."""
        at, at_out = self._calls.matrix(x), self._calls.matrix(out)
        assert at[3:] == at_out[3:], f"{at} to {at_out}"
        words = (*at[:2], chosen, *at_out[:4], self._calls.threads)
        self._calls.add(self._function("take", at[4]), words, kept)


def place_for(out: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
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


def norm_words(norm: NormWeights) -> tuple[int, int, int]:
    """A layer norm as words of a call: its float32 weight and bias, its epsilon."""
    weight, bias = norm.weight, norm.bias
    assert weight.dtype is bias.dtype is torch.float32, f"{weight.dtype}, {bias.dtype}"
    assert weight.is_contiguous() and bias.is_contiguous()
    return weight.data_ptr(), bias.data_ptr(), real(norm.epsilon)
