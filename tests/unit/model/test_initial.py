"""New modules: identity where they must be, random elsewhere, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from smile.model.initial import initial_tensors
from smile.model.layout import tensors
from smile.model.specs import (
    BackboneShape,
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Projection,
    Task,
)

SHAPE = BackboneShape(
    layers=3, hidden=64, intermediate=96, heads=2, tokens_max=16, parameters=1, bytes=4
)
HEAD = HeadSpec(Task.TOKEN_CLASSIFICATION, tuple("abcdefgh"))
PETS = [
    PetSpec(PetKind.NONE, 0),
    PetSpec(PetKind.PFEIFFER, 1, rank=16),
    PetSpec(PetKind.HOULSBY, 1, rank=16),
    PetSpec(PetKind.LORA, 0, 16, 16.0, tuple(Projection)),
    PetSpec(PetKind.BITFIT, 1),
]


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("pet", PETS, ids=lambda pet: str(pet.kind))
def test_tensors_are_the_layouts(pet: PetSpec, dtype: DType) -> None:
    spec = ModuleSpec("toy", "0" * 64, pet, HEAD, dtype)
    made = initial_tensors(spec, SHAPE, seed=5)
    assert list(made) == list(tensors(spec, SHAPE))
    for name, tensor in tensors(spec, SHAPE).items():
        assert made[name].shape == tensor.shape
        assert made[name].dtype == np.dtype(str(dtype))
        assert np.isfinite(made[name]).all()


@pytest.mark.parametrize("pet", PETS, ids=lambda pet: str(pet.kind))
def test_whatever_would_change_an_answer_is_zero(pet: PetSpec) -> None:
    made = initial_tensors(ModuleSpec("toy", "0" * 64, pet, HEAD), SHAPE, seed=5)
    for name, array in made.items():
        random = name.endswith((".down.weight", ".lora.a")) or name == "head.weight"
        assert bool(array.any()) == random, name


def test_spread_is_kaimings_for_inputs_and_small_for_heads() -> None:
    spec = ModuleSpec("toy", "0" * 64, PETS[3], HEAD, DType.FLOAT32)
    made = initial_tensors(spec, SHAPE, seed=5)
    for name, inputs in (("query", 64), ("output", 96)):
        array = made[f"layers.0.{name}.lora.a"]
        assert np.abs(array).max() <= inputs**-0.5
        assert array.std() == pytest.approx((3 * inputs) ** -0.5, rel=0.1)
    assert made["head.weight"].std() == pytest.approx(0.02, rel=0.1)


def test_a_seed_decides_the_values_and_each_tensor_has_its_own() -> None:
    spec = ModuleSpec("toy", "0" * 64, PETS[1], HEAD)
    first, again, other = (initial_tensors(spec, SHAPE, seed) for seed in (1, 1, 2))
    one, two = (f"layers.{layer}.feedforward.adapter.down.weight" for layer in (1, 2))
    assert np.array_equal(first[one], again[one])
    assert not np.array_equal(first[one], other[one])
    assert not np.array_equal(first[one], first[two])


def test_a_tensor_does_not_depend_on_the_others() -> None:
    pfeiffer = initial_tensors(ModuleSpec("toy", "0" * 64, PETS[1], HEAD), SHAPE, 1)
    houlsby = initial_tensors(ModuleSpec("toy", "0" * 64, PETS[2], HEAD), SHAPE, 1)
    assert all(np.array_equal(houlsby[name], array) for name, array in pfeiffer.items())
