"""The frozen transformer for inference: the same layers as `backbone`, with the machine's kernels.

Query, key and value are one product; a product's bias and activation come with it; attention never
sees padding. Weights are float32 or bfloat16, sums are always float32. No autograd.

A pass writes the same few matrices layer after layer (`_Matrices`), in the kernels' room if they
have one, so its result is good until the next pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from smile.model import checkpoint
from smile.model.backbone import Backbone, Layer, LayerNorm, LayerOps
from smile.model.kernels import Kernels
from smile.model.kernels.activation import Activation
from smile.model.kernels.dense import EmbeddingTables
from smile.model.kernels.linear import Linear
from smile.model.kernels.workspace import Slot
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


class ServingOps(LayerOps, Protocol):
    """The ops of a batch's modules in one layer. Its hooks change their `y` in place."""

    @property
    def rows_bare(self) -> int:
        """So many rows, the first, have no op at the intermediate product."""
        ...


@dataclass(frozen=True, slots=True)
class _Matrices:
    """Places for what layers compute, [tokens, columns] each; None: a kernel makes a new one.

    A layer's input may lie in `states`: its output overwrites it last.
    """

    states: Tensor | None
    qkv: Tensor | None
    query_key_value: tuple[Tensor, ...] | None  # `qkv`, a third of its columns each
    mixed: Tensor | None
    output: Tensor | None
    middle: Tensor | None
    wide: Tensor | None


