"""How far two modules are apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from smile.errors import DataCorrupted
from smile.model import weights
from smile.model.difference import Difference, StoredModule, difference
from smile.model.initial import StoredArray, initial_tensors
from smile.model.specs import (
    BackboneShape,
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Task,
)
from smile.resources import TensorDiff

SHAPE = BackboneShape(
    layers=2, hidden=8, intermediate=16, heads=2, tokens_max=32, parameters=1000, bytes=4000
)


def spec(
    pet: PetSpec, labels: tuple[str, ...] = ("a", "b"), dtype: DType = DType.FLOAT32
) -> ModuleSpec:
    return ModuleSpec("toy", "ab" * 32, pet, HeadSpec(Task.SEQUENCE_CLASSIFICATION, labels), dtype)


PFEIFFER = spec(PetSpec(PetKind.PFEIFFER, first_layer=1, rank=2))


def stored(
    made: ModuleSpec, seed: int = 0, change: Callable[[dict[str, StoredArray]], None] | None = None
) -> StoredModule:
    tensors = initial_tensors(made, SHAPE, seed)
    if change is not None:
        change(tensors)
    return StoredModule(weights.encode(tensors, made), made, SHAPE)


def tensor(found: Difference, name: str) -> TensorDiff:
    (one,) = [each for each in found.tensors if each.name == name]
    return one


def test_a_module_does_not_differ_from_itself() -> None:
    found = difference(stored(PFEIFFER), stored(PFEIFFER))
    assert (found.l2, found.relative) == (0.0, 0.0)
    assert {each.l2 for each in found.tensors} == {0.0}
    assert len(found.tensors) == 6
    up = tensor(found, "layers.1.feedforward.adapter.up.weight")
    assert (up.relative, up.base_shape) == (None, (8, 2)), "zero, as it begins"


def test_each_tensor_is_measured_by_hand() -> None:
    def move(tensors: dict[str, StoredArray]) -> None:
        tensors["head.bias"] += np.array([3.0, -4.0], dtype=np.float32)
        tensors["head.weight"] *= 2

    base = stored(PFEIFFER)
    found = difference(base, stored(PFEIFFER, change=move))
    bias, weight = tensor(found, "head.bias"), tensor(found, "head.weight")
    assert (bias.l2, bias.max_abs, bias.relative) == (5.0, 4.0, None)
    before = initial_tensors(PFEIFFER, SHAPE, 0)["head.weight"].astype(np.float64)
    assert weight.l2 == pytest.approx(math.sqrt(float((before**2).sum())))
    assert weight.relative == pytest.approx(1.0)
    assert weight.max_abs == pytest.approx(float(np.abs(before).max()))
    assert found.l2 == pytest.approx(math.hypot(5.0, weight.l2))
    everything = [t.astype(np.float64) for t in initial_tensors(PFEIFFER, SHAPE, 0).values()]
    norm = math.sqrt(sum(float((t**2).sum()) for t in everything))
    assert found.relative == pytest.approx(found.l2 / norm)


def test_heads_of_other_labels_are_not_compared() -> None:
    wide = spec(PFEIFFER.pet, ("a", "b", "c"))
    found = difference(stored(PFEIFFER), stored(wide))
    head = tensor(found, "head.weight")
    assert (head.base_shape, head.other_shape, head.comparable) == ((2, 8), (3, 8), False)
    assert (head.l2, head.relative, found.l2) == (0.0, None, 0.0)


def test_a_tensor_that_one_has_not_is_told() -> None:
    none = spec(PetSpec(PetKind.NONE, first_layer=1))
    found = difference(stored(none), stored(PFEIFFER))
    down = tensor(found, "layers.1.feedforward.adapter.down.weight")
    assert (down.base_shape, down.other_shape) == ((), (2, 8))
    assert tensor(found, "head.weight").comparable


def test_precisions_may_differ() -> None:
    half = spec(PFEIFFER.pet, dtype=DType.FLOAT16)
    found = difference(stored(PFEIFFER), stored(half))
    assert 0 < found.l2 < 1e-3
    assert all(each.comparable for each in found.tensors)


def test_sparse_updates_are_compared_as_the_matrices_they_change() -> None:
    sparse = spec(PetSpec(PetKind.DIFF_PRUNING, first_layer=1, density=0.05))
    name = "layers.1.query.delta"

    def one(tensors: dict[str, StoredArray]) -> None:
        tensors[f"{name}.indices"][:] = np.arange(3)
        tensors[f"{name}.values"][:] = [1, 2, 2]

    def other(tensors: dict[str, StoredArray]) -> None:
        tensors[f"{name}.indices"][:] = np.arange(1, 4)
        tensors[f"{name}.values"][:] = [2, 2, 4]

    found = tensor(difference(stored(sparse, change=one), stored(sparse, change=other)), name)
    assert found.base_shape == (64,)
    assert found.l2 == pytest.approx(math.sqrt(1 + 16))
    assert found.max_abs == 4.0
    assert found.relative == pytest.approx(math.sqrt(17) / 3)


def test_masks_are_compared_entry_by_entry() -> None:
    masked = spec(PetSpec(PetKind.MASK_BERT, first_layer=1, density=0.05))
    name = "layers.1.query.mask"

    def one(tensors: dict[str, StoredArray]) -> None:
        tensors[f"{name}.bits"][0] = 0b11000000

    def other(tensors: dict[str, StoredArray]) -> None:
        tensors[f"{name}.bits"][0] = 0b01100000

    found = tensor(difference(stored(masked, change=one), stored(masked, change=other)), name)
    assert (found.base_shape, found.max_abs) == ((64,), 1.0)
    assert found.l2 == pytest.approx(math.sqrt(2))


def test_damaged_bytes_are_not_compared() -> None:
    whole = stored(PFEIFFER)
    torn = StoredModule(whole.data[:-1], whole.spec, whole.shape)
    with pytest.raises(DataCorrupted):
        difference(whole, torn)
