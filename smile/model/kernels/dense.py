"""What every text needs, whatever its vPLM: dense products, and all between two of them.

`TorchDense` runs wherever torch does and lets gradients through; `NativeDense` (native_dense.py) is
for inference on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from smile.model.kernels.activation import Activation
from smile.model.kernels.linear import Linear
from smile.model.packing import AttentionPlan, LengthGroup, PackedTokens


@dataclass(frozen=True, slots=True)
class NormWeights:
    """A layer norm over the last dimension; weight and bias [H], of any float type."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> NormWeights:
        return NormWeights(self.weight.to(device, dtype), self.bias.to(device, dtype), self.epsilon)


@dataclass(frozen=True, slots=True)
class EmbeddingTables:
    """Word, position and segment tables, [rows, H] each, of one type. All tokens are of segment 0.

    Attributes:
        position_offset: The row of a text's first position.
    """

    word: Tensor
    position: Tensor
    segment: Tensor
    norm: NormWeights
    position_offset: int

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> EmbeddingTables:
        return EmbeddingTables(
            self.word.to(device, dtype),
            self.position.to(device, dtype),
            self.segment.to(device, dtype),
            self.norm.to(device, dtype),
            self.position_offset,
        )


@dataclass(frozen=True, slots=True)
class Spans:
    """Consecutive rows of a matrix that belong together, some of them.

    Attributes:
        first: [spans] int64, the first row of each.
        last: [spans] int64, the row after its last; spans have at least one.
        rows: Rows of all spans.
        rows_max: Every span ends at this row or before.
    """

    first: Tensor
    last: Tensor
    rows: int
    rows_max: int

    @classmethod
    def of(cls, bounds: Sequence[tuple[int, int]], device: torch.device) -> Spans:
        """Spans from the first to before the second of each pair; at least one."""
        assert all(0 <= first < last for first, last in bounds), bounds
        first, last = torch.tensor(bounds, dtype=torch.int64).T.contiguous().to(device)
        rows = sum(last - first for first, last in bounds)
        return cls(first, last, rows, max(last for _, last in bounds))


