"""What client, gRPC and service cost: requests a second through all of them against the engine.

The same texts for 64 vPLMs that are in memory, within the same limits of a batch. Through the
service: as many callers as keep it busy, the client in a process of its own, all on one machine.
The engine: called in this process on texts, so tokenising is part of both.

Both answer as they do from half a minute after the platform's start on. Before, the change feed
covers nothing yet, and the processor asks storage where an alias points every two seconds
(docs/adr/0011); how that goes is told beside it (`texts_per_s_starting`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import psutil

from benchmarks.harness import workload
from benchmarks.harness.command import Run, script
from benchmarks.harness.engine import Asked, EngineDriver, mixed_pets
from benchmarks.harness.fleet import Callers, Fleet, Plan, create_fleet, warm
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.latency import closed_loop
from benchmarks.harness.platforms import ProcessorProcess, platform_of
from benchmarks.harness.repeat import interleaved_async, paired_ratio
from services.processor.options import Precision

VPLMS = 64
TENANTS = 8
TEXTS = 2_048
CALLERS = 128
SIZES = (1, 8)  # texts of a request; the first is the headline
ENGINE = "engine"
ENGINE_BATCH_TEXTS = 32  # about what the service computes at a time, so many callers waiting
ENGINE_TEXTS = 256  # in one go
STARTING_S = 40.0  # after these, the change feed covers what is remembered


class Through:
    """Requests of a size through the service."""

    def __init__(self, processor: ProcessorProcess, callers: Callers, fleet: Fleet) -> None:
        self._processor = processor
        self._callers = callers
        self._members = fleet.members
        self._texts = workload.texts(TEXTS)

    async def rate(self, size: int, duration_s: float, _: int) -> dict[str, float]:
        """Texts a second, and the processor time of either side for a request."""
        client = psutil.Process()

        async def send(number: int) -> None:
            first = number * size % TEXTS
            member = self._members[number % len(self._members)]
            await self._callers.ask(member, self._texts[first : first + size])

        before = self._processor.cpu_s, sum(client.cpu_times()[:2])
        found = await closed_loop(max(1, CALLERS // size), duration_s, send)
        after = self._processor.cpu_s, sum(client.cpu_times()[:2])
        return {
            "texts_per_s": found.per_s * size,
            "service_cpu_ms": (after[0] - before[0]) / found.answered * 1e3,
            "client_cpu_ms": (after[1] - before[1]) / found.answered * 1e3,
        }


def measure(run: Run) -> Figures:
    """The keys of the claim."""
    run = Run(quick=run.quick, console=run.console)  # its tenants are none of the fleet's
    with platform_of(run) as platform:

        async def inside() -> Figures:
            plan = Plan(vplms=VPLMS, tenants=TENANTS)
            with run.steps("creating vPLMs", plan.vplms) as done:
                fleet, _ = await create_fleet(platform, plan, done)
            async with Callers(fleet, platform.processor) as callers:
                await warm(callers, fleet.members, 4, lambda: None)
                through = Through(platform.processor, callers, fleet)
                with run.steps("the platform's first seconds", 1):
                    starting = await through.rate(SIZES[0], STARTING_S, 0)
                found = await _compare(run, through)
                return {**_figures(found), "texts_per_s_starting": starting["texts_per_s"]}

        return asyncio.run(inside())


async def _compare(run: Run, through: Through) -> dict[str, list[dict[str, float]]]:
    driver = EngineDriver(Precision.FLOAT32)
    driver.load(mixed_pets(VPLMS))
    duration_s = float(run.choose(4, 3))
    repetitions = run.choose(5, 3)
    answer = _engine(driver, duration_s)

    async def engine(_: int) -> dict[str, float]:
        return {"texts_per_s": await asyncio.to_thread(answer)}

    with run.steps("service and engine in turns", repetitions * (1 + len(SIZES))) as done:
        return await interleaved_async(
            {
                ENGINE: engine,
                **{str(size): partial(through.rate, size, duration_s) for size in SIZES},
            },
            repetitions,
            done,
        )


def _engine(driver: EngineDriver, duration_s: float) -> Callable[[], float]:
    """Texts a second of tokenising, preparing and computing in one process."""
    texts = workload.texts(TEXTS)

    def answer(first: int) -> int:
        """A few batches for each stream, of the texts from `first`; gives how many texts."""
        some = texts[first : first + ENGINE_TEXTS]
        asked = [
            Asked((first + place) % VPLMS, text) for place, text in enumerate(driver.tokenize(some))
        ]
        driver.answer(driver.form(asked, texts_max=ENGINE_BATCH_TEXTS))
        return len(some)

    def run() -> float:
        answered, first = 0, 0
        started = time.perf_counter()
        while time.perf_counter() - started < duration_s:
            count = answer(first)
            answered += count
            first = first + count if first + count < TEXTS else 0
        return answered / (time.perf_counter() - started)

    answer(0)
    return run


def _figures(found: dict[str, list[dict[str, float]]]) -> Figures:
    rates = {name: [one["texts_per_s"] for one in ran] for name, ran in found.items()}
    headline, *others = (str(size) for size in SIZES)
    extra: dict[str, Json] = {}
    for size in (headline, *others):
        ran = found[size]
        extra |= {
            f"texts_per_s_{size}": median(rates[size]),
            f"service_cpu_ms_{size}": _median(ran, "service_cpu_ms"),
            f"client_cpu_ms_{size}": _median(ran, "client_cpu_ms"),
        }
    return {
        "efficiency": paired_ratio(rates[headline], rates[ENGINE]),
        **{f"efficiency_{size}": paired_ratio(rates[size], rates[ENGINE]) for size in others},
        "engine_texts_per_s": median(rates[ENGINE]),
        "callers": CALLERS,
        **extra,
        "rates": dict(rates),
    }


def _median(ran: Sequence[dict[str, float]], key: str) -> float:
    return median(one[key] for one in ran)


if __name__ == "__main__":
    script("rpc", measure)
