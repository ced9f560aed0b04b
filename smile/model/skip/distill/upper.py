"""The layers above the boundary as the student's error goes down through them.

The same mathematics as `smile.model.backbone.Layer`, for one purpose: weights get no gradient and
may be bfloat16, query, key and value are one product, and attention is plain products, whose scores
before the softmax are wanted, too. torch's fused attention takes ten times as long backwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from smile.model.backbone import ACTIVATIONS, Backbone, Dense, Layer, LayerNorm
from smile.model.checkpoint import Activation
from smile.model.packing import LengthGroup, PackedTokens
from smile.model.specs import Projection

ATTENTION_INPUTS = (Projection.QUERY, Projection.KEY, Projection.VALUE)


@dataclass(frozen=True, slots=True)
class Scores:
    """Attention scores before the softmax of one group of texts: [texts, heads, length, length]."""

    group: LengthGroup
    values: Tensor

    def error(self, target: Scores) -> Tensor:
        """Sum of squared differences over all pairs of tokens of one text."""
        mask = self.group.mask
        found = _SquaredError.apply(self.values, target.values, mask)  # type: ignore[no-untyped-call]
        assert isinstance(found, Tensor)
        return found

    @property
    def count(self) -> float:
        """How many scores there are of pairs of tokens."""
        texts, heads, length, _ = self.values.shape
        if self.group.mask is None:
            return float(texts * heads * length * length)
        return float(heads * _pairs(self.group.mask).sum())


class _SquaredError(torch.autograd.Function):
    """Of scores [rows, heads, length, length] where both tokens are there. Scores are most of what
    a long text's step touches: each way is one pass over them in their own precision."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """[]; sums are float32."""
        difference = values - target
        if mask is not None:
            present = (mask == 0).to(values.dtype)
            difference.mul_(present).mul_(present.transpose(2, 3))
        ctx.save_for_backward(difference)
        norm: Tensor = torch.linalg.vector_norm(difference, dtype=torch.float32)
        return norm.square()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Of `values` alone."""
        (difference,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return difference * (2.0 * gradient).to(difference.dtype), None, None


@dataclass(frozen=True, slots=True)
class UpperLayer:
    """One post-norm layer."""

    qkv: Dense
    attention_output: Dense
    intermediate: Dense
    output: Dense
    attention_norm: LayerNorm
    output_norm: LayerNorm
    heads: int
    activation: Activation

    @classmethod
    def of(cls, layer: Layer, dtype: torch.dtype) -> UpperLayer:
        """A layer's weights in a precision."""
        parts = [layer.projections[name] for name in ATTENTION_INPUTS]

        def dense(one: Dense) -> Dense:
            return Dense(one.weight.to(dtype), one.bias.to(dtype))

        def norm(one: LayerNorm) -> LayerNorm:
            return LayerNorm(one.weight.to(dtype), one.bias.to(dtype), one.epsilon)

        return cls(
            Dense(
                torch.cat([part.weight for part in parts]).to(dtype),
                torch.cat([part.bias for part in parts]).to(dtype),
            ),
            dense(layer.projections[Projection.ATTENTION_OUTPUT]),
            dense(layer.projections[Projection.INTERMEDIATE]),
            dense(layer.projections[Projection.OUTPUT]),
            norm(layer.attention_norm),
            norm(layer.output_norm),
            layer.heads,
            layer.activation,
        )

    def forward(self, x: Tensor, packed: PackedTokens) -> tuple[Tensor, list[Scores]]:
        """[tokens, H] to [tokens, H], and the scores on the way."""
        query, key, value = self.qkv(x).chunk(3, dim=1)
        scores = self._scores(query, key, packed)
        mixed = self._mix(scores, value, packed)
        x = self.attention_norm(self.attention_output(mixed) + x)
        y = self.output(ACTIVATIONS[self.activation](self.intermediate(x)))
        return self.output_norm(y + x), scores

    def scores(self, x: Tensor, packed: PackedTokens) -> list[Scores]:
        """The scores alone, of the layer's input [tokens, H]."""
        width = 2 * x.shape[1]
        both = functional.linear(x, self.qkv.weight[:width], self.qkv.bias[:width])
        query, key = both.chunk(2, dim=1)
        return self._scores(query, key, packed)

    def _scores(self, query: Tensor, key: Tensor, packed: PackedTokens) -> list[Scores]:
        query = query * (query.shape[1] // self.heads) ** -0.5  # less to pass over than scores
        return [
            Scores(group, one @ other.transpose(2, 3))
            for (group, one), (_, other) in zip(
                self._groups(query, packed), self._groups(key, packed), strict=True
            )
        ]

    def _mix(self, scores: list[Scores], value: Tensor, packed: PackedTokens) -> Tensor:
        mixed = []
        for one, (group, values) in zip(scores, self._groups(value, packed), strict=True):
            hidden = one.values
            if group.mask is not None:
                hidden = hidden + group.mask.to(hidden.dtype)
            taken = hidden.softmax(-1) @ values
            mixed.append(taken.transpose(1, 2).reshape(-1, value.shape[1]))
        together = torch.cat(mixed)
        plan = packed.plan
        return together if plan.in_order else together.index_select(0, plan.tokens)

    def _groups(self, x: Tensor, packed: PackedTokens) -> list[tuple[LengthGroup, Tensor]]:
        """[tokens, H] by groups of similar length: [texts, heads, length, H / heads] each."""
        plan = packed.plan
        slots = x if plan.in_order else x.index_select(0, plan.slots)
        sizes = [group.rows * group.length for group in plan.groups]
        return [
            (group, part.view(group.rows, group.length, self.heads, -1).transpose(1, 2))
            for group, part in zip(plan.groups, slots.split(sizes), strict=True)
        ]


def upper_layers(backbone: Backbone, boundary: int, dtype: torch.dtype) -> tuple[UpperLayer, ...]:
    """The layers from the boundary up."""
    return tuple(UpperLayer.of(layer, dtype) for layer in backbone.layers[boundary:])


def _pairs(mask: Tensor) -> Tensor:
    """[rows, 1, 1, length] additive to [rows, 1, length, length]: 1 where both are tokens."""
    present = (mask == 0).float()
    return present * present.transpose(2, 3)
