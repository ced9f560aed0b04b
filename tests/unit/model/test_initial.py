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
    PetSpec(PetKind.DIFF_PRUNING, 1, density=0.02),
    PetSpec(PetKind.MASK_BERT, 1, density=0.05),
]


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("pet", PETS, ids=lambda pet: str(pet.kind))
def test_tensors_are_the_layouts(pet: PetSpec, dtype: DType) -> None:
    spec = ModuleSpec("toy", "0" * 64, pet, HEAD, dtype)
    made = initial_tensors(spec, SHAPE, seed=5)
    assert list(made) == list(tensors(spec, SHAPE))
    for name, tensor in tensors(spec, SHAPE).items():
        assert made[name].shape == tensor.shape
        assert made[name].dtype == np.dtype(str(tensor.dtype))
        assert np.isfinite(made[name]).all()


@pytest.mark.parametrize("pet", PETS, ids=lambda pet: str(pet.kind))
def test_whatever_would_change_an_answer_is_zero(pet: PetSpec) -> None:
    made = initial_tensors(ModuleSpec("toy", "0" * 64, pet, HEAD), SHAPE, seed=5)
    for name, array in made.items():
        random = name.endswith((".down.weight", ".lora.a", ".indices")) or name == "head.weight"
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


def test_diff_pruning_chooses_entries_evenly_and_anew_in_every_matrix() -> None:
    spec = ModuleSpec("toy", "0" * 64, PetSpec(PetKind.DIFF_PRUNING, 0, density=0.05), HEAD)
    found = [initial_tensors(spec, SHAPE, seed) for seed in range(40)]
    names = [name for name in found[0] if name.endswith(".indices")]
    assert len(names) == 3 * 6
    for name in names:
        entries = tensors(spec, SHAPE)[name].entries
        for made in found:
            assert (np.diff(made[name]) > 0).all()
            assert made[name][0] >= 0 and made[name][-1] < entries
        places = np.concatenate([made[name] for made in found]) / entries
        assert places.mean() == pytest.approx(0.5, abs=0.02)  # of 8,000 draws: six deviations
        assert places.std() == pytest.approx(12**-0.5, abs=0.02)
    assert len({found[0][name].tobytes() for name in names}) == len(names)
    assert len({made[names[0]].tobytes() for made in found}) == len(found)


def test_a_tensor_does_not_depend_on_the_others() -> None:
    pfeiffer = initial_tensors(ModuleSpec("toy", "0" * 64, PETS[1], HEAD), SHAPE, 1)
    houlsby = initial_tensors(ModuleSpec("toy", "0" * 64, PETS[2], HEAD), SHAPE, 1)
    assert all(np.array_equal(houlsby[name], array) for name, array in pfeiffer.items())