class DenseKernels(Protocol):
    """Tensors are float32 or bfloat16, sums float32; rows may have a stride, their elements not.

    A text's results do not depend on the other texts it is packed with, to the bit. `out` is a
    place for the result: what is returned may be it or may be new.
    """

    def embed(
        self, packed: PackedTokens, tables: EmbeddingTables, out: Tensor | None = None
    ) -> Tensor:
        """States below layer 0, [tokens, H]: LayerNorm(word + position + segment)."""
        ...

    def pack(self, weight: Tensor, bias: Tensor) -> Linear:
        """A dense product's weights [outputs, inputs] and [outputs] as `linear` wants them."""
        ...

    def linear(
        self,
        x: Tensor,
        linear: Linear,
        activation: Activation | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """activation(x W^T + b): [rows, inputs] to [rows, outputs]."""
        ...

    def attend(
        self, qkv: Tensor, packed: PackedTokens, heads: int, out: Tensor | None = None
    ) -> Tensor:
        """Softmax attention of every token over its own text; [tokens, 3 H] to [tokens, H].

        Columns of `qkv`: all heads' queries, then keys, then values.
        """
        ...

    def add_norm(
        self, y: Tensor, residual: Tensor, norm: NormWeights, out: Tensor | None = None
    ) -> Tensor:
        """LayerNorm(y + residual); [tokens, H] each. `out` may be either."""
        ...

    def activate_(self, y: Tensor, activation: Activation) -> Tensor:
        """`y` [tokens, I], changed in place."""
        ...

    def pool(self, states: Tensor, spans: Spans) -> Tensor:
        """The mean of each span: [tokens, H] to [spans, H] float32, new."""
        ...

    def unit_(self, x: Tensor) -> Tensor:
        """`x` [rows, H] float32, each row scaled in place to length 1."""
        ...

    def select(self, x: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Rows of x: [any, H] and [rows] int64 to [rows, H]."""
        ...

    def join(self, parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """Matrices of one width one below another; at least one."""
        ...


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.RELU: functional.relu,
    Activation.SILU: functional.silu,
    Activation.TANH: torch.tanh,
}


class TorchDense:
    """The kernels in torch's own operations, on any device. Stateless: threads may share it.
    Results are new."""

    def embed(
        self, packed: PackedTokens, tables: EmbeddingTables, out: Tensor | None = None
    ) -> Tensor:
        word = functional.embedding(packed.ids, tables.word)
        place = functional.embedding(packed.positions + tables.position_offset, tables.position)
        return _layer_norm(word + place + tables.segment[0], tables.norm)

    def pack(self, weight: Tensor, bias: Tensor) -> Linear:
        return Linear(weight, bias, weight.shape[1], weight.shape[0])

    def linear(
        self,
        x: Tensor,
        linear: Linear,
        activation: Activation | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        y = functional.linear(x, linear.packed, linear.bias)
        return y if activation is None else ACTIVATIONS[activation](y)

    def attend(
        self, qkv: Tensor, packed: PackedTokens, heads: int, out: Tensor | None = None
    ) -> Tensor:
        query, key, value = qkv.chunk(3, dim=1)
        return attend(query, key, value, packed.plan, heads)

    def add_norm(
        self, y: Tensor, residual: Tensor, norm: NormWeights, out: Tensor | None = None
    ) -> Tensor:
        return _layer_norm(y + residual, norm)

    def activate_(self, y: Tensor, activation: Activation) -> Tensor:
        return y.copy_(ACTIVATIONS[activation](y))

    def pool(self, states: Tensor, spans: Spans) -> Tensor:
        count = spans.first.shape[0]
        if spans.rows == count:
            return states.index_select(0, spans.first).to(torch.float32)
        lengths = spans.last - spans.first
        starts = lengths.cumsum(0) - lengths  # of each span among the rows of all
        numbers = torch.arange(count, device=lengths.device)
        owners = torch.repeat_interleave(numbers, lengths, output_size=spans.rows)
        places = torch.arange(spans.rows, device=lengths.device) - starts[owners]
        rows = states.index_select(0, spans.first[owners] + places).to(torch.float32)
        sums = rows.new_zeros(count, states.shape[1]).index_add(0, owners, rows)
        return sums / lengths[:, None]

    def unit_(self, x: Tensor) -> Tensor:
        return x.copy_(functional.normalize(x, dim=1))

    def select(self, x: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        return x.index_select(0, rows)

    def join(self, parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        return torch.cat(list(parts))


def attend(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, heads: int) -> Tensor:
    """Softmax attention of every token over its own text; all [tokens, H].

    One fused kernel for each group of texts of similar length: hardly anything is padded, and no
    scores are kept.
    """
    if not plan.in_order:
        query, key, value = (part.index_select(0, plan.slots) for part in (query, key, value))
    # One split per tensor: a slice per group would fill a whole gradient for each of them.
    sizes = [group.rows * group.length for group in plan.groups]
    queries, keys, values = (torch.split(part, sizes) for part in (query, key, value))
    mixed = [
        _attend_group(*parts, heads)
        for parts in zip(queries, keys, values, plan.groups, strict=True)
    ]
    padded = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    return padded if plan.in_order else padded.index_select(0, plan.tokens)


def attend_firsts(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, heads: int
) -> Tensor:
    """As `attend`, of each text's first token alone: query and result [texts, H], in the order of
    the texts."""
    if not plan.in_order:
        key, value = (part.index_select(0, plan.slots) for part in (key, value))
    sizes = [group.rows * group.length for group in plan.groups]
    queries = query.index_select(0, plan.rows).split([group.rows for group in plan.groups])
    keys, values = torch.split(key, sizes), torch.split(value, sizes)
    mixed = [
        _attend_group(*parts, heads)
        for parts in zip(queries, keys, values, plan.groups, strict=True)
    ]
    return torch.cat(mixed).index_select(0, plan.rows.argsort())


def _attend_group(
    query: Tensor, key: Tensor, value: Tensor, group: LengthGroup, heads: int
) -> Tensor:
    """Key and value [rows * length, H], query and result the same, or fewer of each row."""
    split = (group.rows, -1, heads, query.shape[1] // heads)
    query, key, value = (part.reshape(split).transpose(1, 2) for part in (query, key, value))
    mask = None if group.mask is None else group.mask.to(query.dtype)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


def _layer_norm(x: Tensor, norm: NormWeights) -> Tensor:
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, norm.epsilon)