@dataclass(frozen=True, slots=True)
class ServingLayer:
    """One post-norm transformer layer; `qkv` has the three projections' outputs side by side."""

    qkv: Linear
    attention_output: Linear
    intermediate: Linear
    output: Linear
    attention_norm: LayerNorm
    output_norm: LayerNorm
    heads: int
    activation: Activation

    @classmethod
    def of(
        cls, layer: Layer, kernels: Kernels, device: torch.device, dtype: torch.dtype
    ) -> ServingLayer:
        """A layer's weights on a device, in a precision."""

        def packed(*names: Projection) -> Linear:
            parts = [layer.projections[name] for name in names]
            weight = torch.cat([part.weight.detach() for part in parts])
            bias = torch.cat([part.bias.detach() for part in parts])
            return kernels.dense.pack(weight.to(device, dtype), bias.to(device, dtype))

        return cls(
            packed(*ATTENTION_INPUTS),
            packed(Projection.ATTENTION_OUTPUT),
            packed(Projection.INTERMEDIATE),
            packed(Projection.OUTPUT),
            _norm(layer.attention_norm, device),
            _norm(layer.output_norm, device),
            layer.heads,
            _ACTIVATIONS[layer.activation],
        )

    def matrices(self, kernels: Kernels, tokens: int, dtype: torch.dtype) -> _Matrices:
        """Places for this layer's results, and for all layers of its widths."""
        hidden, wide = self.output.outputs, self.intermediate.outputs

        def take(slot: Slot, width: int) -> Tensor | None:
            return kernels.room.take(slot, tokens, width, dtype)

        qkv = take(Slot.QKV, 3 * hidden)
        return _Matrices(
            states=take(Slot.STATES, hidden),
            qkv=qkv,
            query_key_value=None if qkv is None else qkv.chunk(3, dim=1),
            mixed=take(Slot.MIXED, hidden),
            output=take(Slot.OUTPUT, hidden),
            middle=take(Slot.MIDDLE, hidden),
            wide=take(Slot.WIDE, wide),
        )

    def forward(
        self,
        x: Tensor,
        packed: PackedTokens,
        kernels: Kernels,
        ops: ServingOps | None,
        places: _Matrices,
    ) -> Tensor:
        """[tokens, H] to [tokens, H]; see `LayerOps` for the order of things."""
        dense = kernels.dense
        y = self._attention(x, packed, kernels, ops, places)
        if ops is not None:
            ops.after_attention(y, x, self.attention_norm)
        middle = dense.add_norm(y, x, self.attention_norm, places.middle)
        if ops is not None:
            ops.norm(Norm.ATTENTION, middle)
        wide = self._intermediate(middle, kernels, ops, places.wide)
        y = dense.linear(wide, self.output, out=places.output)
        if ops is not None:
            ops.project(Projection.OUTPUT, wide, y)
            ops.after_feedforward(y, middle, self.output_norm)
        x = dense.add_norm(y, middle, self.output_norm, places.states)
        if ops is not None:
            ops.norm(Norm.OUTPUT, x)
        return x

    def _attention(
        self,
        x: Tensor,
        packed: PackedTokens,
        kernels: Kernels,
        ops: ServingOps | None,
        places: _Matrices,
    ) -> Tensor:
        qkv = kernels.dense.linear(x, self.qkv, out=places.qkv)
        if ops is not None:
            parts = places.query_key_value or qkv.chunk(3, dim=1)
            for name, y in zip(ATTENTION_INPUTS, parts, strict=True):
                ops.project(name, x, y)
        mixed = kernels.dense.attend(qkv, packed, self.heads, places.mixed)
        y = kernels.dense.linear(mixed, self.attention_output, out=places.output)
        if ops is not None:
            ops.project(Projection.ATTENTION_OUTPUT, mixed, y)
        return y

    def _intermediate(
        self, x: Tensor, kernels: Kernels, ops: ServingOps | None, out: Tensor | None
    ) -> Tensor:
        """[tokens, H] to [tokens, I]. The activation comes with the product for rows that no op
        changes in between."""
        dense, dense_of = kernels.dense, self.intermediate
        bare = x.shape[0] if ops is None else ops.rows_bare
        if ops is None or bare == x.shape[0]:
            return dense.linear(x, dense_of, self.activation, out)
        if out is None or bare == 0:
            y = dense.linear(x, dense_of, out=out)
            ops.project(Projection.INTERMEDIATE, x, y)
            return dense.activate_(y, self.activation)
        part, changed = kernels.room.part, slice(bare, x.shape[0])
        upper, lower = part(out, slice(0, bare)), part(out, changed)
        dense.linear(part(x, slice(0, bare)), dense_of, self.activation, upper)
        dense.linear(part(x, changed), dense_of, out=lower)
        ops.project(Projection.INTERMEDIATE, x, out)
        dense.activate_(lower, self.activation)
        return out


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
            tuple(ServingLayer.of(layer, kernels, device, dtype) for layer in backbone.layers),
            kernels,
        )

    @contextmanager
    def together(self) -> Iterator[ServingBackbone]:
        """The same, computing when the block ends; see `Kernels.together`."""
        with self.kernels.together() as kernels:
            yield replace(self, kernels=kernels)

    def embed(self, packed: PackedTokens) -> Tensor:
        """States below layer 0: [tokens, H]."""
        word = self.embeddings.word
        out = self.kernels.room.take(Slot.STATES, packed.tokens, word.shape[1], word.dtype)
        return self.kernels.dense.embed(packed, self.embeddings, out)

    def forward_layers(
        self, x: Tensor, packed: PackedTokens, start: int, ops: Sequence[ServingOps | None]
    ) -> Tensor:
        """Runs as many layers as `ops` from layer `start` on; a layer without ops runs bare."""
        assert 0 <= start <= start + len(ops) <= len(self.layers), f"{len(ops)} from {start}"
        if not ops:
            return x
        places = self.layers[0].matrices(self.kernels, packed.tokens, x.dtype)
        for layer, one in zip(self.layers[start:], ops, strict=False):
            x = layer.forward(x, packed, self.kernels, one, places)
        return x


def _norm(norm: LayerNorm, device: torch.device) -> LayerNorm:
    """In float32, whatever the rest is in."""
    return LayerNorm(norm.weight.to(device), norm.bias.to(device), norm.epsilon)
