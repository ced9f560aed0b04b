"""Ten thousand vPLMs of a thousand tenants in one processor, against one vPLM alone.

All are created and registered through the API, by their tenants' own keys over their tenants' own
connections. Then the same texts are asked, of one vPLM or each of another: as fast as 64 callers
can (throughput), and at 60 % of that on a Poisson schedule (latency). One client process asks for
all, on the cores that serve them; what it takes is told (`client_cpu_ms`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import psutil

import smile
from benchmarks.harness import workload
from benchmarks.harness.command import Run, script
from benchmarks.harness.cycles import cycles
from benchmarks.harness.fleet import (
    CREATORS,
    Callers,
    Fleet,
    Member,
    Plan,
    asking,
    by_edges,
    create_fleet,
    warm,
)
from benchmarks.harness.identity import IdentityCheck
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.latency import Latencies, Saturation, Send, closed_loop, open_loop
from benchmarks.harness.platforms import ROOMY, Platform, platform_of
from benchmarks.harness.rent import register
from benchmarks.harness.repeat import interleaved_async, paired_ratio

CALLERS = 64
OFFERED_SHARE = 0.6
EDGE = 100
CREATE_S_MAX = 600.0
REGISTER_S_MAX = 600.0
CYCLES_S_MAX = 180.0
SLACK = 4.0  # a phase may take so many times what its schedules say
SPARSE = {"diff_pruning": smile.DiffPruning(), "mask_bert": smile.MaskBert()}


@dataclass(frozen=True, slots=True)
class Registered:
    """What having all of them in memory takes."""

    took_ms: Sequence[float]
    rss_before: int
    rss_after: int
    modules_bytes: int


def measure(run: Run) -> Figures:
    """The keys of the claim."""
    with platform_of(run) as platform:
        return asyncio.run(_measure(run, platform))


async def _measure(run: Run, platform: Platform) -> Figures:
    plan = Plan(vplms=run.choose(10_000, 600), tenants=run.choose(1_000, 60))
    fleet, create_ms = await fleet_of(run, platform, plan)
    async with Callers(fleet, platform.processor) as callers:
        registered = await _register(run, platform, callers, fleet.members)
        compared = await _compare(run, callers, fleet.members)
        sparse = await _sparse(run, platform, callers, fleet.members[0])
        stats = await callers.client(0).stats()
        run.say("checking that everybody is answered by their own weights")
        identity = await IdentityCheck(callers, fleet.members).run(run.choose(40, 10))
    cycled = await _cycle(run, platform, fleet)
    return {
        "vplms": len(fleet.members),
        "tenants": len(fleet.keys),
        **compared,
        **sparse,
        **_memory(platform, registered, len(fleet.members)),
        **_cost("register", registered.took_ms),
        **_cost("create", create_ms),
        "identity_checked": identity.checked,
        "identity_wrong": identity.wrong,
        "batch_texts_mean": stats.batch_texts_mean,
        "batch_vplms_mean": stats.batch_vplms_mean,
        "padding_share": stats.padding_share,
        **cycled,
    }


async def fleet_of(run: Run, platform: Platform, plan: Plan) -> tuple[Fleet, list[float]]:
    """The run's fleet if it has one of that size, else a new one; creation times if created."""
    kept = Fleet.load(run.fleet) if run.fleet else None
    if kept is not None and len(kept.members) >= plan.vplms:
        return Fleet(kept.keys, kept.members[: plan.vplms]), []
    about = f"creating {plan.vplms} vPLMs of {plan.tenants} tenants"
    async with run.phase(about, plan.vplms, CREATE_S_MAX) as done:
        fleet, took_ms = await create_fleet(platform, plan, done)
    if run.fleet:
        fleet.save(run.fleet)
    return fleet, took_ms


async def _register(
    run: Run, platform: Platform, callers: Callers, members: Sequence[Member]
) -> Registered:
    took_ms = [0.0] * len(members)
    rss_before = platform.processor.rss_bytes
    async with run.phase("registering", len(members), REGISTER_S_MAX) as done:

        async def one(number: int) -> None:
            client = callers.client(members[number].tenant)
            started = time.perf_counter()
            await register(client, members[number].vplm)
            took_ms[number] = (time.perf_counter() - started) * 1e3
            done()

        await by_edges(len(members), one, CREATORS)
    stats = await callers.client(0).stats()
    return Registered(took_ms, rss_before, platform.processor.rss_bytes, stats.modules_bytes)


