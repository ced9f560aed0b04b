"""The comparison of indexes asks every structure the same, and knows what each should find."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.index import STRUCTURES, Asked, Built, Keys, beside, compare, simulated, words_of
from smile.representations.keys import pack_keys

NAMES = ("bytes", "build_ns", "hit_ns", "miss_ns")


def test_simulated_keys_are_different_and_the_same_each_time() -> None:
    keys, others = simulated(3_000)
    again, _ = simulated(3_000)
    assert len(keys) == len(others) == 3_000
    assert len(np.unique(np.concatenate([keys, others]))) == 6_000
    assert (keys == again).all()
    assert not (np.diff(keys) > 0).all()


def test_words_tell_keys_apart() -> None:
    keys = pack_keys(np.array([1, 2]), np.array([3, 4]), np.array([5, 30_521]))
    assert words_of(keys) == ["\x01\x03\x05", f"\x02\x04{chr(30_521)}"]


@pytest.mark.parametrize("build", STRUCTURES.values(), ids=STRUCTURES)
def test_every_structure_finds_what_is_there(build: Callable[[Keys], Built]) -> None:
    keys, others = simulated(2_500)
    built = build(keys)
    mixed = np.concatenate([keys[:100], others[:50], keys[-1:]])
    assert built.ask(Asked.of(keys)) == 2_500
    assert built.ask(Asked.of(others)) == 0
    assert built.ask(Asked.of(mixed)) == 101
    assert built.nbytes > 2_500 and built.build_s > 0


def test_batches_hold_every_key_once() -> None:
    keys, _ = simulated(5_000)
    asked = Asked.of(keys)
    assert asked.count == 5_000 == sum(map(len, asked.words))
    assert [len(batch) for batch in asked.ints] == [2_048, 2_048, 904]


def test_measures_have_every_structure() -> None:
    steps: list[None] = []
    found = compare(3_000, 1, lambda: steps.append(None))
    assert tuple(found) == NAMES
    assert all(tuple(found[name]) == tuple(STRUCTURES) for name in NAMES)
    assert all(value > 0 for name in NAMES for value in found[name].values())
    assert len(steps) == 3 * len(STRUCTURES)
    assert found["bytes"]["sorted"] == 12.0
    assert all(value > 0 for value in beside(300_000, 1).values())
