"""The paper's load: ten thousand vPLMs, each asking once a minute, through gRPC.

1,000 tenants with ten vPLMs each: 167 requests a second (Zhu et al., "SMILE", SIGMOD-Companion
2023). Every vPLM asks once in every minute at a random time in it, by its tenant's key over its
tenant's connection. The headline is float32; the same load in bfloat16, by another processor, is
beside it, and so is the same load asked for materialised answers.

One client process asks for all tenants, on the cores that serve them; what it takes is told
(`client_cores_busy`). It keeps a connection for each tenant, as tenants do: one connection for all
saves it a tenth of a millisecond a request, and the processor nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import psutil

from benchmarks.density import fleet_of
from benchmarks.harness import workload
from benchmarks.harness.command import Run, script
from benchmarks.harness.fleet import Callers, Fleet, Plan, asking, warm
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.latency import Latencies, open_loop
from benchmarks.harness.platforms import ROOMY, Platform, ProcessorProcess, platform_of
from benchmarks.harness.standin import stood_in
from smile.resources import Exactness

VPLMS = 10_000
PERIOD_S = 60.0
WARMERS = 8
WARM_S_MAX = 600.0
DRAIN_S_MAX = 60.0
PARTS = 3  # of the run, to tell how much its figures vary
BFLOAT16 = {**ROOMY, "SMILE_PROCESSOR_PRECISION": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor seconds of those who take part, since their start."""

    processor: float
    storage: float
    client: float

    @classmethod
    def now(cls, platform: Platform, processor: ProcessorProcess) -> Spent:
        times = psutil.Process().cpu_times()
        storage = platform.service("storage")
        return cls(processor.cpu_s, storage.cpu_s, float(times.user + times.system))

    def cores_since(self, before: Spent, seconds: float) -> dict[str, Json]:
        """How many cores each kept busy meanwhile."""
        return {
            "processor_cores_busy": (self.processor - before.processor) / seconds,
            "storage_cores_busy": (self.storage - before.storage) / seconds,
            "client_cores_busy": (self.client - before.client) / seconds,
        }


def measure(run: Run) -> Figures:
    """The keys of the claim. Quick: fewer vPLMs that ask more often, so the load is the same."""
    with platform_of(run) as platform:
        return asyncio.run(_measure(run, platform))


async def _measure(run: Run, platform: Platform) -> Figures:
    plan = Plan(vplms=run.choose(VPLMS, 600), tenants=run.choose(1_000, 60))
    fleet, _ = await fleet_of(run, platform, plan)
    asked = Asked(run, platform, fleet, PERIOD_S * len(fleet.members) / VPLMS)
    float32 = await asked.of(platform.processor, "float32", float(run.choose(90, 24)))
    rss_gib = platform.rss_bytes / 2**30
    with platform.another_processor("bfloat16", BFLOAT16) as other:
        bfloat16 = await asked.of(other, "bfloat16", float(run.choose(60, 12)))
    materialized = await _materialized(asked, float(run.choose(60, 12)))
    return {
        "vplms": len(fleet.members),
        "tenants": len(fleet.keys),
        "period_s": asked.period_s,
        **float32,
        "rss_gib": rss_gib,
        "bfloat16": bfloat16,
        "materialized": materialized,
        "p99_ms_materialized": materialized["p99_ms"],
        "achieved_ratio_materialized": materialized["achieved_ratio"],
    }


async def _materialized(asked: Asked, duration_s: float) -> dict[str, Json]:
    """The same load with lower layers looked up."""
    with ExitStack() as stack:
        settings = {**ROOMY, **stack.enter_context(stood_in())}
        other = stack.enter_context(asked.platform.another_processor("materialized", settings))
        return await asked.of(other, "materialised", duration_s, Exactness.MATERIALIZED)


@dataclass(frozen=True, slots=True)
class Asked:
    """The load, for a processor at a time."""

    run: Run
    platform: Platform
    fleet: Fleet
    period_s: float

    async def of(
        self,
        processor: ProcessorProcess,
        precision: str,
        duration_s: float,
        exactness: Exactness = Exactness.EXACT,
    ) -> dict[str, Json]:
        """What a processor makes of it, everybody in its memory before."""
        run, members = self.run, self.fleet.members
        times, who = workload.once_a_period(len(members), self.period_s, duration_s, seed=29)
        picks = [int(pick) for pick in who]
        async with Callers(self.fleet, processor, exactness) as callers:
            about = f"{precision}: bringing all into memory"
            async with run.phase(about, len(members), WARM_S_MAX) as done:
                await warm(callers, members, WARMERS, done)
            about = f"{precision}: {len(times) / duration_s:.0f} requests a second"
            send = asking(callers, members, picks, workload.texts(4_000))

            async def sent(number: int) -> None:
                try:
                    await send(number)
                finally:
                    done()

            before = Spent.now(self.platform, processor)
            async with run.phase(about, len(times), duration_s + DRAIN_S_MAX) as done:
                found = await open_loop(times, sent)
            spent = Spent.now(self.platform, processor).cores_since(before, found.seconds)
            stats = await callers.client(0).stats()
        return {
            **_figures(found, len(times), duration_s),
            **spent,
            "batch_texts_mean": stats.batch_texts_mean,
            "batch_vplms_mean": stats.batch_vplms_mean,
            "found_share": stats.ngrams_found_total / max(stats.ngrams_total, 1),
        }


def _figures(found: Latencies, asked: int, duration_s: float) -> dict[str, Json]:
    parts = found.parts(PARTS)
    return {
        "duration_s": duration_s,
        "offered_rps": asked / duration_s,
        "achieved_rps": len(found.latency_ms) / max(duration_s, found.seconds),
        "achieved_ratio": len(found.latency_ms) / asked,
        "p50_ms": found.at(50),
        "p95_ms": found.at(95),
        "p99_ms": found.at(99),
        "p99_ms_of_parts": [part.at(99) for part in parts],
        "p99_ms_median_of_parts": median(part.at(99) for part in parts),
        "latencies": found.as_json(),
    }


if __name__ == "__main__":
    script("smile_demo", measure)
