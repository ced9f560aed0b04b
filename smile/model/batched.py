"""Inference over one batch of many vPLMs: one shared dense product, task ops per shape class.

The form is PetS's (Zhou et al., USENIX ATC 2022): every PET method is the backbone's dense product
for all rows plus a small op of its own. Here the small ops of all vPLMs of one shape class are one
gathered or grouped product, so a layer makes as many calls for 2 vPLMs as for 200.

Rows are sorted by shape class, then by vPLM: a class's rows lie together, and each vPLM's weights
are read once. Layers below the batch's lowest first PET layer depend on the text alone: equal texts
share them, and a text that one caller asks of many vPLMs shares them with later batches too. Some
of these layers may have a stand-in (`Lower`), which then says how far it reaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from smile.model.answers import Output
from smile.model.backbone import Backbone, LayerNorm, LayerOps
from smile.model.batch import CPU, DifferentTexts, MixedBatch
from smile.model.kernels import Kernels, kernels_for
from smile.model.kernels.workspace import Slot
from smile.model.known import KnownTexts
from smile.model.layout import Norm
from smile.model.packing import PackedTokens, pack
from smile.model.pet import METHODS, acts_on_intermediate
from smile.model.pet.method import LayerGroup
from smile.model.serving import ServingBackbone, ServingOps
from smile.model.specs import Projection
from smile.model.tokenizer import TokenizedText


class Lower(Protocol):
    """What stands in for the layers below a boundary, for the texts of one batch."""

    @property
    def boundary(self) -> int:
        """The first layer that is computed."""
        ...

    def states(self, packed: PackedTokens, serving: ServingBackbone) -> Tensor:
        """States of a batch's different texts below layer `boundary`: [tokens, H]."""
        ...


@dataclass(frozen=True, slots=True)
class BatchedEngine:
    """Runs mixed batches over one backbone. Threads may share it."""

    backbone: Backbone
    serving: ServingBackbone
    known: KnownTexts

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        *,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        kernels: Kernels | None = None,
    ) -> BatchedEngine:
        """An engine on a device, in a precision; with this machine's kernels unless told."""
        kernels = kernels or kernels_for(device, dtype)
        return cls(backbone, ServingBackbone.of(backbone, kernels, device, dtype), KnownTexts())

    @torch.inference_mode()
    def run(self, batch: MixedBatch, lower: Lower | None = None) -> list[Output]:
        """One output per text, in the order the batch was given. `lower` stands in for layers that
        no module of the batch has ops in.
        """
        assert batch.backbone_digest == self.backbone.digest, "a batch of this backbone's modules"
        with self.serving.together() as serving:
            if lower is None:
                below = self._below(batch, serving)
            else:
                below = _Below(_spread(_stood_in(batch, lower, serving), batch, serving), ())
            ops = [_ops(batch, layer, serving.kernels) for layer in self._layers(batch)]
            states = serving.forward_layers(below.states, batch.packed, batch.boundary, ops)
            values = [head.values(states, serving.kernels) for head in batch.heads]
        for text, states in below.new:
            self.known.keep(text, batch.boundary, states)
        found: dict[int, Output] = {}
        for head, of_head in zip(batch.heads, values, strict=True):
            for row, output in head.answers(of_head.cpu().numpy()):
                found[batch.order[row]] = output
        assert found.keys() == set(range(len(batch.order))), "one output per text"
        return [found[place] for place in range(len(batch.order))]

    def _layers(self, batch: MixedBatch) -> range:
        """Those that have ops."""
        return range(batch.boundary, self.backbone.shape.layers)

    def _below(self, batch: MixedBatch, serving: ServingBackbone) -> _Below:
        """States below the lowest first PET layer, equal texts computed once."""
        different, boundary, dense = batch.different, batch.boundary, serving.kernels.dense
        found = (
            [self.known.states(text, boundary) for text in different.texts] if self.known else []
        )
        if any(states is not None for states in found):
            states = _completed(different, found, boundary, serving)
        else:
            states = _states(different.packed, boundary, serving)
        new = []
        if different.repeated:
            parts = states.split(different.packed.lengths)
            for text, part in zip(different.texts, parts, strict=True):
                if id(text) in different.repeated:
                    new.append((text, dense.join([part])))
        return _Below(_spread(states, batch, serving), tuple(new))


@dataclass(frozen=True, slots=True)
class _Below:
    """What comes before the first layer with ops.

    Attributes:
        states: [tokens, H] of the batch.
        new: Texts to be known, and the states of each, once they are computed.
    """

    states: Tensor
    new: tuple[tuple[TokenizedText, Tensor], ...]


def _completed(
    different: DifferentTexts,
    found: Sequence[Tensor | None],
    boundary: int,
    serving: ServingBackbone,
) -> Tensor:
    """The states that are known, and those of the other texts."""
    missing = [
        text.ids for text, states in zip(different.texts, found, strict=True) if states is None
    ]
    parts: Iterator[Tensor] = iter(())
    if missing:
        packed = pack(missing).to(different.packed.ids.device)
        parts = iter(_states(packed, boundary, serving).split(packed.lengths))
    return serving.kernels.dense.join(
        [next(parts) if states is None else states for states in found]
    )


def _stood_in(batch: MixedBatch, lower: Lower, serving: ServingBackbone) -> Tensor:
    """The same for the batch's different texts, from a stand-in."""
    packed, bare = batch.different.packed, batch.boundary - lower.boundary
    assert bare >= 0, f"ops in layer {batch.boundary}, which is replaced up to {lower.boundary}"
    states = lower.states(packed, serving)
    return serving.forward_layers(states, packed, lower.boundary, [None] * bare)


def _spread(states: Tensor, batch: MixedBatch, serving: ServingBackbone) -> Tensor:
    """States of the different texts to states of all: [tokens, H] each."""
    tokens = batch.different.tokens
    if tokens is None:
        return states
    out = serving.kernels.room.take(Slot.SELECTED, tokens.shape[0], states.shape[1], states.dtype)
    return serving.kernels.dense.select(states, tokens, out)


def _states(packed: PackedTokens, boundary: int, serving: ServingBackbone) -> Tensor:
    """States below layer `boundary` [tokens, H]."""
    return serving.forward_layers(serving.embed(packed), packed, 0, [None] * boundary)


def _ops(batch: MixedBatch, layer: int, kernels: Kernels) -> ServingOps | None:
    groups = [group for group in batch.groups if group.boundary <= layer]
    if not groups:
        return None
    bare = batch.packed.tokens
    parts = []
    for group in groups:
        if acts_on_intermediate(group.shape_class):
            bare = min(bare, group.rows.start)
        one = LayerGroup(layer, group.shape_class, group.rows, group.members, kernels)
        parts.append(METHODS[group.shape_class.kind].grouped(one))
    return _MixedOps(tuple(parts), bare)


@dataclass(frozen=True, slots=True)
class _MixedOps:
    """The ops of every shape class, each on its own rows."""

    parts: tuple[LayerOps, ...]
    rows_bare: int

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        for part in self.parts:
            y = part.project(name, x, y)
        return y

    def after_attention(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        for part in self.parts:
            y = part.after_attention(y, residual, norm)
        return y

    def after_feedforward(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        for part in self.parts:
            y = part.after_feedforward(y, residual, norm)
        return y

    def norm(self, name: Norm, y: Tensor) -> Tensor:
        for part in self.parts:
            y = part.norm(name, y)
        return y
