"""The registry of PET methods, and what keeps zero padding exact."""

from __future__ import annotations

import pytest
import torch

from smile.model.kernels.dense import ACTIVATIONS
from smile.model.pet import METHODS
from smile.model.pet.bottleneck import Bottleneck
from smile.model.pet.method import ShapeClass
from smile.model.pet.sparse import SparseUpdate
from smile.model.specs import SERVED, PetKind, PetSpec, Projection


def test_every_kind_with_layers_has_a_method() -> None:
    assert METHODS.keys() == set(SERVED) - {PetKind.NONE}


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


def test_sparse_modules_of_near_densities_share_a_shape_class() -> None:
    one, near, far = (
        ShapeClass.of(PetSpec(PetKind.DIFF_PRUNING, 0, density=density))
        for density in (0.005, 0.004, 0.006)
    )
    assert one == near != far
    assert one != ShapeClass.of(PetSpec(PetKind.MASK_BERT, 0, density=0.005))


def test_a_sparse_update_is_served_by_output_and_padded_with_nothing() -> None:
    entries = torch.tensor([0, 6, 10, 299])  # of 30 outputs and 10 inputs
    update = SparseUpdate(entries, torch.tensor([1.0, 2.0, 3.0, 4.0]), (30, 10))
    pet = PetSpec(PetKind.DIFF_PRUNING, 0, density=0.018)  # 5 of 300, padded to 2 %
    served = update.served(pet, 3, Projection.VALUE)
    places = [(0, 0), (0, 6), (1, 0), (29, 9)]  # output, input
    expected = [inputs << 16 | outputs for outputs, inputs in places]
    indices = served["layers.3.value.sparse.indices"]
    assert indices.dtype is torch.int32 and indices.tolist() == [*expected, 0, 0]
    assert served["layers.3.value.sparse.values"].tolist() == [1, 2, 3, 4, 0, 0]


def test_the_order_of_lora_targets_and_its_scale_do_not_split_a_shape_class() -> None:
    q, v = Projection.QUERY, Projection.VALUE
    assert ShapeClass.of(PetSpec(PetKind.LORA, 0, 8, 8.0, (q, v))) == ShapeClass.of(
        PetSpec(PetKind.LORA, 0, 5, 32.0, (v, q))
    )
