"""Counters: what goes in comes out, in `GetStats` as for Prometheus."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.stats import CANCELLED, OK, Counters, Histogram, TenantClass
from smile.errors import NotFound, Overloaded
from smile.resources import Timings

TIMINGS = Timings(0.004, 0.0, 0.002, 0.02, batch_texts=1, batch_vplms=1)


def test_classes_of_tenants_are_few() -> None:
    weights = (None, 0.5, 1.0, 3.9, 4.0, 16.0)
    assert [TenantClass.of(weight) for weight in weights] == [
        *(TenantClass.UNRENTED, TenantClass.LIGHT, TenantClass.STANDARD, TenantClass.STANDARD),
        *(TenantClass.HEAVY, TenantClass.HEAVY),
    ]


def test_how_requests_end() -> None:
    counters = Counters()
    counters.answered(TenantClass.HEAVY, TIMINGS)
    counters.refused(Overloaded("full"))
    counters.refused(NotFound("none", reason="ALIAS_NOT_FOUND"))
    counters.refused(ValueError("ours"))
    counters.refused(asyncio.CancelledError())
    assert counters.outcomes == {
        OK: 1, "QUEUE_FULL": 1, "ALIAS_NOT_FOUND": 1, "INTERNAL": 1, CANCELLED: 1,
    }  # fmt: skip
    assert counters.latency[TenantClass.HEAVY].count == 1
    assert counters.latency[TenantClass.UNRENTED].count == 0
    assert (counters.queue.total, counters.load_wait.count) == (0.004, 0)


@given(st.lists(st.floats(0, 200), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_the_bound_above_it(values: list[float], share: float) -> None:
    histogram = Histogram([1.0, 10.0, 100.0])
    for value in values:
        histogram.add(value)
    assert histogram.count == len(values)
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    found = histogram.quantile(share)
    below = sum(value <= found for value in values)
    assert found == 100.0 or below >= share * len(values) - 1e-9


def test_nothing_counted_is_zero() -> None:
    histogram = Histogram([1.0])
    assert (histogram.count, histogram.mean, histogram.quantile(0.99)) == (0, 0.0, 0.0)


def test_lag() -> None:
    counters = Counters()
    for late in (0.001, 0.2, 0.003):
        counters.late(late)
    assert (counters.lag.count, counters.lag_s_max) == (3, 0.2)
