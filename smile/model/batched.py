"""Inference over one batch of many vPLMs: one shared dense product, task ops per shape class.

The form is PetS's (Zhou et al., USENIX ATC 2022): every PET method is the backbone's dense product
for all rows plus a small op of its own. Here the small ops of all vPLMs of one shape class are one
gathered or grouped product, so a layer makes as many calls for 2 vPLMs as for 200.

Rows are sorted by shape class, then by vPLM: a class's rows lie together, and each vPLM's weights
are read once. Layers below the batch's lowest first PET layer depend on the text alone: equal texts
share them, and a text that one caller asks of many vPLMs shares them with later batches too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model.answers import Output
from smile.model.backbone import Backbone, LayerNorm, LayerOps
from smile.model.batch import CPU, DifferentTexts, MixedBatch
from smile.model.kernels import Kernels, kernels_for
from smile.model.known import KnownTexts
from smile.model.layout import Norm
from smile.model.packing import PackedTokens, pack
from smile.model.pet import METHODS
from smile.model.pet.method import LayerGroup
from smile.model.serving import ServingBackbone
from smile.model.specs import Projection


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
    def run(self, batch: MixedBatch) -> list[Output]:
        """One output per text, in the order the batch was given."""
        assert batch.backbone_digest == self.backbone.digest, "a batch of this backbone's modules"
        states = self._boundary_states(batch)
        ops = [self._ops(batch, layer) for layer in range(batch.boundary, self._layers)]
        states = self.serving.forward_layers(states, batch.packed, batch.boundary, ops)
        found: dict[int, Output] = {}
        for head in batch.heads:
            for row, output in head.answer(states, batch.packed, self.serving.kernels):
                found[batch.order[row]] = output
        assert found.keys() == set(range(len(batch.order))), "one output per text"
        return [found[place] for place in range(len(batch.order))]

    @property
    def _layers(self) -> int:
        return self.backbone.shape.layers

    def _boundary_states(self, batch: MixedBatch) -> Tensor:
        """States below the lowest first PET layer [tokens, H], equal texts computed once."""
        different, boundary = batch.different, batch.boundary
        found = (
            [self.known.states(text, boundary) for text in different.texts] if self.known else []
        )
        if any(states is not None for states in found):
            states = self._completed(different, found, boundary)
        else:
            states = self._below(different.packed, boundary)
        if different.repeated:
            parts = states.split(different.packed.lengths)
            for text, part in zip(different.texts, parts, strict=True):
                if id(text) in different.repeated:
                    self.known.keep(text, boundary, part)
        return states if different.tokens is None else states.index_select(0, different.tokens)

    def _completed(
        self, different: DifferentTexts, found: Sequence[Tensor | None], boundary: int
    ) -> Tensor:
        """The states that are known, and those of the other texts."""
        missing = [
            text.ids for text, states in zip(different.texts, found, strict=True) if states is None
        ]
        parts: Iterator[Tensor] = iter(())
        if missing:
            packed = pack(missing).to(different.packed.ids.device)
            parts = iter(self._below(packed, boundary).split(packed.lengths))
        return torch.cat([next(parts) if states is None else states for states in found])

    def _below(self, packed: PackedTokens, boundary: int) -> Tensor:
        """States below layer `boundary` [tokens, H]."""
        states = self.serving.embed(packed)
        return self.serving.forward_layers(states, packed, 0, [None] * boundary)

    def _ops(self, batch: MixedBatch, layer: int) -> LayerOps | None:
        parts = [
            METHODS[group.shape_class.kind].grouped(
                LayerGroup(
                    layer, group.shape_class, group.rows, group.members, self.serving.kernels
                )
            )
            for group in batch.groups
            if group.boundary <= layer
        ]
        return _MixedOps(tuple(parts)) if parts else None


@dataclass(frozen=True, slots=True)
class _MixedOps:
    """The ops of every shape class, each on its own rows."""

    parts: tuple[LayerOps, ...]

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
