from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest

from benchmarks.harness.latency import closed_loop, open_loop, percentile
from smile.errors import Overloaded

BLOCKED_S = 0.3


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = np.arange(1.0, 101.0)
    assert [percentile(values, share) for share in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert math.isnan(percentile(np.array([]), 99))


def test_a_slow_answer_delays_nobody_else() -> None:
    async def send(number: int) -> None:
        await asyncio.sleep(BLOCKED_S if number == 0 else 0.0)

    found = asyncio.run(open_loop(np.arange(0, 0.2, 0.01), send))
    assert found.at(100) >= BLOCKED_S * 1e3
    assert found.at(90) < 100


def test_a_stalled_generator_is_counted_as_latency_and_as_lag() -> None:
    async def send(number: int) -> None:
        if number == 0:
            time.sleep(BLOCKED_S)  # noqa: ASYNC251 -- the stall itself

    found = asyncio.run(open_loop(np.array([0.0, 0.01, 0.02]), send))
    assert sorted(found.latency_ms)[0] > (BLOCKED_S - 0.05) * 1e3
    assert max(found.lag_ms) > (BLOCKED_S - 0.05) * 1e3


def test_refusals_are_counted_and_are_no_latencies() -> None:
    async def send(number: int) -> None:
        if number % 2:
            raise Overloaded("full")

    found = asyncio.run(open_loop(np.linspace(0, 0.01, 10), send))
    assert len(found.latency_ms) == 5
    assert sum(found.errors.values()) == 5


def test_any_other_fault_ends_the_run() -> None:
    async def send(number: int) -> None:
        raise RuntimeError("a bug of the benchmark")

    with pytest.raises(ExceptionGroup):
        asyncio.run(open_loop(np.array([0.0]), send))


def test_a_closed_loop_keeps_its_callers_busy() -> None:
    async def send(number: int) -> None:
        await asyncio.sleep(0.01)

    found = asyncio.run(closed_loop(8, 0.3, send))
    assert 8 * 15 < found.answered <= 8 * 31
    assert 8 * 50 < found.per_s <= 8 * 100


def test_parts_follow_one_another_and_leave_nothing_out() -> None:
    async def send(_: int) -> None:
        await asyncio.sleep(0)

    found = asyncio.run(open_loop(np.arange(0, 0.1, 0.01), send))
    parts = found.parts(3)
    assert [len(part.latency_ms) for part in parts] == [4, 3, 3]
    assert np.concatenate([part.latency_ms for part in parts]).tolist() == found.latency_ms.tolist()
    assert sum(part.seconds for part in parts) == pytest.approx(found.seconds)
