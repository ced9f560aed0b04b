"""MaskBert: frozen weights, a few of which count as zero (Zhao et al. 2020, arXiv 2004.12406).

x W + b becomes x (W o M) + b for a binary M, computed as x W + b - x (W o not M), as PetS serves it
(Zhou et al., USENIX ATC 2022): what is masked is a sparse matrix, at most `density` of the entries.

A mask is trained through real scores (`masking.py`) with a straight-through gradient, as the paper
does: d loss / d score is taken to be d loss / d M.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from smile.model.backbone import BareOps, Layer, LayerOps
from smile.model.layout import chosen_count, mask_name
from smile.model.masking import masked_of
from smile.model.pet.method import LayerGroup, Weights
from smile.model.pet.sparse import GroupedSparse, SparseUpdate
from smile.model.specs import PetSpec, Projection


class MaskBert:
    """The method. `reference` reads scores [entries], `serving` reads masked entries as bools."""

    def reference(self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer) -> LayerOps:
        return _ReferenceOps(pet, layer, weights, frozen)

    def serving(
        self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer
    ) -> dict[str, Tensor]:
        served: dict[str, Tensor] = {}
        for projection, dense in frozen.projections.items():
            masked = weights[mask_name(layer, projection)].numpy()
            entries = torch.from_numpy(np.flatnonzero(masked))  # torch's own takes twice as long
            values = -dense.weight.detach().cpu().float().flatten().index_select(0, entries)
            outputs, inputs = dense.weight.shape
            update = SparseUpdate(entries, values, (outputs, inputs))
            served |= update.served(pet, layer, projection)
        return served

    def grouped(self, group: LayerGroup) -> LayerOps:
        return GroupedSparse(group)


@dataclass(frozen=True, slots=True)
class _ReferenceOps(BareOps):
    pet: PetSpec
    layer: int
    weights: Weights
    frozen: Layer

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        weight = self.frozen.projections[name].weight  # [outputs, inputs]
        scores = self.weights[mask_name(self.layer, name)]  # [outputs * inputs]
        masked = masked_of(scores.detach(), chosen_count(self.pet, weight.numel()))
        straight = masked.to(scores.dtype) - (scores - scores.detach())  # masked, with a gradient
        return y - functional.linear(x, weight * straight.view_as(weight))
