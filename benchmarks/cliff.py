"""What happens when more vPLMs are asked than fit: latency against the size of the working set.

A tier of memory is made small, once the device's and once the host's, and vPLMs are asked that take
one, two and eight times as much, all alike or by Zipf's law, at a fixed rate on a Poisson schedule.
Beside it PEFT's hot-swapping under the same test: as many adapters as slots, twice and eight times
as many, on a model that swaps weights in place (`peft.utils.hotswap`).
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import smile
from benchmarks.harness import workload
from benchmarks.harness.command import Run, script
from benchmarks.harness.fleet import Callers, Fleet, Member, Plan, asking, create_fleet, warm
from benchmarks.harness.json_types import Figures, Json, number
from benchmarks.harness.latency import Latencies, closed_loop, open_loop
from benchmarks.harness.platforms import QUIET, Platform, Settings, platform_of
from benchmarks.harness.repeat import interleaved, interleaved_async, paired_ratio
from benchmarks.harness.worker import Worker
from benchmarks.harness.workload import Choices
from benchmarks.peers.environments import python_of
from benchmarks.peers.requests import requests_of
from services.processor.config import MODULE_IN_MEMORY_MAX
from smile.errors import FailedPrecondition
from smile.limits import GIB

PET = smile.Pfeiffer(rank=64, first_layer=0)  # 0.6 MB stored, 1.2 MB in memory as float32
TIER_BYTES = MODULE_IN_MEMORY_MAX  # the smallest the processor lets one be set to
FILLED = 0.95
FACTORS = (1, 2, 8)
PROBES = 8
RATE_SHARE = 0.3
CALLERS = 16
SWAP_SLOTS = 8
_BASE: Settings = {**QUIET, "SMILE_PROCESSOR_PINNED_SHARE": "0"}
TIERS: Mapping[str, Settings] = {
    "host": {
        **_BASE,
        "SMILE_PROCESSOR_HOST_BYTES_MAX": str(TIER_BYTES),
        "SMILE_PROCESSOR_DEVICE_BYTES_MAX": str(TIER_BYTES),
    },
    "device": {
        **_BASE,
        "SMILE_PROCESSOR_HOST_BYTES_MAX": str(8 * GIB),
        "SMILE_PROCESSOR_DEVICE_BYTES_MAX": str(TIER_BYTES),
    },
}
DISTRIBUTIONS = {"uniform": workload.uniform, "zipf": workload.zipf}


@dataclass(frozen=True, slots=True)
class Tier:
    """A processor with a small tier, and the members that fill it once."""

    callers: Callers
    members: Sequence[Member]
    once: int
    rate_per_s: float
    duration_s: float

    async def at(self, distribution: str, factor: int, repetition: int) -> Latencies:
        """Latencies of a working set of `factor` times the tier, after it has settled."""
        count = factor * self.once
        seed = 100 * repetition + factor
        settling = self._picks(distribution, self.once, count, seed)
        chosen = [self.members[pick] for pick in settling]
        await warm(self.callers, self.members[: self.once] if factor == 1 else chosen, 8, _nothing)
        schedule = workload.poisson(self.rate_per_s, self.duration_s, seed=seed)
        picks = self._picks(distribution, len(schedule), count, seed + 1)
        texts = workload.texts(2_000)
        return await open_loop(schedule, asking(self.callers, self.members, picks, texts))

    def _picks(self, distribution: str, count: int, members: int, seed: int) -> list[int]:
        picks: Choices = DISTRIBUTIONS[distribution](count, members, seed=seed)
        return [int(pick) for pick in picks]


def measure(run: Run) -> Figures:
    """The keys of the claim: the worst of both tiers and both distributions."""
    run = Run(quick=run.quick, console=run.console)  # its vPLMs are none of the fleet's
    peer = _peer(run)
    with platform_of(run, QUIET) as platform:
        fleet, once = asyncio.run(_create(run, platform))
        found = {}
        for tier, settings in TIERS.items():
            with platform.another_processor(tier, settings) as processor:
                found[tier] = asyncio.run(
                    _measure(run, tier, Callers(fleet, processor), (fleet.members, once))
                )
    return {**_figures(found), "vplms_once": once, "tier_bytes": TIER_BYTES, **peer}


async def _create(run: Run, platform: Platform) -> tuple[Fleet, int]:
    """Enough vPLMs for the largest working set, and how many fill the tier."""
    shape = Plan(PROBES, 1, (("pfeiffer", PET),), prefix="probe")
    fleet, _ = await create_fleet(platform, shape, _nothing)
    async with Callers(fleet, platform.processor) as callers:
        await warm(callers, fleet.members, 1, _nothing)
        stats = await callers.client(0).stats()
    once = int(FILLED * TIER_BYTES / (stats.modules_bytes / stats.modules_resident))
    plan = Plan(once * max(FACTORS), 16, (("pfeiffer", PET),))
    with run.steps(f"creating {plan.vplms} vPLMs", plan.vplms) as done:
        fleet, _ = await create_fleet(platform, plan, done)
    return fleet, once


async def _measure(
    run: Run, name: str, callers: Callers, over: tuple[Sequence[Member], int]
) -> dict[str, list[Latencies]]:
    members, once = over
    async with callers:
        await warm(callers, members[:once], 8, _nothing)
        send = asking(callers, members, list(range(once)), workload.texts(2_000))
        capacity = await closed_loop(CALLERS, run.choose(5, 3), send)
        rate_per_s = RATE_SHARE * capacity.per_s
        tier = Tier(callers, members, once, rate_per_s, float(run.choose(8, 4)))
        repetitions = run.choose(3, 2)
        total = repetitions * len(FACTORS) * len(DISTRIBUTIONS)
        with run.steps(f"{name}: {rate_per_s:.0f} requests a second", total) as done:
            return await interleaved_async(
                {
                    f"{distribution}_{factor}x": partial(tier.at, distribution, factor)
                    for distribution in DISTRIBUTIONS
                    for factor in FACTORS
                },
                repetitions,
                done,
            )


def _figures(found: Mapping[str, Mapping[str, Sequence[Latencies]]]) -> dict[str, Json]:
    ratios: dict[str, dict[str, float]] = {}
    medians: dict[str, float] = {}
    for tier, by_set in found.items():
        for name, ran in by_set.items():
            medians[f"p95_ms_{tier}_{name}"] = median(one.at(95) for one in ran)
        for distribution in DISTRIBUTIONS:
            at = {
                factor: [one.at(95) for one in by_set[f"{distribution}_{factor}x"]]
                for factor in FACTORS
            }
            ratios[f"{tier}_{distribution}"] = {
                f"{factor}x": paired_ratio(at[factor], at[1]) for factor in FACTORS
            }
    return {
        "p95_ratio_2x": max(by_factor["2x"] for by_factor in ratios.values()),
        "p95_ratio_8x": max(by_factor["8x"] for by_factor in ratios.values()),
        "p95_ratios": dict(ratios),
        **medians,
        "runs": {
            tier: {name: [one.as_json() for one in ran] for name, ran in by_set.items()}
            for tier, by_set in found.items()
        },
    }


def _peer(run: Run) -> dict[str, Json]:
    """PEFT's hot-swapping under the same test, in an environment and process of its own."""
    requests = requests_of(workload.texts(256), vplms=0)
    repetitions = run.choose(3, 2)
    with tempfile.TemporaryDirectory(prefix="smile-bench-") as folder:
        path = Path(folder) / "requests.json"
        path.write_text(json.dumps(asdict(requests)), encoding="utf-8")
        try:
            command = (
                *(str(python_of("huggingface")), "-m", "benchmarks.peers.runners.peft_hotswap"),
                *(str(path), str(SWAP_SLOTS), str(max(FACTORS)), str(run.choose(8, 4))),
            )
            with Worker(command, log=Path(folder) / "peft.log") as worker:
                worker.await_ready()
                names = [f"{kind}_{factor}x" for kind in DISTRIBUTIONS for factor in FACTORS]
                with run.steps("PEFT hot-swapping", repetitions * len(names)) as done:
                    found = interleaved(
                        {name: partial(worker.ask, name) for name in names}, repetitions, done
                    )
                about = worker.about
        except FailedPrecondition as error:
            run.say(f"PEFT hot-swapping is left out: {error.message}")
            return {"peer_p95_ratio_8x": None, "peer_not_measured": error.message}
    return {**_peer_figures(found), "peer_about": about}


def _peer_figures(found: Mapping[str, Sequence[Mapping[str, Json]]]) -> dict[str, Json]:
    p95 = {
        name: [value for one in ran if (value := number(one["p95_ms"])) is not None]
        for name, ran in found.items()
    }
    ratios = {
        f"{kind}_{factor}x": paired_ratio(p95[f"{kind}_{factor}x"], p95[f"{kind}_1x"])
        for kind in DISTRIBUTIONS
        for factor in FACTORS
    }
    return {
        "peer_p95_ratio_2x": max(ratios[f"{kind}_2x"] for kind in DISTRIBUTIONS),
        "peer_p95_ratio_8x": max(ratios[f"{kind}_8x"] for kind in DISTRIBUTIONS),
        "peer_p95_ratios": dict(ratios),
        **{f"peer_p95_ms_{name}": median(values) for name, values in p95.items()},
    }


def _nothing() -> None:
    """No progress to show."""


if __name__ == "__main__":
    script("cliff", measure)
