"""What every text needs between two dense products of the backbone, whatever its vPLM.

The products themselves are torch's. `TorchDense` runs wherever torch does and lets gradients
through; `NativeDense` (native_dense.py) is for inference on CPUs.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from smile.model.packing import AttentionPlan, LengthGroup, PackedTokens


class Activation(enum.StrEnum):
    """Feed-forward activations; GELU is the exact one, by the error function."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"
    SILU = "silu"


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


class DenseKernels(Protocol):
    """Tensors are float32 or bfloat16, sums float32; rows may have a stride, their elements not.

    A text's results do not depend on the other texts it is packed with, to the bit.
    """

    def embed(self, packed: PackedTokens, tables: EmbeddingTables) -> Tensor:
        """States below layer 0, [tokens, H]: LayerNorm(word + position + segment)."""
        ...

    def attend(self, qkv: Tensor, packed: PackedTokens, heads: int) -> Tensor:
        """Softmax attention of every token over its own text; [tokens, 3 H] to [tokens, H].

        Columns of `qkv`: all heads' queries, then keys, then values.
        """
        ...

    def add_norm(self, y: Tensor, residual: Tensor, norm: NormWeights) -> Tensor:
        """LayerNorm(y + residual), new; [tokens, H] each."""
        ...

    def activate_(self, y: Tensor, activation: Activation) -> Tensor:
        """`y` [tokens, I], changed in place."""
        ...

    def pool_mean(self, states: Tensor, packed: PackedTokens) -> Tensor:
        """The mean of each text's tokens: [tokens, H] to [texts, H] float32."""
        ...


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.RELU: functional.relu,
    Activation.SILU: functional.silu,
}


class TorchDense:
    """The kernels in torch's own operations, on any device. Stateless: threads may share it."""

    def embed(self, packed: PackedTokens, tables: EmbeddingTables) -> Tensor:
        word = functional.embedding(packed.ids, tables.word)
        place = functional.embedding(packed.positions + tables.position_offset, tables.position)
        return _layer_norm(word + place + tables.segment[0], tables.norm)

    def attend(self, qkv: Tensor, packed: PackedTokens, heads: int) -> Tensor:
        query, key, value = qkv.chunk(3, dim=1)
        return attend(query, key, value, packed.plan, heads)

    def add_norm(self, y: Tensor, residual: Tensor, norm: NormWeights) -> Tensor:
        return _layer_norm(y + residual, norm)

    def activate_(self, y: Tensor, activation: Activation) -> Tensor:
        return y.copy_(ACTIVATIONS[activation](y))

    def pool_mean(self, states: Tensor, packed: PackedTokens) -> Tensor:
        sums = states.new_zeros(len(packed.lengths), states.shape[1], dtype=torch.float32)
        sums = sums.index_add(0, packed.texts, states.to(torch.float32))
        return sums / packed.offsets.diff()[:, None]


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


def _attend_group(
    query: Tensor, key: Tensor, value: Tensor, group: LengthGroup, heads: int
) -> Tensor:
    """[rows * length, H] each to [rows * length, H]."""
    by_head = (group.rows, group.length, heads, query.shape[1] // heads)
    query, key, value = (part.reshape(by_head).transpose(1, 2) for part in (query, key, value))
    mask = None if group.mask is None else group.mask.to(query.dtype)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).reshape(group.rows * group.length, -1)


def _layer_norm(x: Tensor, norm: NormWeights) -> Tensor:
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, norm.epsilon)
