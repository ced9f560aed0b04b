"""What happens when more vPLMs are asked than fit: latency against the size of the working set.

A tier of memory is made small, once the device's and once the host's, and vPLMs are asked that take
one, two and eight times as much, all alike or by Zipf's law, at a fixed rate on a Poisson schedule.
All have been asked once before: what does not fit into the host's memory lies on local disk by
then, where the processor keeps it. How it goes without local disk, each miss a download, stands
beside (`p95_ratio_8x_without_disk`).

Beside it PEFT's hot-swapping under the same test: as many adapters as slots, twice and eight times
as many, on a model that swaps weights in place (`peft.utils.hotswap`), its adapters on local disk,
too.
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
WARMERS = 8
START_S_MAX = 60.0
CREATE_S_MAX = 240.0
WARM_S_MAX = 180.0
SLACK = 4.0  # a phase may take so many times what its schedules say
PEER_READY_S_MAX = 120.0
_SMALL: Settings = {
    **QUIET,
    "SMILE_PROCESSOR_PINNED_SHARE": "0",
    "SMILE_PROCESSOR_HOST_BYTES_MAX": str(TIER_BYTES),
    "SMILE_PROCESSOR_DEVICE_BYTES_MAX": str(TIER_BYTES),
    "SMILE_PROCESSOR_DISK_BYTES_MAX": str(2 * GIB),
}
DISTRIBUTIONS = {"uniform": workload.uniform, "zipf": workload.zipf}
ALL_SETS = tuple((distribution, factor) for distribution in DISTRIBUTIONS for factor in FACTORS)


@dataclass(frozen=True, slots=True)
class Setting:
    """A processor with a small tier, and which working sets it is asked."""

    settings: Settings
    sets: Sequence[tuple[str, int]] = ALL_SETS


WITHOUT_DISK = "host_without_disk"
SETTINGS: Mapping[str, Setting] = {
    "host": Setting(_SMALL),
    "device": Setting({**_SMALL, "SMILE_PROCESSOR_HOST_BYTES_MAX": str(8 * GIB)}),
    WITHOUT_DISK: Setting(
        {**_SMALL, "SMILE_PROCESSOR_DISK_BYTES_MAX": "0"}, (("uniform", 1), ("uniform", 8))
    ),
}


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
        first = self.members[: self.once]
        await warm(self.callers, first if factor == 1 else chosen, WARMERS, _nothing)
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
        for name, setting in SETTINGS.items():
            with platform.another_processor(name, setting.settings) as processor:
                under = Under(name, setting, Callers(fleet, processor), fleet.members, once)
                found[name] = asyncio.run(_measure(run, under))
    return {**_figures(found), "vplms_once": once, "tier_bytes": TIER_BYTES, **peer}


async def _create(run: Run, platform: Platform) -> tuple[Fleet, int]:
    """Enough vPLMs for the largest working set, and how many fill the tier."""
    shape = Plan(PROBES, 1, (("pfeiffer", PET),), prefix="probe")
    async with run.phase("probing the size of a vPLM", PROBES, START_S_MAX) as done:
        fleet, _ = await create_fleet(platform, shape, done)
        async with Callers(fleet, platform.processor) as callers:
            await warm(callers, fleet.members, 1, _nothing)
            stats = await callers.client(0).stats()
    once = int(FILLED * TIER_BYTES / (stats.modules_bytes / stats.modules_resident))
    plan = Plan(once * max(FACTORS), 16, (("pfeiffer", PET),))
    async with run.phase(f"creating {plan.vplms} vPLMs", plan.vplms, CREATE_S_MAX) as done:
        fleet, _ = await create_fleet(platform, plan, done)
    return fleet, once


@dataclass(frozen=True, slots=True)
class Under:
    """What is measured: a setting's processor, whom it may be asked, how many of them fill it."""

    name: str
    setting: Setting
    callers: Callers
    members: Sequence[Member]
    once: int


async def _measure(run: Run, under: Under) -> dict[str, list[Latencies]]:
    members, callers, name = under.members, under.callers, under.name
    async with callers:
        about = f"{name}: asking all {len(members)} once"
        async with run.phase(about, len(members), WARM_S_MAX) as done:
            await warm(callers, members, WARMERS, done)
        await warm(callers, members[: under.once], WARMERS, _nothing)
        send = asking(callers, members, list(range(under.once)), workload.texts(2_000))
        capacity = await closed_loop(CALLERS, run.choose(5, 2), send)
        rate_per_s = RATE_SHARE * capacity.per_s
        duration_s = float(run.choose(4, 2))
        tier = Tier(callers, members, under.once, rate_per_s, duration_s)
        repetitions = run.choose(3, 2)
        total = repetitions * len(under.setting.sets)
        async with run.phase(
            f"{name}: {rate_per_s:.0f} requests a second", total, SLACK * total * duration_s
        ) as done:
            return await interleaved_async(
                {
                    f"{distribution}_{factor}x": partial(tier.at, distribution, factor)
                    for distribution, factor in under.setting.sets
                },
                repetitions,
                done,
            )


def _figures(found: Mapping[str, Mapping[str, Sequence[Latencies]]]) -> dict[str, Json]:
    medians = {
        f"p95_ms_{name}_{working_set}": median(one.at(95) for one in ran)
        for name, by_set in found.items()
        for working_set, ran in by_set.items()
    }
    ratios = {
        f"{name}_{distribution}": _ratios(found[name], distribution)
        for name, setting in SETTINGS.items()
        for distribution in sorted({distribution for distribution, _ in setting.sets})
    }
    without = ratios.pop(f"{WITHOUT_DISK}_uniform")
    return {
        "p95_ratio_2x": max(by_factor["2x"] for by_factor in ratios.values()),
        "p95_ratio_8x": max(by_factor["8x"] for by_factor in ratios.values()),
        "p95_ratio_8x_without_disk": without["8x"],
        "p95_ratios": dict(ratios),
        **medians,
        "runs": {
            name: {working_set: [one.as_json() for one in ran] for working_set, ran in sets.items()}
            for name, sets in found.items()
        },
    }


def _ratios(found: Mapping[str, Sequence[Latencies]], distribution: str) -> dict[str, float]:
    """p95 of each working set over that of one that fits."""
    at = {
        factor: [one.at(95) for one in found[name]]
        for factor in FACTORS
        if (name := f"{distribution}_{factor}x") in found
    }
    return {f"{factor}x": paired_ratio(p95, at[1]) for factor, p95 in at.items()}


def _peer(run: Run) -> dict[str, Json]:
    """PEFT's hot-swapping under the same test, in an environment and process of its own."""
    requests = requests_of(workload.texts(256), vplms=0)
    repetitions, duration_s = run.choose(3, 2), run.choose(4, 2)
    with tempfile.TemporaryDirectory(prefix="smile-bench-") as folder:
        path = Path(folder) / "requests.json"
        path.write_text(json.dumps(asdict(requests)), encoding="utf-8")
        try:
            command = (
                *(str(python_of("huggingface")), "-m", "benchmarks.peers.runners.peft_hotswap"),
                *(str(path), str(SWAP_SLOTS), str(max(FACTORS)), str(duration_s)),
            )
            with Worker(
                command,
                log=Path(folder) / "peft.log",
                ready_s_max=PEER_READY_S_MAX,
                answer_s_max=30.0 + 10.0 * duration_s,
            ) as worker:
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
