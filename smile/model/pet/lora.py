"""LoRA: low-rank updates of chosen projections (Hu et al. 2022, arXiv 2106.09685).

x W + b becomes x W + b + (x A^T) B^T * alpha / rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from smile.model.backbone import BareOps, Layer, LayerOps
from smile.model.kernels.grouped import padded_width, zero_padded
from smile.model.layout import lora_name
from smile.model.pet.method import LayerGroup, Weights
from smile.model.specs import PetSpec, Projection


class Lora:
    """The method. Serving multiplies alpha / rank into B."""

    def reference(self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer) -> LayerOps:
        return _ReferenceOps(pet, layer, weights)

    def serving(
        self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer
    ) -> dict[str, Tensor]:
        width = padded_width(pet.rank)
        served: dict[str, Tensor] = {}
        for target in sorted(pet.targets):  # one layout for a shape class, whatever their order
            name = lora_name(layer, target)
            a, b = weights[f"{name}.a"], weights[f"{name}.b"] * (pet.alpha / pet.rank)
            served[f"{name}.a"] = zero_padded(a.T, a.shape[1], width)
            served[f"{name}.b"] = zero_padded(b.T, width, b.shape[0])
        return served

    def grouped(self, group: LayerGroup) -> LayerOps:
        return _GroupedOps(group)


@dataclass(frozen=True, slots=True)
class _ReferenceOps(BareOps):
    pet: PetSpec
    layer: int
    weights: Weights

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        if name not in self.pet.targets:
            return y
        prefix = lora_name(self.layer, name)
        narrow = functional.linear(x, self.weights[f"{prefix}.a"])  # [tokens, rank]
        update = functional.linear(narrow, self.weights[f"{prefix}.b"])
        return y + update * (self.pet.alpha / self.pet.rank)


@dataclass(frozen=True, slots=True)
class _GroupedOps(BareOps):
    group: LayerGroup

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        if name not in self.group.shape_class.targets:
            return y
        group = self.group
        prefix = lora_name(group.layer, name)
        group.kernels.grouped.add_low_rank(
            group.part(x), group.part(y), group.members, f"{prefix}.a", f"{prefix}.b"
        )
        return y
