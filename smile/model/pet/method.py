"""What a PET method must say about itself to be trained and to be served.

A method is one object with three answers: its ops in one layer of one vPLM (the definition, with
autograd), its weights in serving form, and its ops in one layer for all vPLMs of one shape class
in a batch (gathered and grouped products over the same rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from smile.model.backbone import LayerOps
from smile.model.grouped import Segments, Weights, padded_width
from smile.model.specs import PetKind, PetSpec, Projection


@dataclass(frozen=True, slots=True)
class ShapeClass:
    """What modules must share for one product to serve them all: kind, padded rank, targets."""

    kind: PetKind
    width: int
    targets: frozenset[Projection]

    @classmethod
    def of(cls, pet: PetSpec) -> ShapeClass:
        return cls(pet.kind, padded_width(pet.rank) if pet.rank else 0, frozenset(pet.targets))


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """The rows of one shape class in one layer of a batch.

    Attributes:
        layer: Index of the layer.
        shape_class: What the members share.
        rows: Where the rows lie in the batch.
        segments: Whose rows they are.
    """

    layer: int
    shape_class: ShapeClass
    rows: slice
    segments: Segments


class PetMethod(Protocol):
    """One PET kind's mathematics."""

    def reference(self, pet: PetSpec, layer: int, weights: Weights) -> LayerOps:
        """The method's definition: one vPLM, one layer, differentiable in `weights`."""
        ...

    def serving(self, pet: PetSpec, layer: int, weights: Weights) -> dict[str, Tensor]:
        """The layer's weights as `grouped` reads them: matrices [inputs, outputs], zero-padded to
        the shape class's width, scales multiplied in."""
        ...

    def grouped(self, group: LayerGroup) -> LayerOps:
        """The same mathematics for every row of a group; rows outside it stay untouched.

        Hooks change `y` in place: they run in inference mode only.
        """
        ...
