"""The paper's load: ten thousand vPLMs, each asking once a minute, through gRPC.

1,000 tenants with ten vPLMs each: 167 requests a second (Zhu et al., "SMILE", SIGMOD-Companion
2023). Every vPLM asks once in every minute at a random time in it, by its tenant's key over its
tenant's connection.
"""

from __future__ import annotations

import asyncio

from benchmarks.density import fleet_of
from benchmarks.harness import workload
from benchmarks.harness.command import Run, script
from benchmarks.harness.fleet import Callers, Plan, asking, warm
from benchmarks.harness.json_types import Figures
from benchmarks.harness.latency import open_loop
from benchmarks.harness.platforms import Platform, platform_of

VPLMS = 10_000
PERIOD_S = 60.0
WARMERS = 8


def measure(run: Run) -> Figures:
    """The keys of the claim. Quick: fewer vPLMs that ask more often, so the load is the same."""
    with platform_of(run) as platform:
        return asyncio.run(_measure(run, platform))


async def _measure(run: Run, platform: Platform) -> Figures:
    plan = Plan(vplms=run.choose(VPLMS, 600), tenants=run.choose(1_000, 60))
    fleet, _ = await fleet_of(run, platform, plan)
    members = fleet.members
    period_s = PERIOD_S * len(members) / VPLMS
    duration_s = float(run.choose(180, 30))
    times, who = workload.once_a_period(len(members), period_s, duration_s, seed=29)
    async with Callers(fleet, platform.processor) as callers:
        with run.steps("bringing all into memory", len(members)) as done:
            await warm(callers, members, WARMERS, done)
        before = platform.processor.cpu_s
        run.say(f"{len(times) / duration_s:.0f} requests a second for {duration_s:.0f} s")
        picks = [int(pick) for pick in who]
        found = await open_loop(times, asking(callers, members, picks, workload.texts(4_000)))
        stats = await callers.client(0).stats()
        busy = (platform.processor.cpu_s - before) / found.seconds
    offered = len(times) / duration_s
    return {
        "vplms": len(members),
        "tenants": len(fleet.keys),
        "period_s": period_s,
        "duration_s": duration_s,
        "offered_rps": offered,
        "achieved_rps": len(found.latency_ms) / max(duration_s, found.seconds),
        "achieved_ratio": len(found.latency_ms) / len(times),
        "p50_ms": found.at(50),
        "p95_ms": found.at(95),
        "p99_ms": found.at(99),
        "latencies": found.as_json(),
        "processor_cores_busy": busy,
        "batch_texts_mean": stats.batch_texts_mean,
        "batch_vplms_mean": stats.batch_vplms_mean,
        "rss_gib": platform.rss_bytes / 2**30,
    }


if __name__ == "__main__":
    script("smile_demo", measure)
