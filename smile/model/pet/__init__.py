"""The PET methods: one file each, registered here. `none` has no layer, so it needs no method."""

from __future__ import annotations

from collections.abc import Mapping

from smile.model.kernels.activation import Activation
from smile.model.pet.bitfit import BitFit
from smile.model.pet.bottleneck import Bottleneck
from smile.model.pet.diff_pruning import DiffPruning
from smile.model.pet.lora import Lora
from smile.model.pet.mask import MaskBert
from smile.model.pet.method import PetMethod, ShapeClass
from smile.model.specs import PetKind, Projection

METHODS: Mapping[PetKind, PetMethod] = {
    PetKind.PFEIFFER: Bottleneck(PetKind.PFEIFFER, Activation.RELU, normed_input=True),
    PetKind.HOULSBY: Bottleneck(PetKind.HOULSBY, Activation.SILU, normed_input=False),
    PetKind.LORA: Lora(),
    PetKind.BITFIT: BitFit(),
    PetKind.DIFF_PRUNING: DiffPruning(),
    PetKind.MASK_BERT: MaskBert(),
}


def acts_on_intermediate(shape_class: ShapeClass) -> bool:
    """Whether a class has an op between the intermediate product and its activation."""
    if shape_class.kind is PetKind.LORA:
        return Projection.INTERMEDIATE in shape_class.targets
    return shape_class.kind in (PetKind.BITFIT, PetKind.DIFF_PRUNING, PetKind.MASK_BERT)
