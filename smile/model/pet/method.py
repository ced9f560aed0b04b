"""What a PET method must say about itself to be trained and to be served.

A method is one object with three answers: its ops in one layer of one vPLM (the definition, with
autograd), its weights in serving form, and its ops in one layer for all vPLMs of one shape class
in a batch (gathered and grouped products over the same rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from smile.model.backbone import Layer, LayerOps
from smile.model.kernels import Kernels
from smile.model.kernels.grouped import padded_width
from smile.model.kernels.rows import Members
from smile.model.layout import served_permille
from smile.model.specs import PetKind, PetSpec, Projection

Weights: TypeAlias = Mapping[str, Tensor]  # by the layout's names


@dataclass(frozen=True, slots=True)
class ShapeClass:
    """What modules must share for one product to serve them all, and to lie in like rows.

    `width` is the padded rank, or a sparse kind's padded density in thousandths.
    """

    kind: PetKind
    first_layer: int | None
    width: int
    targets: frozenset[Projection]

    @classmethod
    def of(cls, pet: PetSpec) -> ShapeClass:
        width = padded_width(pet.rank) if pet.rank else served_permille(pet)
        return cls(pet.kind, pet.first_layer, width, frozenset(pet.targets))


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """The rows of one shape class in one layer of a batch.

    Attributes:
        layer: Index of the layer.
        shape_class: What the members share.
        rows: Where the rows lie in the batch.
        members: Whose rows they are.
        kernels: What computes.
    """

    layer: int
    shape_class: ShapeClass
    rows: slice
    members: Members
    kernels: Kernels

    def part(self, x: Tensor) -> Tensor:
        """The group's rows of a matrix of the whole batch."""
        return self.kernels.room.part(x, self.rows)


class PetMethod(Protocol):
    """One PET kind's mathematics."""

    def reference(self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer) -> LayerOps:
        """The method's definition: one vPLM, one layer, differentiable in `weights`.

        `frozen` is the backbone's layer.
        """
        ...

    def serving(
        self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer
    ) -> dict[str, Tensor]:
        """The layer's weights as `grouped` reads them: matrices [inputs, outputs], zero-padded to
        the shape class's width, scales multiplied in; float32 or int32. `frozen` is the
        backbone's layer."""
        ...

    def grouped(self, group: LayerGroup) -> LayerOps:
        """The same mathematics for every row of a group; rows outside it stay untouched.

        Hooks change `y` in place: they run in inference mode only.
        """
        ...
