"""The frozen transformer for inference: the same layers as `backbone`, with the machine's kernels.

Query, key and value are one product; activations and layer norms are one pass each; attention never
sees padding. Weights are float32 or bfloat16, sums are always float32. No autograd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model import checkpoint
from smile.model.backbone import Backbone, Dense, Layer, LayerNorm, LayerOps
from smile.model.kernels import Kernels
from smile.model.kernels.dense import Activation, EmbeddingTables
from smile.model.layout import Norm
from smile.model.packing import PackedTokens
from smile.model.specs import Projection

ATTENTION_INPUTS = (Projection.QUERY, Projection.KEY, Projection.VALUE)

_ACTIVATIONS: Mapping[checkpoint.Activation, Activation] = {
    checkpoint.Activation.GELU: Activation.GELU,
    checkpoint.Activation.GELU_NEW: Activation.GELU_TANH,
    checkpoint.Activation.GELU_TANH: Activation.GELU_TANH,
    checkpoint.Activation.RELU: Activation.RELU,
}


@dataclass(frozen=True, slots=True)
class ServingLayer:
    """One post-norm transformer layer; `qkv` is [3 H, H], the three projections one below another.

    Hooks of `LayerOps` change their `y` in place here.
    """

    qkv: Dense
    attention_output: Dense
    intermediate: Dense
    output: Dense
    attention_norm: LayerNorm
    output_norm: LayerNorm
    heads: int
    activation: Activation

    @classmethod
    def of(cls, layer: Layer, device: torch.device, dtype: torch.dtype) -> ServingLayer:
        """A layer's weights on a device, in a precision."""
        parts = [layer.projections[name] for name in ATTENTION_INPUTS]
        joined = Dense(
            torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        )
        return cls(
            _dense(joined, device, dtype),
            _dense(layer.projections[Projection.ATTENTION_OUTPUT], device, dtype),
            _dense(layer.projections[Projection.INTERMEDIATE], device, dtype),
            _dense(layer.projections[Projection.OUTPUT], device, dtype),
            _norm(layer.attention_norm, device),
            _norm(layer.output_norm, device),
            layer.heads,
            _ACTIVATIONS[layer.activation],
        )

    def forward(
        self, x: Tensor, packed: PackedTokens, kernels: Kernels, ops: LayerOps | None
    ) -> Tensor:
        """[tokens, H] to [tokens, H]; see `LayerOps` for the order of things."""
        y = self._attention(x, packed, kernels, ops)
        if ops is not None:
            ops.after_attention(y, x, self.attention_norm)
        x = kernels.dense.add_norm(y, x, self.attention_norm)
        if ops is not None:
            ops.norm(Norm.ATTENTION, x)
        y = self.intermediate(x)
        if ops is not None:
            ops.project(Projection.INTERMEDIATE, x, y)
        wide = kernels.dense.activate_(y, self.activation)
        y = self.output(wide)
        if ops is not None:
            ops.project(Projection.OUTPUT, wide, y)
            ops.after_feedforward(y, x, self.output_norm)
        x = kernels.dense.add_norm(y, x, self.output_norm)
        if ops is not None:
            ops.norm(Norm.OUTPUT, x)
        return x

    def _attention(
        self, x: Tensor, packed: PackedTokens, kernels: Kernels, ops: LayerOps | None
    ) -> Tensor:
        qkv = self.qkv(x)
        if ops is not None:
            for name, y in zip(ATTENTION_INPUTS, qkv.chunk(3, dim=1), strict=True):
                ops.project(name, x, y)
        mixed = kernels.dense.attend(qkv, packed, self.heads)
        y = self.attention_output(mixed)
        if ops is not None:
            ops.project(Projection.ATTENTION_OUTPUT, mixed, y)
        return y


@dataclass(frozen=True, slots=True)
class ServingBackbone:
    """A backbone's weights on a device, in a precision, with the kernels that compute there."""

    embeddings: EmbeddingTables
    layers: tuple[ServingLayer, ...]
    kernels: Kernels

    @classmethod
    def of(
        cls, backbone: Backbone, kernels: Kernels, device: torch.device, dtype: torch.dtype
    ) -> ServingBackbone:
        """The backbone on a device, in a precision; `kernels` must be for both."""
        tables = backbone.embeddings
        return cls(
            EmbeddingTables(
                tables.word.to(device, dtype),
                tables.position.to(device, dtype),
                tables.segment.to(device, dtype),
                tables.norm.to(device),
                tables.position_offset,
            ),
            tuple(ServingLayer.of(layer, device, dtype) for layer in backbone.layers),
            kernels,
        )

    def embed(self, packed: PackedTokens) -> Tensor:
        """States below layer 0: [tokens, H]."""
        return self.kernels.dense.embed(packed, self.embeddings)

    def forward_layers(
        self, x: Tensor, packed: PackedTokens, start: int, ops: Sequence[LayerOps | None]
    ) -> Tensor:
        """Runs as many layers as `ops` from layer `start` on; a layer without ops runs bare."""
        assert 0 <= start <= start + len(ops) <= len(self.layers), f"{len(ops)} from {start}"
        for layer, one in zip(self.layers[start:], ops, strict=False):
            x = layer.forward(x, packed, self.kernels, one)
        return x


def _dense(dense: Dense, device: torch.device, dtype: torch.dtype) -> Dense:
    return Dense(dense.weight.to(device, dtype), dense.bias.to(device, dtype))


def _norm(norm: LayerNorm, device: torch.device) -> LayerNorm:
    """In float32, whatever the rest is in."""
    return LayerNorm(norm.weight.to(device), norm.bias.to(device), norm.epsilon)
