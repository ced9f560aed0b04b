"""Counts decay, stay within their memory, and tell nothing that few tenants asked."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smile.errors import InvalidArgument
from smile.model.kernels.build import Places, load
from smile.model.kernels.ngrams import CELLS, NUMPY, NativeNgrams, _homes, cells_of
from smile.model.kernels.tape import Library
from smile.representations.admission import MARGIN, exchange
from smile.representations.traffic import (
    CELL_BYTES,
    EXPONENT_MAX,
    GROUPS,
    CountRules,
    Counts,
    Weighed,
)

HANDLE = load(Places()).handle
FORMS = {"numpy": NUMPY} | ({} if HANDLE is None else {"native": NativeNgrams(Library(HANDLE))})
LINE_BYTES = CELLS * CELL_BYTES
HOUR = 3600.0

both = pytest.mark.parametrize("form", FORMS)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _counts(form: str, clock: Clock | None = None, **rules: float) -> Counts:
    stated = CountRules(**{"half_life_s": HOUR, **rules})  # type: ignore[arg-type]
    return Counts(stated, clock=clock or Clock(), kernels=FORMS[form])


def _keys(*keys: int) -> NDArray[np.int64]:
    return np.array(keys, np.int64)


@both
@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 60), max_size=80), max_size=5))
def test_counted_as_a_counter(form: str, batches: list[list[int]]) -> None:
    """Where there is room for all; nothing has decayed."""
    counts = _counts(form, memory_bytes_max=1 << 16)
    truth: Counter[int] = Counter()
    for batch in batches:
        counts.observe(_keys(*batch), "anybody")
        truth.update(batch)
    asked = _keys(*range(70))
    assert counts.of(asked).tolist() == [truth[key] for key in range(70)]


@both
def test_a_count_halves(form: str) -> None:
    clock = Clock()
    counts = _counts(form, clock)
    counts.observe(_keys(*[7] * 100), "a")
    clock.now += HOUR
    counts.observe(_keys(7, 8), "a")
    assert counts.of(_keys(7, 8, 9)).tolist() == [51.0, 1.0, 0.0]
    clock.now += 2 * HOUR
    assert counts.of(_keys(7, 8)).tolist() == [12.75, 0.25]


@both
def test_weights_never_run_over(form: str) -> None:
    clock = Clock()
    counts = _counts(form, clock)
    counts.observe(_keys(*[7] * 1000), "a")
    for _ in range(10):
        clock.now += EXPONENT_MAX * 0.7 * HOUR
        counts.observe(_keys(*[8] * 10), "a")
        assert counts.of(_keys(8))[0] == pytest.approx(10.0, rel=1e-5)
    assert counts.of(_keys(7))[0] == pytest.approx(0.0, abs=1e-30)
    clock.now += 10_000 * HOUR
    assert counts.of(_keys(8))[0] == pytest.approx(0.0, abs=1e-30)


@both
def test_the_frequent_ones_stay_when_memory_is_short(form: str) -> None:
    counts = _counts(form, memory_bytes_max=64 * LINE_BYTES, tenants_min=1)
    chance = np.random.default_rng(0)
    often = np.arange(30)
    for at in range(200):
        rare = chance.integers(1000, 1 << 60, 100)
        counts.observe(np.concatenate([often, rare]), "a")
        assert counts._lines.nbytes == 64 * LINE_BYTES
        del at
    assert counts.of(often).min() >= 190.0
    assert set(counts.frequent().keys.tolist()) == set(range(30))


@both
def test_a_full_line_gives_its_least_cell(form: str) -> None:
    counts = _counts(form, memory_bytes_max=2 * LINE_BYTES)
    candidates = np.arange(100, dtype=np.int64)
    line = candidates[_homes(candidates, 2) == 1][: CELLS + 1]
    for times, key in enumerate(line[:CELLS].tolist()):
        counts.observe(_keys(*[key] * (times + 2)), "a")
    counts.observe(line[CELLS:], "b")
    assert counts.of(line).tolist() == [0.0, 3.0, 4.0, 5.0, 1.0]
    _, _, tenants = cells_of(counts._lines)
    assert int(np.bitwise_count(tenants).max()) == 1  # nobody inherits who asked for another


@both
def test_few_tenants_are_not_told_of(form: str) -> None:
    counts = _counts(form, tenants_min=3, count_min=4.0)
    for number in range(40):  # many groups
        counts.observe(_keys(1), f"tenant-{number}")
    counts.observe(_keys(*[2] * 1000), "one")
    counts.observe(_keys(*[3] * 1000), "one")
    counts.observe(_keys(*[3] * 1000), "two")
    told = counts.frequent()
    assert told.keys.tolist() == [1] and told.counts.tolist() == [40.0]


@both
def test_rare_ones_are_not_told_of(form: str) -> None:
    clock = Clock()
    counts = _counts(form, clock, tenants_min=2, count_min=8.0)
    for number in range(32):
        counts.observe(_keys(1), f"tenant-{number}")
    assert counts.frequent().keys.tolist() == [1]
    clock.now += 3 * HOUR
    assert counts.frequent().keys.tolist() == []


@settings(max_examples=30, deadline=None)
@given(tenants=st.lists(st.text(max_size=5), min_size=1, max_size=12))
def test_tenants_are_never_counted_too_high(tenants: list[str]) -> None:
    counts = _counts("numpy", tenants_min=1, count_min=1.0)
    for tenant in tenants:
        counts.observe(_keys(5), tenant)
    _, _, bits = cells_of(counts._lines)
    assert 1 <= int(np.bitwise_count(bits).max()) <= len(set(tenants))


def test_groups_are_this_process_s_own() -> None:
    groups = [
        tuple(_counts("numpy")._group_of(f"tenant-{number}") for number in range(64))
        for _ in range(2)
    ]
    assert groups[0] != groups[1]
    assert {group for some in groups for group in some} <= set(range(GROUPS))


@both
def test_learning_is_switched_off(form: str) -> None:
    counts = _counts(form, tenants_min=1, count_min=1.0)
    counts.observe(_keys(1), "a")
    counts.switch(learning=False)
    counts.observe(_keys(1), "a")
    assert not counts.learning
    assert counts.of(_keys(1)).tolist() == [0.0] and len(counts.frequent()) == 0
    counts.switch(learning=True)
    counts.observe(_keys(1), "a")
    assert counts.of(_keys(1)).tolist() == [1.0]


@both
def test_many_threads_count(form: str) -> None:
    counts = _counts(form, tenants_min=1)
    keys = np.arange(500)

    def observe() -> None:
        for _ in range(20):
            counts.observe(keys, "a")

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counts.of(keys) == 80.0).all()


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"memory_bytes_max": 1}, "memory_bytes_max must be between 64 and"),
        ({"half_life_s": 0.0}, "half_life_s must be between 1 and"),
        ({"tenants_min": 0}, "tenants_min must be between 1 and 16, got 0"),
        ({"tenants_min": 17}, "tenants_min must be between 1 and 16, got 17"),
        ({"count_min": 0.5}, "count_min must be between 1 and"),
    ],
)
def test_rules_out_of_range(rules: dict[str, float], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        CountRules(**rules)  # type: ignore[arg-type]


def _weighed(first: int, *counts: float) -> Weighed:
    return Weighed(np.arange(first, first + len(counts)), np.array(counts, np.float32))


def test_admission_fills_room_then_swaps() -> None:
    resident, candidates = _weighed(0, 9.0, 1.0, 5.0), _weighed(10, 20.0, 8.0, 3.0, 2.0)
    plan = exchange(resident, candidates, room=1)
    assert plan.admit.tolist() == [10, 11] and plan.evict.tolist() == [1]
    plan = exchange(resident, candidates, room=0)
    assert plan.admit.tolist() == [10, 11] and plan.evict.tolist() == [1, 2]
    plan = exchange(resident, candidates, room=9)
    assert plan.admit.tolist() == [10, 11, 12, 13] and plan.evict.tolist() == []


@given(
    resident=st.lists(st.floats(0, 100), max_size=20),
    candidates=st.lists(st.floats(0, 100), max_size=20),
    room=st.integers(0, 5),
)
def test_admission_is_worth_it(resident: list[float], candidates: list[float], room: int) -> None:
    inside, asked = _weighed(0, *resident), _weighed(100, *sorted(candidates, reverse=True))
    plan = exchange(inside, asked, room)
    assert len(plan.admit) <= room + len(plan.evict)
    assert (plan.admit == asked.keys[: len(plan.admit)]).all()
    worth_in = asked.counts[min(room, len(plan.admit)) : len(plan.admit)]
    worth_out = inside.counts[plan.evict]
    assert (worth_in > worth_out * np.float32(MARGIN)).all()
    stays = np.delete(inside.counts, plan.evict)
    assert not len(stays) or not len(plan.evict) or stays.min() >= worth_out.max()
