"""The comparison of strategies: each text once, PetS's programs optimal, figures repeatable."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.forming import (
    CONTENDERS,
    LIMITS,
    Batches,
    Device,
    Outcome,
    Strategy,
    Text,
    compare,
    pets,
)
from services.processor.scheduling.latency import Curve, LatencyModel, LatencyTables
from smile.model.specs import PetKind

TABLES = LatencyTables(
    Curve((16, 256, 1_024, 2_048), (0.004, 0.030, 0.087, 0.173)),
    2e-5,
    {PetKind.PFEIFFER: Curve((32, 256), (0.0002, 0.0006))},
)
DEVICES = [Device(LatencyModel(TABLES), padded) for padded in (False, True)]
QUEUES = st.lists(st.builds(Text, st.integers(0, 30), st.integers(1, 120)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=50)
@given(queue=QUEUES)
@pytest.mark.parametrize("name", CONTENDERS)
def test_every_text_is_in_one_batch(name: str, queue: list[Text]) -> None:
    strategy, padded = CONTENDERS[name]
    batches = strategy(queue, Device(LatencyModel(TABLES), padded))
    assert sorted(map(repr, itertools.chain(*batches))) == sorted(map(repr, queue))
    assert all(batches)


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 120), min_size=1, max_size=9))
@pytest.mark.parametrize("device", DEVICES, ids=["packed", "padded"])
def test_the_programs_find_the_best_cut_there_is(device: Device, lengths: list[int]) -> None:
    """Over all ways to cut texts of as many tasks, in order of length, into batches."""
    queue = [Text(10 * number, length) for number, length in enumerate(lengths)]
    order = sorted(queue, key=lambda text: text.tokens)
    places = range(1, len(order))
    every = (
        _cut(order, cuts)
        for count in range(len(order))
        for cuts in itertools.combinations(places, count)
    )
    allowed = [cut for cut in every if all(_fits(batch, device) for batch in cut)]
    best = min(_shared_s(cut, device) for cut in allowed)
    assert _shared_s(pets(queue, device), device) == pytest.approx(best)


def _cut(order: list[Text], cuts: tuple[int, ...]) -> Batches:
    ends = (0, *cuts, len(order))
    return [order[start:stop] for start, stop in itertools.pairwise(ends)]


def _shared_s(batches: Batches, device: Device) -> float:
    return sum(
        device.alpha_s(len(batch), sum(t.tokens for t in batch), max(t.tokens for t in batch))
        for batch in batches
    )


def _fits(batch: list[Text], device: Device) -> bool:
    own = sum(device.beta_s(text.kind, text.tokens) for text in batch)
    tokens = sum(text.tokens for text in batch)
    longest = max(text.tokens for text in batch)
    seconds = device.alpha_s(len(batch), tokens, longest) + own
    return len(batch) == 1 or (tokens <= LIMITS.tokens_max and seconds <= LIMITS.seconds_max)


def test_ends_are_the_ends_of_batches() -> None:
    queue = [Text(0, 16), Text(0, 16), Text(0, 16)]
    one_by_one: Strategy = lambda queue, _: [[text] for text in queue]  # noqa: E731
    outcome = Outcome.of(one_by_one, queue, DEVICES[0])
    step = DEVICES[0].seconds(queue[:1])
    assert outcome.ends_s == pytest.approx((step, 2 * step, 3 * step))


def test_figures_repeat_and_padding_costs() -> None:
    queue = [Text(number * 7 % 50, 8 + number * 13 % 90) for number in range(128)]
    first, second = (compare({"some": [queue]}, LatencyModel(TABLES)) for _ in range(2))
    timed = [key for key in first if key.endswith("decide_us")]
    kept = [key for key in first if key not in (*timed, "queues")]
    assert [first[key] for key in kept] == [second[key] for key in kept]
    assert float(str(first["padded_fixed_texts_per_s"])) < float(str(first["fixed_texts_per_s"]))
    assert float(str(first["padded_pets_gain"])) > 1
