"""Batches, splits and schedules: properties that hold for all inputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.data.corpus import cut, epoch_batches, split_rows, token_batches, token_labels
from services.trainer.training.schedule import learning_rate
from smile.model.tokenizer import Places, TokenizedText
from smile.resources import HyperParameters, Schedule

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 64), st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_an_epoch_takes_every_row_once(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, batch_size, seed=seed, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert len(batches) == -(-len(lengths) // batch_size)
    assert batches == epoch_batches(lengths, batch_size, seed=seed, epoch=epoch)


def test_batches_hold_rows_of_similar_length_and_change_with_the_epoch() -> None:
    lengths = [(7 * row) % 200 + 1 for row in range(640)]
    batches = epoch_batches(lengths, 16, seed=1, epoch=1)
    spread = [max(lengths[r] for r in b) - min(lengths[r] for r in b) for b in batches]
    assert sum(spread) / len(spread) < 30
    assert batches != epoch_batches(lengths, 16, seed=1, epoch=2)


@given(LENGTHS, st.integers(1, 1000))
def test_token_batches_hold_all_texts_within_the_limit(lengths: list[int], limit: int) -> None:
    batches = token_batches(lengths, limit)
    assert sorted(text for batch in batches for text in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or sum(lengths[text] for text in b) <= limit for b in batches)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.floats(0, 0.9), st.integers(0, 99))
def test_a_split_draws_from_every_class_and_leaves_it_a_row(
    classes: list[int], ratio: float, seed: int
) -> None:
    split = split_rows(classes, ratio, seed)
    assert sorted((*split.training, *split.validation)) == list(range(len(classes)))
    assert split == split_rows(classes, ratio, seed)
    drawn = Counter(classes[row] for row in split.validation)
    for label, count in Counter(classes).items():
        assert drawn[label] == min(round(ratio * count), count - 1)


@given(st.lists(st.integers(), max_size=50), st.integers(3, 60))
def test_cutting_keeps_the_first_and_the_last(values: list[int], limit: int) -> None:
    short = cut(values, limit)
    assert len(short) == min(len(values), limit)
    assert list(short) == (values if len(values) <= limit else [*values[: limit - 1], values[-1]])


def test_a_words_first_token_carries_its_label() -> None:
    words = [None, 0, 0, 1, 2, 2, None]
    places = Places([(0, 0)] * 7, [False] * 7, list(words))
    text = TokenizedText([0] * 7, lambda: places)
    assert token_labels(text, (5, 6, 7), 100) == (-100, 5, -100, 6, 7, -100, -100)
    assert token_labels(text, (5, 6, 7), 4) == (-100, 5, -100, -100)


@given(st.sampled_from(Schedule), st.floats(0, 1), st.integers(1, 500), st.floats(1e-6, 10))
def test_the_rate_rises_to_its_peak_and_falls(
    schedule: Schedule, warmup: float, steps: int, peak: float
) -> None:
    values = replace(HyperParameters(), schedule=schedule, warmup_ratio=warmup, learning_rate=peak)
    rates = [learning_rate(values, step, steps) for step in range(1, steps + 1)]
    top = max(round(warmup * steps) - 1, 0)
    assert all(0 < rate <= peak for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if schedule is Schedule.CONSTANT:
        assert set(rates[top + 1 :]) <= {peak}
