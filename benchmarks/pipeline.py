"""Pipelined against sequential execution of the same code, on vPLMs nobody has asked before.

Two processors on one storage differ in one setting. In turns each answers one request for every
member of a set of vPLMs that it has not seen: each module has to be found, fetched, checked and
loaded before its texts can be computed. A repetition takes a set of its own, the same for both.

Storage lies on the same machine and answers at once, which no object store does. So for the
headline both processors reach it through a relay that holds back its answers by `STORE_MS`, less
than S3 takes to the first byte; the same two without the relay stand beside (`speedup_near`), and
the same two asked for materialised answers (`speedup_materialized`).

Sequential execution computes each micro-batch on all cores, pipelined execution a batch on each:
both have the same cores to compute with, and neither gives one away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.density import fleet_of
from benchmarks.harness import workload
from benchmarks.harness.command import Run, script
from benchmarks.harness.fleet import Callers, Fleet, Member, Plan
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.platforms import ROOMY, Platform, ProcessorProcess, platform_of
from benchmarks.harness.relay import relayed
from benchmarks.harness.repeat import interleaved_async, paired_ratio
from benchmarks.harness.standin import stood_in
from smile.resources import Exactness

MODES = ("pipelined", "sequential")
STORE_MS = 15.0
NEAR, FAR = "near", "far"
CALLERS = 32
WARM_UP = 20
TURN_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is compared: how far storage is, texts of a request, and how they are answered."""

    store: str
    texts: int
    exactness: Exactness = Exactness.EXACT

    @property
    def name(self) -> str:
        exact = self.exactness is Exactness.EXACT
        return f"{self.store}_{self.texts}" + ("" if exact else f"_{self.exactness}")


HEADLINE = Case(FAR, 4)
LOOKED_UP = Case(FAR, 4, Exactness.MATERIALIZED)
CASES = (HEADLINE, Case(FAR, 1), Case(NEAR, 4), LOOKED_UP)
SETS = max(sum(case.store == store for case in CASES) for store in (NEAR, FAR))

Processors = Mapping[tuple[str, str], ProcessorProcess]  # by store and mode
Key = tuple[str, str, Exactness]


def measure(run: Run) -> Figures:
    """The keys of the claim."""
    with platform_of(run) as platform, ExitStack() as stack:
        far = stack.enter_context(relayed(platform.state.addresses["storage"], STORE_MS / 1e3))
        stores = {NEAR: {}, FAR: {"SMILE_STORAGE_ADDRESS": far}}
        looked_up = stack.enter_context(stood_in())
        processors = {
            (store, mode): stack.enter_context(
                platform.another_processor(
                    f"{mode}-{store}",
                    {**ROOMY, **looked_up, **settings, "SMILE_PROCESSOR_EXECUTION": mode},
                )
            )
            for store, settings in stores.items()
            for mode in MODES
        }
        return asyncio.run(_measure(run, platform, processors))


async def _measure(run: Run, platform: Platform, processors: Processors) -> Figures:
    repetitions, per_set = run.choose(5, 3), run.choose(160, 80)
    fleet = await _fleet(run, platform, WARM_UP + per_set * repetitions * SETS)
    rates: dict[str, dict[str, list[float]]] = {}
    taken = {NEAR: WARM_UP, FAR: WARM_UP}
    turns = 2 * repetitions * len(CASES)
    async with AllCallers(fleet, processors) as callers:
        for (_, _, exactness), there in callers.items():
            if any(case.exactness is exactness for case in CASES):
                await _rate(there, fleet.members[:WARM_UP], 1)
        async with run.phase("both in turns", turns, TURN_S_MAX * turns) as done:
            for case in CASES:
                start = taken[case.store]
                taken[case.store] += per_set * repetitions
                sets = _sets(fleet.members[start : taken[case.store]], per_set)
                rates[case.name] = await interleaved_async(
                    {
                        mode: partial(
                            _turn, callers[case.store, mode, case.exactness], sets, case.texts
                        )
                        for mode in MODES
                    },
                    repetitions,
                    done,
                )
    return _figures(rates, per_set)


async def _fleet(run: Run, platform: Platform, vplms: int) -> Fleet:
    fleet, _ = await fleet_of(run, platform, Plan(vplms=vplms, tenants=max(1, vplms // 10)))
    return fleet


def _sets(members: Sequence[Member], per_set: int) -> list[Sequence[Member]]:
    """Sets that have no member in common."""
    return [members[start : start + per_set] for start in range(0, len(members), per_set)]


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

    def __init__(self, fleet: Fleet, processors: Processors) -> None:
        self._callers: dict[Key, Callers] = {
            (*key, exactness): Callers(fleet, there, exactness)
            for key, there in processors.items()
            for exactness in Exactness
        }

    async def __aenter__(self) -> dict[Key, Callers]:
        return self._callers

    async def __aexit__(self, *_: object) -> None:
        for callers in self._callers.values():
            await callers.close()


def _figures(rates: dict[str, dict[str, list[float]]], per_set: int) -> Figures:
    speedups = {
        case.name: paired_ratio(rates[case.name]["pipelined"], rates[case.name]["sequential"])
        for case in CASES
    }
    medians: dict[str, Json] = {
        f"{mode}_requests_per_s_{case.name}": median(rates[case.name][mode])
        for case in CASES
        for mode in MODES
    }
    return {
        "speedup": speedups[HEADLINE.name],
        "speedup_one_text": speedups[Case(FAR, 1).name],
        "speedup_near": speedups[Case(NEAR, 4).name],
        "speedup_materialized": speedups[LOOKED_UP.name],
        "store_ms": STORE_MS,
        **medians,
        "vplms_per_set": per_set,
        "callers": CALLERS,
        "rates": {name: dict(found) for name, found in rates.items()},
    }


if __name__ == "__main__":
    script("pipeline", measure)