async def _compare(run: Run, callers: Callers, members: Sequence[Member]) -> dict[str, Json]:
    texts = workload.texts(2_000)
    fast_turns, paced_turns = run.choose(11, 3), run.choose(5, 3)
    duration_s = run.choose(4, 3)

    def send(who: str, repetition: int) -> Send:
        count = 1 if who == "one" else len(members)
        picks = workload.uniform(20_000, count, seed=repetition)
        return asking(callers, members, [int(pick) for pick in picks], texts)

    async def saturate(who: str, repetition: int) -> Saturation:
        return await closed_loop(CALLERS, duration_s, send(who, repetition))

    async def pace(who: str, rate_per_s: float, repetition: int) -> Latencies:
        schedule = workload.poisson(rate_per_s, 2.0 * duration_s, seed=100 + repetition)
        return await open_loop(schedule, send(who, repetition))

    before, about = _client_cpu_s(), "as fast as it goes, one and all in turns"
    async with run.phase(about, 2 * fast_turns, SLACK * 2 * fast_turns * duration_s) as done:
        fast = await interleaved_async(
            {who: partial(saturate, who) for who in ("one", "mixed")}, fast_turns, done
        )
    answered = sum(found.answered for all_found in fast.values() for found in all_found)
    client_cpu_ms = (_client_cpu_s() - before) / answered * 1e3
    rates = {who: [found.per_s for found in all_found] for who, all_found in fast.items()}
    rate_per_s = OFFERED_SHARE * median(rates["one"])
    about = f"{rate_per_s:.0f} requests a second, in turns"
    async with run.phase(about, 2 * paced_turns, SLACK * 4 * paced_turns * duration_s) as done:
        paced = await interleaved_async(
            {who: partial(pace, who, rate_per_s) for who in ("one", "mixed")}, paced_turns, done
        )
    return {
        "throughput_ratio": paired_ratio(rates["mixed"], rates["one"]),
        "throughput_mixed_per_s": median(rates["mixed"]),
        "throughput_one_per_s": median(rates["one"]),
        "offered_per_s": rate_per_s,
        "client_cpu_ms": client_cpu_ms,
        **_latency("p50", 50, paced),
        **_latency("p99", 99, paced),
        "rates": dict(rates),
        "paced": {
            who: [found.as_json() for found in all_found] for who, all_found in paced.items()
        },
    }


async def _cycle(run: Run, platform: Platform, fleet: Fleet) -> dict[str, Json]:
    """In a processor of its own, which holds nothing else."""
    count = run.choose(1_000, 200)
    with platform.another_processor("cycles", ROOMY) as processor:
        async with (
            Callers(fleet, processor) as callers,
            run.phase("loading and unloading", count, CYCLES_S_MAX) as done,
        ):
            return await cycles(processor, callers, fleet.members[:50], count, done)


async def _sparse(run: Run, platform: Platform, callers: Callers, one: Member) -> dict[str, Json]:
    """Lines of their own: many vPLMs of one sparse kind, against the one vPLM of before."""
    repetitions, duration_s = 3, run.choose(4, 3)
    texts = workload.texts(2_000)
    fleets: dict[str, Fleet] = {}
    for kind, pet in SPARSE.items():
        plan = Plan(run.choose(300, 30), 30, ((kind, pet),), prefix=kind.replace("_", "-"))
        about = f"creating {plan.vplms} {kind} vPLMs"
        async with run.phase(about, plan.vplms, CREATE_S_MAX) as done:
            fleets[kind], _ = await create_fleet(platform, plan, done)

    async def saturate(by: Callers, members: Sequence[Member], repetition: int) -> float:
        picks = [int(pick) for pick in workload.uniform(20_000, len(members), seed=repetition)]
        return (await closed_loop(CALLERS, duration_s, asking(by, members, picks, texts))).per_s

    async with AsyncExitStack() as stack:
        variants = {"one": partial(saturate, callers, (one,))}
        for kind, fleet in fleets.items():
            by = await stack.enter_async_context(Callers(fleet, platform.processor))
            await warm(by, fleet.members, CREATORS, lambda: None)
            variants[kind] = partial(saturate, by, fleet.members)
        turns = repetitions * len(variants)
        async with run.phase("sparse kinds in turns", turns, SLACK * turns * duration_s) as done:
            rates = await interleaved_async(variants, repetitions, done)
    return {
        **{f"throughput_ratio_{kind}": paired_ratio(rates[kind], rates["one"]) for kind in SPARSE},
        **{f"throughput_{kind}_per_s": median(rates[kind]) for kind in SPARSE},
    }


def _client_cpu_s() -> float:
    """Processor time of this process so far."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _latency(name: str, share: float, paced: dict[str, list[Latencies]]) -> dict[str, Json]:
    found = {who: [latencies.at(share) for latencies in ran] for who, ran in paced.items()}
    return {
        f"{name}_ratio": paired_ratio(found["mixed"], found["one"]),
        f"{name}_mixed_ms": median(found["mixed"]),
        f"{name}_one_ms": median(found["one"]),
    }


def _memory(platform: Platform, registered: Registered, vplms: int) -> dict[str, Json]:
    grown = registered.rss_after - registered.rss_before
    return {
        "bytes_per_vplm": round(grown / vplms),
        "arena_bytes_per_vplm": round(registered.modules_bytes / vplms),
        "processor_rss_gib": registered.rss_after / 2**30,
        "rss_gib": platform.rss_bytes / 2**30,
    }


def _cost(name: str, took_ms: Sequence[float]) -> dict[str, Json]:
    """Medians of the first and last hundred, which were done one at a time, and of each tenth."""
    if not took_ms:
        return {f"{name}_ms_first": None, f"{name}_ms_last": None, f"{name}_ratio": None}
    first, last = median(took_ms[:EDGE]), median(took_ms[-EDGE:])
    tenths = np.array_split(np.array(took_ms), 10)
    return {
        f"{name}_ms_first": first,
        f"{name}_ms_last": last,
        f"{name}_ratio": last / first,
        f"{name}_ms_by_tenth": [float(np.median(tenth)) for tenth in tenths],
    }


if __name__ == "__main__":
    script("density", measure)
