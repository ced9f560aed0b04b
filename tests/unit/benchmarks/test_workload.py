from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness import workload


def test_sentences_are_whole_distinct_and_the_same_every_time() -> None:
    found = workload.sentences()
    assert len(found) > 3_000
    assert len(set(found)) == len(found)
    assert all(text[-1] in ".!?" for text in found)
    assert 15 < np.mean([len(text.split()) for text in found]) < 30
    workload.sentences.cache_clear()
    assert workload.sentences() == found


def test_texts_begin_again_where_the_corpus_ends() -> None:
    size = len(workload.sentences())
    assert workload.texts(2, start=size - 1) == (
        workload.sentences()[-1],
        workload.sentences()[0],
    )


def test_uniform_reaches_every_member_about_equally() -> None:
    counts = np.bincount(workload.uniform(100_000, 10, seed=1), minlength=10)
    assert counts.min() > 9_000


def test_zipf_follows_the_law_and_hides_the_order() -> None:
    picks = workload.zipf(200_000, 100, seed=3)
    counts = np.sort(np.bincount(picks, minlength=100))[::-1]
    expected = 200_000 / np.arange(1, 101) / (1 / np.arange(1, 101)).sum()
    assert counts[:10] == pytest.approx(expected[:10], rel=0.1)
    assert np.argmax(np.bincount(workload.zipf(10_000, 100, seed=3))) != 0


def test_poisson_has_the_rate_and_exponential_gaps() -> None:
    times = workload.poisson(200.0, 100.0, seed=5)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_bursts_keep_the_mean_rate_and_are_as_high_as_said() -> None:
    burst = workload.Burst(period_s=2.0, on_s=0.4, factor=4.0)
    times = workload.bursts(100.0, 200.0, burst, seed=6)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    on = int((times % 2.0 < 0.4).sum())
    assert (on / 0.4) / ((len(times) - on) / 1.6) == pytest.approx(4.0, rel=0.1)


def test_a_burst_longer_than_its_period_is_refused() -> None:
    with pytest.raises(ValueError, match="period"):
        workload.Burst(period_s=1.0, on_s=1.0)


def test_everyone_asks_once_a_period() -> None:
    times, who = workload.once_a_period(50, 60.0, 180.0, seed=7)
    assert len(times) == 150
    assert (np.diff(times) >= 0).all()
    for period in range(3):
        inside = (times >= 60 * period) & (times < 60 * (period + 1))
        assert sorted(who[inside]) == list(range(50))


def test_a_cut_period_keeps_its_share() -> None:
    times, _ = workload.once_a_period(1_000, 60.0, 30.0, seed=8)
    assert times.max() < 30.0
    assert len(times) == pytest.approx(500, rel=0.15)
