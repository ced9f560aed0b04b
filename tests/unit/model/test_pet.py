"""The registry of PET methods, and what keeps zero padding exact."""

from __future__ import annotations

import pytest
import torch

from smile.model.kernels.dense import ACTIVATIONS
from smile.model.pet import METHODS
from smile.model.pet.bottleneck import Bottleneck
from smile.model.pet.method import ShapeClass
from smile.model.specs import PetKind, PetSpec, Projection


def test_every_kind_with_layers_has_a_method() -> None:
    assert METHODS.keys() == set(PetKind) - {PetKind.NONE}


@pytest.mark.parametrize("kind", [PetKind.PFEIFFER, PetKind.HOULSBY])
def test_activations_keep_padding_zero(kind: PetKind) -> None:
    method = METHODS[kind]
    assert isinstance(method, Bottleneck)
    assert ACTIVATIONS[method.activation](torch.zeros(3)).eq(0).all()


def test_modules_of_near_ranks_share_a_shape_class() -> None:
    assert ShapeClass.of(PetSpec(PetKind.PFEIFFER, 0, 17)) == ShapeClass.of(
        PetSpec(PetKind.PFEIFFER, 0, 24)
    )
    assert ShapeClass.of(PetSpec(PetKind.PFEIFFER, 0, 8)) != ShapeClass.of(
        PetSpec(PetKind.HOULSBY, 0, 8)
    )
    assert ShapeClass.of(PetSpec(PetKind.PFEIFFER, 0, 8)) != ShapeClass.of(
        PetSpec(PetKind.PFEIFFER, 1, 8)
    )


def test_the_order_of_lora_targets_and_its_scale_do_not_split_a_shape_class() -> None:
    q, v = Projection.QUERY, Projection.VALUE
    assert ShapeClass.of(PetSpec(PetKind.LORA, 0, 8, 8.0, (q, v))) == ShapeClass.of(
        PetSpec(PetKind.LORA, 0, 5, 32.0, (v, q))
    )
