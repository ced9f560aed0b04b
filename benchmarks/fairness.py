"""One tenant floods the processor at ten times its capacity; what do the others notice?

Twenty tenants together ask a quarter of the capacity, one text at a time on a Poisson schedule:
alone, and while one more tenant sends ten times the capacity, 32 texts at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.harness import workload
from benchmarks.harness.command import Run, script
from benchmarks.harness.fleet import Callers, Fleet, Plan, asking, create_fleet, warm
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.latency import Latencies, closed_loop, open_loop
from benchmarks.harness.platforms import ROOMY, Platform, platform_of
from benchmarks.harness.repeat import interleaved_async, paired_ratio
from smile.errors import Internal

OTHERS = 20
FLOOD_FACTOR = 10.0
FLOOD_TEXTS = 32
FLOOD_CALLERS = 8
OTHERS_SHARE = 0.25
SETTLE_S = 3.0
DRAIN_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Who is there and how much they ask. The last member of the fleet is the one who floods."""

    platform: Platform
    fleet: Fleet
    callers: Callers
    duration_s: float
    capacity_texts_per_s: float

    @property
    def others_per_s(self) -> float:
        return OTHERS_SHARE * self.capacity_texts_per_s

    async def alone(self, repetition: int) -> tuple[Latencies, Json]:
        """The others by themselves."""
        schedule = workload.poisson(self.others_per_s, self.duration_s, seed=repetition)
        picks = workload.uniform(len(schedule), OTHERS, seed=1_000 + repetition)
        send = asking(
            self.callers, self.fleet.members, [int(p) for p in picks], workload.texts(4_000)
        )
        return await open_loop(schedule, send), None

    async def flooded(self, repetition: int) -> tuple[Latencies, Json]:
        """The others while one floods, and what became of the flood; comes back when it is over."""
        seconds = self.duration_s + 2 * SETTLE_S
        per_s = FLOOD_FACTOR * self.capacity_texts_per_s / FLOOD_TEXTS
        member = self.fleet.members[-1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.harness.flood"),
            *(member.vplm, f"{per_s:.3f}", str(FLOOD_TEXTS), str(seconds)),
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "SMILE_API_KEY": self.fleet.keys[member.tenant],
                "SMILE_ENDPOINTS": self.platform.state.endpoints,
            },
        )
        await self._until_flooded()
        found, _ = await self.alone(repetition)
        out, _ = await process.communicate()
        if process.returncode:
            raise Internal(f"the flooding client ended with {process.returncode}")
        await self._until_drained()
        flood: Json = json.loads(out.splitlines()[-1])
        return found, flood

    async def _until_flooded(self) -> None:
        """Its imports take a while; wait for its texts, then let the queue fill."""
        for _ in range(200):
            if await self._queued() > FLOOD_TEXTS:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(SETTLE_S)

    async def _until_drained(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + DRAIN_S_MAX
        while await self._queued() and loop.time() < until:  # noqa: ASYNC110 -- elsewhere
            await asyncio.sleep(0.2)

    async def _queued(self) -> int:
        return (await self.callers.client(0).stats()).queue_texts


def measure(run: Run) -> Figures:
    """The keys of the claim."""
    run = Run(quick=run.quick, console=run.console)  # its tenants are none of the fleet's
    with platform_of(run, ROOMY) as platform:
        return asyncio.run(_measure(run, platform))


async def _measure(run: Run, platform: Platform) -> Figures:
    plan = Plan(vplms=OTHERS + 1, tenants=OTHERS + 1)
    with run.steps("creating tenants", plan.vplms) as done:
        fleet, _ = await create_fleet(platform, plan, done)
    async with Callers(fleet, platform.processor) as callers:
        await warm(callers, fleet.members, 4, lambda: None)
        capacity = await _capacity(callers, fleet, run.choose(8, 4))
        scene = Scene(platform, fleet, callers, float(run.choose(15, 8)), capacity)
        repetitions = run.choose(5, 3)
        with run.steps("alone and flooded in turns", 2 * repetitions) as done:
            found = await interleaved_async(
                {"alone": scene.alone, "flooded": scene.flooded}, repetitions, done
            )
    latencies = {who: [one for one, _ in ran] for who, ran in found.items()}
    at = partial(_at, latencies)
    return {
        "p99_ratio": paired_ratio(at("flooded", 99), at("alone", 99)),
        "p50_ratio": paired_ratio(at("flooded", 50), at("alone", 50)),
        "p99_alone_ms": median(at("alone", 99)),
        "p99_flooded_ms": median(at("flooded", 99)),
        "p50_alone_ms": median(at("alone", 50)),
        "p50_flooded_ms": median(at("flooded", 50)),
        "others_refused": sum(sum(one.errors.values()) for one in latencies["flooded"]),
        "capacity_texts_per_s": capacity,
        "others_per_s": scene.others_per_s,
        "others": OTHERS,
        "floods": [flood for _, flood in found["flooded"]],
        "runs": {who: [one.as_json() for one in ran] for who, ran in latencies.items()},
    }


async def _capacity(callers: Callers, fleet: Fleet, duration_s: float) -> float:
    """Texts a second that the one who floods gets when there is nobody else."""
    member = fleet.members[-1]
    texts = workload.texts(FLOOD_TEXTS * 16)

    async def send(number: int) -> None:
        first = number % 16 * FLOOD_TEXTS
        await callers.ask(member, texts[first : first + FLOOD_TEXTS])

    found = await closed_loop(FLOOD_CALLERS, duration_s, send)
    return found.per_s * FLOOD_TEXTS


def _at(latencies: dict[str, list[Latencies]], who: str, share: float) -> Sequence[float]:
    return [one.at(share) for one in latencies[who]]


if __name__ == "__main__":
    script("fairness", measure)
