"""BitFit: bias terms only (Ben Zaken et al. 2022, arXiv 2106.10199).

Stored as deltas: x W + b becomes x W + b + delta, and each layer norm's bias likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from smile.model.backbone import BareOps, Layer, LayerOps
from smile.model.layout import Norm, bias_name
from smile.model.pet.method import LayerGroup, Weights
from smile.model.specs import PetSpec, Projection


class BitFit:
    """The method."""

    def reference(self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer) -> LayerOps:
        return _ReferenceOps(layer, weights)

    def serving(
        self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer
    ) -> dict[str, Tensor]:
        names = [bias_name(layer, place) for place in (*Projection, *Norm)]
        return {name: weights[name] for name in names}

    def grouped(self, group: LayerGroup) -> LayerOps:
        return _GroupedOps(group)


@dataclass(frozen=True, slots=True)
class _ReferenceOps(BareOps):
    layer: int
    weights: Weights

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        return y + self.weights[bias_name(self.layer, name)]

    def norm(self, name: Norm, y: Tensor) -> Tensor:
        return y + self.weights[bias_name(self.layer, name)]


@dataclass(frozen=True, slots=True)
class _GroupedOps(BareOps):
    group: LayerGroup

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        return self._shifted(name, y)

    def norm(self, name: Norm, y: Tensor) -> Tensor:
        return self._shifted(name, y)

    def _shifted(self, place: Projection | Norm, y: Tensor) -> Tensor:
        group = self.group
        name = bias_name(group.layer, place)
        group.kernels.grouped.add_vectors(group.part(y), group.members, name)
        return y
