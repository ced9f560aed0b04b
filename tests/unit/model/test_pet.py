"""The registry of PET methods, and what keeps zero padding exact."""

from __future__ import annotations

import pytest
import torch

from smile.model.grouped import Segments
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
    assert method.activation(torch.zeros(3)).eq(0).all()


def test_modules_of_near_ranks_share_a_shape_class() -> None:
    assert ShapeClass.of(PetSpec(PetKind.PFEIFFER, 0, 17)) == ShapeClass.of(
        PetSpec(PetKind.PFEIFFER, 3, 24)
    )
    assert ShapeClass.of(PetSpec(PetKind.PFEIFFER, 0, 8)) != ShapeClass.of(
        PetSpec(PetKind.HOULSBY, 0, 8)
    )


def test_the_order_of_lora_targets_and_its_scale_do_not_split_a_shape_class() -> None:
    q, v = Projection.QUERY, Projection.VALUE
    assert ShapeClass.of(PetSpec(PetKind.LORA, 0, 8, 8.0, (q, v))) == ShapeClass.of(
        PetSpec(PetKind.LORA, 1, 5, 32.0, (v, q))
    )


def test_segments_give_each_row_its_member() -> None:
    members = [{"v": torch.full((8,), float(i)), "m": torch.eye(8) * i} for i in range(3)]
    segments = Segments.of(members, [2, 0, 3], torch.device("cpu"))
    assert segments.vectors("v")[:, 0].tolist() == [0, 0, 2, 2, 2]
    assert segments.product(torch.ones(5, 8), "m")[:, 0].tolist() == [0, 0, 2, 2, 2]
    assert segments.first(1, 2).vectors("v").shape == (2, 8)
