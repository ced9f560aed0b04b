"""Load on a service and the latencies it answers with.

Open loop: requests are sent at times fixed beforehand, and a latency counts from the *scheduled*
time. A slow answer thus cannot delay the requests behind it, nor can a late generator hide a wait
("coordinated omission": G. Tene, "How NOT to measure latency", 2015). Closed loop: a number of
callers, each asking again when answered; for saturation, not for latencies.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.json_types import Json
from benchmarks.harness.workload import Times
from smile.errors import SmileError

HEAD_START_S = 0.05
LAG_MS_MAX = 20.0

Send = Callable[[int], Awaitable[None]]


def percentile(values: NDArray[np.float64], share: float) -> float:
    """The smallest value that at least `share` (0 to 100) of the values do not exceed; NaN of none.

    No interpolation: it is a value that was measured, as with an HdrHistogram.
    """
    if not len(values):
        return math.nan
    return float(np.percentile(values, share, method="inverted_cdf"))


@dataclass(frozen=True, slots=True)
class Latencies:
    """What became of requests sent on a schedule; times in milliseconds.

    Attributes:
        latency_ms: Of each answered request, from its scheduled time.
        lag_ms: Of each request, how much later than scheduled it was sent.
        errors: Requests without an answer, by reason.
        seconds: From the first scheduled time to the last answer.
    """

    latency_ms: NDArray[np.float64]
    lag_ms: NDArray[np.float64]
    errors: Counter[str]
    seconds: float

    def at(self, share: float) -> float:
        return percentile(self.latency_ms, share)

    @property
    def answered_per_s(self) -> float:
        return len(self.latency_ms) / self.seconds

    def parts(self, count: int) -> list[Latencies]:
        """So many parts of like length, one after the other, by the order of the answers."""
        return [
            Latencies(latency_ms, self.lag_ms, self.errors, self.seconds / count)
            for latency_ms in np.array_split(self.latency_ms, count)
        ]

    def as_json(self) -> Json:
        return {
            "answered": len(self.latency_ms),
            "errors": dict(self.errors),
            "p50_ms": self.at(50),
            "p95_ms": self.at(95),
            "p99_ms": self.at(99),
            "p999_ms": self.at(99.9),
            "max_ms": self.at(100),
            "generator_lag_p99_ms": percentile(self.lag_ms, 99),
            "generator_late": percentile(self.lag_ms, 99) > LAG_MS_MAX,
        }


@dataclass(slots=True)
class _Collected:
    latency_ms: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


async def open_loop(schedule: Times, send: Send) -> Latencies:
    """Send request `i` at `schedule[i]` seconds from now, whatever became of those before it.

    A request that fails with one of `smile.errors` is counted by its reason; anything else ends the
    run.
    """
    collected = _Collected()
    start = time.perf_counter() + HEAD_START_S

    async def ask(number: int, scheduled: float) -> None:
        collected.lag_ms.append((time.perf_counter() - scheduled) * 1e3)
        try:
            await send(number)
        except SmileError as error:
            collected.errors[error.reason] += 1
        else:
            collected.latency_ms.append((time.perf_counter() - scheduled) * 1e3)

    async with asyncio.TaskGroup() as group:
        for number, offset in enumerate(schedule):
            scheduled = start + float(offset)
            wait = scheduled - time.perf_counter()
            if wait > 0 or number % 64 == 0:  # one that is late still lets answers in
                await asyncio.sleep(max(wait, 0.0))
            group.create_task(ask(number, scheduled))
    return Latencies(
        np.array(collected.latency_ms),
        np.array(collected.lag_ms),
        collected.errors,
        time.perf_counter() - start,
    )


@dataclass(frozen=True, slots=True)
class Saturation:
    """What a number of callers without pauses were answered."""

    answered: int
    seconds: float
    errors: Counter[str]

    @property
    def per_s(self) -> float:
        return self.answered / self.seconds


async def closed_loop(callers: int, duration_s: float, send: Send) -> Saturation:
    """Let `callers` ask one request after the other for `duration_s`; those under way then are
    waited for, and count with the time they took.
    """
    answered, number = 0, 0
    errors: Counter[str] = Counter()
    start = time.perf_counter()
    end = start + duration_s

    async def call() -> None:
        nonlocal answered, number
        while time.perf_counter() < end:
            mine, number = number, number + 1
            try:
                await send(mine)
            except SmileError as error:
                errors[error.reason] += 1
                await asyncio.sleep(error.retry_after or 0.0)
            else:
                answered += 1

    await asyncio.gather(*(call() for _ in range(callers)))
    return Saturation(answered, time.perf_counter() - start, errors)
