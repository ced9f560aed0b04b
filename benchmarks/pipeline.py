"""Pipelined against sequential execution of the same code, on vPLMs nobody has asked before.

Two processors on one storage differ in one setting. In turns each answers one request for every
member of a set of vPLMs that it has not seen: each module has to be found, fetched, checked and
loaded before its texts can be computed. A repetition takes a set of its own, the same for both.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median

from benchmarks.density import fleet_of
from benchmarks.harness import workload
from benchmarks.harness.command import Run, script
from benchmarks.harness.fleet import Callers, Fleet, Member, Plan
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.platforms import ROOMY, Platform, ProcessorProcess, platform_of
from benchmarks.harness.repeat import interleaved_async, paired_ratio

MODES = ("pipelined", "sequential")
SIZES = (4, 1, 8)  # texts of a request; the first is the headline
CALLERS = 32
WARM_UP = 20


def measure(run: Run) -> Figures:
    """The keys of the claim."""
    with platform_of(run) as platform, ExitStack() as stack:
        processors = {
            mode: stack.enter_context(
                platform.another_processor(mode, {**ROOMY, "SMILE_PROCESSOR_EXECUTION": mode})
            )
            for mode in MODES
        }
        return asyncio.run(_measure(run, platform, processors))


async def _measure(
    run: Run, platform: Platform, processors: dict[str, ProcessorProcess]
) -> Figures:
    repetitions, per_set = run.choose(5, 3), run.choose(200, 40)
    wanted = WARM_UP + per_set * repetitions * len(SIZES)
    fleet = await _fleet(run, platform, wanted)
    sets = _sets(fleet.members, per_set)
    rates: dict[int, dict[str, list[float]]] = {}
    async with AllCallers(fleet, processors) as callers:
        for mode in MODES:
            await _rate(callers[mode], fleet.members[:WARM_UP], 1)
        with run.steps("both in turns", 2 * repetitions * len(SIZES)) as done:
            for size in SIZES:
                chosen = [next(sets) for _ in range(repetitions)]
                rates[size] = await interleaved_async(
                    {mode: partial(_turn, callers[mode], chosen, size) for mode in MODES},
                    repetitions,
                    done,
                )
    return _figures(rates, per_set)


async def _fleet(run: Run, platform: Platform, vplms: int) -> Fleet:
    fleet, _ = await fleet_of(run, platform, Plan(vplms=vplms, tenants=max(1, vplms // 10)))
    return fleet


def _sets(members: Sequence[Member], per_set: int) -> Iterator[Sequence[Member]]:
    """Sets that have no member in common; those that warmed up are in none."""
    for start in itertools.count(WARM_UP, per_set):
        yield members[start : start + per_set]


async def _turn(
    callers: Callers, sets: Sequence[Sequence[Member]], size: int, repetition: int
) -> float:
    return await _rate(callers, sets[repetition], size)


async def _rate(callers: Callers, members: Sequence[Member], size: int) -> float:
    """Requests a second when every member is asked once, `CALLERS` at a time."""
    texts = workload.texts(len(members) * size)
    limit = asyncio.Semaphore(CALLERS)

    async def ask(number: int) -> None:
        async with limit:
            await callers.ask(members[number], texts[number * size : (number + 1) * size])

    for tenant in {member.tenant for member in members}:  # connecting is nobody's load
        await callers.client(tenant).stats()
    started = time.perf_counter()
    await asyncio.gather(*(ask(number) for number in range(len(members))))
    return len(members) / (time.perf_counter() - started)


class AllCallers:
    """Callers of every processor, closed together."""

    def __init__(self, fleet: Fleet, processors: dict[str, ProcessorProcess]) -> None:
        self._callers = {mode: Callers(fleet, there) for mode, there in processors.items()}

    async def __aenter__(self) -> dict[str, Callers]:
        return self._callers

    async def __aexit__(self, *_: object) -> None:
        for callers in self._callers.values():
            await callers.close()


def _figures(rates: dict[int, dict[str, list[float]]], per_set: int) -> Figures:
    speedups = {
        size: paired_ratio(found["pipelined"], found["sequential"]) for size, found in rates.items()
    }
    extra: dict[str, Json] = {}
    for size, found in rates.items():
        extra[f"speedup_{size}_texts"] = speedups[size]
        for mode in MODES:
            extra[f"{mode}_requests_per_s_{size}_texts"] = median(found[mode])
    return {
        "speedup": speedups[SIZES[0]],
        **extra,
        "vplms_per_set": per_set,
        "callers": CALLERS,
        "rates": {str(size): dict(found) for size, found in rates.items()},
    }


if __name__ == "__main__":
    script("pipeline", measure)
