"""Diff-pruning: a sparse update of every projection (Guo, Rush and Kim 2021, arXiv 2012.07463).

x W + b becomes x (W + delta) + b + bias, as PetS serves it (Zhou et al., USENIX ATC 2022): delta is
sparse, and the bias terms are BitFit's, at the same places.

Guo et al. learn which entries change, with relaxed L0 gates over a dense update. Here the entries
are a fixed random choice, drawn from the seed with the initial weights, and training moves their
values alone. That keeps a module's shapes and cost fixed from its first day, and is weaker: Sung et
al. 2021 (arXiv 2111.09839) fix the entries too, choose them by Fisher information, and find random
ones behind.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from smile.model.backbone import BareOps, Layer, LayerOps
from smile.model.layout import Norm, delta_name
from smile.model.pet.bitfit import BitFit
from smile.model.pet.method import LayerGroup, Weights
from smile.model.pet.sparse import GroupedSparse, SparseUpdate
from smile.model.specs import PetSpec, Projection

BIASES = BitFit()


class DiffPruning:
    """The method."""

    def reference(self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer) -> LayerOps:
        biases = BIASES.reference(pet, layer, weights, frozen)
        return _BiasedOps(_ReferenceSparse(layer, weights), biases)

    def serving(
        self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer
    ) -> dict[str, Tensor]:
        served = BIASES.serving(pet, layer, weights, frozen)
        for projection, dense in frozen.projections.items():
            prefix = delta_name(layer, projection)
            outputs, inputs = dense.weight.shape
            update = SparseUpdate(
                weights[f"{prefix}.indices"], weights[f"{prefix}.values"], (outputs, inputs)
            )
            served |= update.served(pet, layer, projection)
        return served

    def grouped(self, group: LayerGroup) -> LayerOps:
        return _BiasedOps(GroupedSparse(group), BIASES.grouped(group))


@dataclass(frozen=True, slots=True)
class _BiasedOps(BareOps):
    sparse: LayerOps
    biases: LayerOps

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        return self.biases.project(name, x, self.sparse.project(name, x, y))

    def norm(self, name: Norm, y: Tensor) -> Tensor:
        return self.biases.norm(name, y)


@dataclass(frozen=True, slots=True)
class _ReferenceSparse(BareOps):
    layer: int
    weights: Weights

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        prefix = delta_name(self.layer, name)
        values = self.weights[f"{prefix}.values"]
        outputs, inputs = y.shape[1], x.shape[1]
        delta = values.new_zeros(outputs * inputs)
        delta = delta.scatter(0, self.weights[f"{prefix}.indices"], values)
        return y + functional.linear(x, delta.view(outputs, inputs))
