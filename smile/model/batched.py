"""Inference over one batch of many vPLMs: one shared dense product, task ops per shape class.

The form is PetS's (Zhou et al., USENIX ATC 2022): every PET method is the backbone's dense product
for all rows plus a small op of its own. Here the small ops of all vPLMs of one shape class are one
gathered or grouped product, so a layer makes as many calls for 2 vPLMs as for 200.

Rows are sorted by shape class, then by vPLM: a class's rows lie together, and each vPLM's weights
are read once. Layers below the batch's lowest first PET layer depend on the text alone: equal texts
share them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model.answers import Output
from smile.model.backbone import Backbone, LayerNorm, LayerOps
from smile.model.batch import CPU, MixedBatch
from smile.model.kernels import Kernels, kernels_for
from smile.model.layout import Norm
from smile.model.pet import METHODS
from smile.model.pet.method import LayerGroup
from smile.model.serving import ServingBackbone
from smile.model.specs import Projection


@dataclass(frozen=True, slots=True)
class BatchedEngine:
    """Runs mixed batches over one backbone. Holds no state of its own: threads may share it."""

    backbone: Backbone
    serving: ServingBackbone

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
        return cls(backbone, ServingBackbone.of(backbone, kernels, device, dtype))

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
        packed = batch.packed if batch.shared is None else batch.shared.packed
        states = self.serving.embed(packed)
        states = self.serving.forward_layers(states, packed, 0, [None] * batch.boundary)
        return states if batch.shared is None else states.index_select(0, batch.shared.tokens)

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
