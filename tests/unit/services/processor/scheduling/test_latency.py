"""Predictions: monotone, never below what was measured, and following the machine."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.requests import Track
from services.processor.scheduling.latency import (
    FACTOR_MAX,
    FACTOR_MIN,
    RATIO_MAX,
    SMOOTHING,
    Curve,
    Latencies,
    LatencyModel,
    LatencyTables,
    Line,
    Tally,
)
from smile.errors import DataCorrupted
from smile.model.specs import PetKind
from smile.resources import Exactness

ALPHA = Curve((32, 64, 256), (0.004, 0.006, 0.020))
BETA = Curve((32, 256), (0.001, 0.003))
TABLES = LatencyTables(ALPHA, 0.0001, {PetKind.LORA: BETA})

POINTS = st.dictionaries(st.integers(1, 5_000), st.floats(0, 10), min_size=1, max_size=12)
PIECES = st.lists(
    st.tuples(st.integers(1, 300), st.integers(1, 8), st.sampled_from(list(PetKind))), max_size=20
)


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [(0, 0.0), (1, 0.004), (32, 0.004), (48, 0.005), (64, 0.006), (256, 0.02), (512, 0.04)],
)
def test_a_curve_rounds_up_where_it_was_not_measured(tokens: int, seconds: float) -> None:
    assert ALPHA.at(tokens) == pytest.approx(seconds)


@given(points=POINTS, tokens=st.lists(st.integers(0, 20_000), min_size=2, max_size=20))
def test_curves_never_fall_and_never_lie_below_a_measured_point(
    points: dict[int, float], tokens: list[int]
) -> None:
    curve = Curve.measured(points)
    found = [curve.at(count) for count in sorted(tokens)]
    assert all(low <= high + 1e-9 for low, high in pairwise(found))
    assert all(curve.at(count) >= seconds - 1e-9 for count, seconds in points.items())


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [((), ()), ((1, 1), (0.1, 0.1)), ((1, 2), (0.2, 0.1)), ((0,), (0.1,)), ((1,), (float("nan"),))],
)
def test_a_curve_refuses_what_is_none(tokens: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Curve(tokens, seconds)


@given(pieces=PIECES)
def test_a_tally_tells_the_whole_batch_whatever_the_order(
    pieces: list[tuple[int, int, PetKind]],
) -> None:
    tally = Tally(LatencyModel(TABLES))
    for tokens, texts, kind in pieces:
        foretold = tally.seconds_with(tokens, texts, kind)
        before = tally.seconds
        tally.add(tokens, texts, kind)
        assert tally.seconds == pytest.approx(foretold)
        assert foretold >= before
    lora = sum(tokens for tokens, _, kind in pieces if kind is PetKind.LORA)
    tokens, texts = sum(piece[0] for piece in pieces), sum(piece[1] for piece in pieces)
    expected = ALPHA.at(tokens) + 0.0001 * texts + BETA.at(lora)
    assert tally.seconds == pytest.approx(expected)


@given(
    tokens=st.integers(1, 10_000), texts=st.integers(1, 100), kind=st.sampled_from(list(PetKind))
)
def test_bulk_work_never_takes_longer_than_one_batch_of_it(
    tokens: int, texts: int, kind: PetKind
) -> None:
    model = LatencyModel(TABLES)
    assert model.bulk_s(tokens, texts) <= model.seconds(tokens, texts, kind) + 1e-12


@pytest.mark.parametrize("truth", [0.01, 0.4, 1.0, 3.0])
def test_the_factor_follows_the_machine(truth: float) -> None:
    model = LatencyModel(TABLES)
    table_s = model.seconds(100, 4)
    for _ in range(300):
        model.observe(table_s, truth * table_s, 0.0)
    assert model.seconds(100, 4) == pytest.approx(truth * table_s, rel=0.01)
    assert model.line.factor == pytest.approx(truth, rel=0.01)
    assert model.line.overhead_s == pytest.approx(0.0, abs=1e-9)


@given(
    overhead_s=st.floats(0.0, 0.05),
    factor=st.floats(0.5, 3.0),
    sizes=st.lists(st.floats(0.002, 0.1), min_size=4, max_size=8, unique=True),
)
def test_an_overhead_of_every_batch_is_told_from_a_slow_machine(
    overhead_s: float, factor: float, sizes: list[float]
) -> None:
    line = Line()
    for _ in range(100):
        for table_s in sizes:
            line.add(table_s, overhead_s + factor * table_s)
    for table_s in sizes:
        assert line.at(table_s) == pytest.approx(overhead_s + factor * table_s, rel=0.25)
    assert 0.0 <= line.overhead_s <= 1.1 * overhead_s + 1e-9


def test_small_batches_that_take_long_make_batches_larger_and_not_smaller() -> None:
    """Ten milliseconds to start any batch: with a factor alone, each would look slow."""
    model = LatencyModel(LatencyTables(Curve((16, 32, 64, 128), (0.002, 0.004, 0.008, 0.016))))
    assert model.efficient_s == pytest.approx(0.002)
    for table_s in [0.002, 0.004, 0.002, 0.008, 0.002, 0.004] * 50:
        model.observe(table_s, 0.010 + table_s, 0.0)
    assert model.line.factor == pytest.approx(1.0, rel=0.3)
    assert model.efficient_s > 0.016


def test_one_wild_batch_moves_predictions_little() -> None:
    model = LatencyModel(TABLES)
    before_s = model.seconds(100, 4)
    model.observe(before_s, 100.0, 0.0)
    assert model.seconds(100, 4) == pytest.approx(before_s * (1 + SMOOTHING * (RATIO_MAX - 1)))


@given(st.lists(st.tuples(st.floats(-1, 1e6), st.floats(-1, 1e6)), max_size=200))
def test_the_line_is_bounded_whatever_is_observed(batches: list[tuple[float, float]]) -> None:
    model = LatencyModel(TABLES)
    for table_s, observed_s in batches:
        model.observe(table_s, observed_s, 0.0)
        assert FACTOR_MIN <= model.line.factor <= FACTOR_MAX
        assert 0.0 <= model.line.overhead_s < float("inf")


def test_a_model_that_refuses_everything_is_doubted() -> None:
    model = LatencyModel(TABLES)
    model.observe(0.01, 0.01, now=10.0)
    for number in range(100):
        model.doubt(10.0 + number / 100)
    assert model.line.factor == 1.0  # batches are being computed: what they say counts
    model.doubt(12.0)
    assert model.line.factor < 1.0
    for _ in range(100):
        model.doubt(13.0)
    assert model.line.factor == FACTOR_MIN


def test_the_least_over_tracks_and_nothing_where_nothing_is_known() -> None:
    latencies = Latencies()
    assert (latencies.bulk_s(1_000, 10), latencies.of(Track("toy"))) == (0.0, None)
    slow, fast = LatencyModel(LatencyTables(Curve((1,), (0.01,)))), LatencyModel(TABLES)
    latencies.learn(Track("slow"), slow)
    latencies.learn(Track("slow", Exactness.MATERIALIZED), fast)
    assert latencies.bulk_s(1_000, 10) == fast.bulk_s(1_000, 10)
    latencies.observe(Track("slow"), 0.01, 0.02, 0.0)
    latencies.observe(Track("slow"), None, 9.0, 0.0)
    latencies.observe(Track("unknown"), 0.01, 0.02, 0.0)
    assert (slow.line.factor > 1.0, fast.line.factor) == (True, 1.0)


def test_tables_survive_a_file() -> None:
    assert LatencyTables.from_json(json.loads(json.dumps(TABLES.to_json()))) == TABLES


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"alpha": {"tokens": [1], "seconds": [1]}, "text_s": 0},
        {"alpha": {"tokens": [1], "seconds": ["x"]}, "text_s": 0, "betas": {}},
        {"alpha": {"tokens": [2, 1], "seconds": [1, 1]}, "text_s": 0, "betas": {}},
        {"alpha": {"tokens": [1], "seconds": [1]}, "text_s": -1, "betas": {}},
        {"alpha": {"tokens": [1], "seconds": [1]}, "text_s": 0, "betas": {"unheard-of": {}}},
        {"alpha": 3, "text_s": 0, "betas": []},
    ],
)
def test_damaged_tables_are_told(data: object) -> None:
    with pytest.raises(DataCorrupted):
        LatencyTables.from_json(data)
