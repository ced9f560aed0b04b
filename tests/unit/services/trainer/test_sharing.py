"""Small jobs that share a worker: who runs beside whom, and that none suffers for another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from services.trainer.metering import Tariff, TrainingMeter
from services.trainer.queueing.queue import Claim, QueueState, Sighting
from services.trainer.worker.__main__ import work_beside
from services.trainer.worker.attempt import Attempt
from services.trainer.worker.berths import Berths, Passenger
from services.trainer.worker.runner import Runner
from smile.names import JobName, VplmName, tenant_id
from smile.resources import HyperParameters, JobState, Method, TrainingJob, When
from tests.unit.services.trainer.fakes import FakeStorage
from tests.unit.services.trainer.test_runner import (
    DATASET,
    LEASE_S,
    QUICK,
    VPLM,
    Stage,
    stage,
    storage,
    toy,
)

pytestmark = pytest.mark.asyncio
__all__ = ["stage", "storage", "toy"]  # fixtures

LONG = replace(QUICK, epochs=1000)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Queueing:
    """Passengers that come and go when told."""

    def __init__(self, count: int) -> None:
        self.berths = Berths(count)
        self.inside: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def taking(self) -> bool:
        return self.berths.taking

    async def come(self, name: str, passenger: Passenger) -> None:
        self._leave[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._stay(name, passenger))
        await self._settled()

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await self._tasks[name]
        await self._settled()

    async def give_up(self, name: str) -> None:
        self._tasks[name].cancel()
        with suppress(asyncio.CancelledError):
            await self._tasks[name]
        await self._settled()

    async def _stay(self, name: str, passenger: Passenger) -> None:
        async with self.berths.taken(passenger):
            self.inside.append(name)
            try:
                await self._leave[name].wait()
            finally:
                self.inside.remove(name)

    async def _settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def small(backbone: str = "toy") -> Passenger:
    return Passenger(backbone, True)


def large() -> Passenger:
    return Passenger("toy", False)


async def test_small_jobs_of_one_backbone_share_up_to_the_count() -> None:
    queueing = Queueing(2)
    await queueing.come("a", small())
    assert queueing.taking()
    await queueing.come("b", small())
    assert queueing.inside == ["a", "b"] and not queueing.taking()
    await queueing.come("c", small())
    assert queueing.inside == ["a", "b"]
    await queueing.go("a")
    assert queueing.inside == ["b", "c"]


async def test_what_does_not_share_runs_alone_and_nobody_overtakes_it() -> None:
    queueing = Queueing(3)
    await queueing.come("a", small())
    await queueing.come("large", large())
    await queueing.come("b", small())
    assert queueing.inside == ["a"] and not queueing.taking()
    await queueing.go("a")
    assert queueing.inside == ["large"] and not queueing.taking()
    await queueing.go("large")
    assert queueing.inside == ["b"] and queueing.taking()


async def test_other_backbones_wait() -> None:
    queueing = Queueing(2)
    await queueing.come("a", small())
    await queueing.come("other", small("bert"))
    assert queueing.inside == ["a"]
    await queueing.go("a")
    assert queueing.inside == ["other"]


async def test_whoever_gives_up_lets_the_next_in() -> None:
    queueing = Queueing(2)
    await queueing.come("a", small())
    await queueing.come("large", large())
    await queueing.come("b", small())
    await queueing.give_up("large")
    assert queueing.inside == ["a", "b"]
    waited = asyncio.create_task(queueing.berths.until_taking())
    await queueing.give_up("a")
    await asyncio.wait_for(waited, 5)


class Crew:
    """Two runners of one process at work on whatever the queue has."""

    def __init__(self, stage: Stage, *, count: int = 2, **shop: Any) -> None:
        self.stage = stage
        self.meter = TrainingMeter(None, Tariff(1.0, lambda: True))
        berths, shared = Berths(count), replace(stage.shop, **shop)
        self.runners = [
            Runner(shared, stage.queue, stage.ending, meter=self.meter, berths=berths)
            for _ in range(count)
        ]
        self.berths = berths

    async def __aenter__(self) -> Crew:
        self.working = asyncio.create_task(
            work_beside(self.stage.queue, self.runners, self.stage.ending)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stage.ending.set()
        async with asyncio.timeout(60):
            await self.working

    def job(self, name: JobName) -> TrainingJob:
        return self.stage.storage.kept[str(name)].job

    async def ended(self, *names: JobName) -> list[TrainingJob]:
        await until(lambda: all(self.job(name).state.done for name in names))
        return [self.job(name) for name in names]

    async def _seen(self, names: Sequence[JobName]) -> list[Sighting]:
        return await self.stage.queue.look(names)

    async def stepping(self, *names: JobName) -> None:
        """All of them are between two of their steps."""
        async with asyncio.timeout(60):
            while not all(seen.progress.step for seen in await self._seen(names)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_two_at_once_end_with_the_bytes_of_each_alone(
    stage: Stage, storage: FakeStorage
) -> None:
    values = [replace(QUICK, seed=seed, epochs=8) for seed in (1, 2)]
    for number, value in enumerate(values):
        await stage.run(job=f"alone{number}", hyper_parameters=value)
    async with Crew(stage) as crew:
        names = [
            await stage.submit(f"beside{number}", hyper_parameters=value)
            for number, value in enumerate(values)
        ]
        jobs = await crew.ended(*names)
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2
    digests = {v.training_job.rpartition("/")[2]: v.digest for v, _, _ in storage.stored[VPLM]}
    for number in range(2):
        assert digests[f"beside{number}"] == digests[f"alone{number}"]


async def test_they_run_at_once_and_are_cancelled_one_by_one(stage: Stage) -> None:
    async with Crew(stage) as crew:
        first = await stage.submit("j1", hyper_parameters=LONG)
        second = await stage.submit("j2", hyper_parameters=LONG)
        await crew.stepping(first, second)
        await stage.queue.cancel(first, "c")
        (ended,) = await crew.ended(first)
        assert ended.state is JobState.CANCELLED
        before = (await stage.queue.look([second]))[0].progress.step
        await crew.stepping(second)
        async with asyncio.timeout(60):
            while (await stage.queue.look([second]))[0].progress.step <= before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert crew.job(second).state is JobState.RUNNING
    assert (await stage.queue.look([second]))[0].state is QueueState.QUEUED, "given back"


async def test_one_that_fails_does_not_fail_the_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Attempt._trained

    def fails(attempt: Attempt, *given: Any) -> Any:
        if attempt._job.name.endswith("greedy"):
            raise MemoryError
        return trained(attempt, *given)

    monkeypatch.setattr(Attempt, "_trained", fails)
    async with Crew(stage) as crew:
        greedy = await stage.submit("greedy", hyper_parameters=LONG)
        modest = await stage.submit("modest")
        ended = await crew.ended(greedy, modest)
    assert [job.state for job in ended] == [JobState.FAILED, JobState.SUCCEEDED]
    assert ended[0].error is not None and ended[0].error.reason == "OUT_OF_MEMORY"


async def test_an_attempt_that_breaks_lets_the_others_be_given_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Runner.work

    async def breaks(runner: Runner, claim: Claim) -> None:
        if claim.name.job == "broken":
            await crew.stepping(other)
            raise AssertionError("a fault of ours")
        await work(runner, claim)

    monkeypatch.setattr(Runner, "work", breaks)
    crew = Crew(stage)
    other = await stage.submit("j1", hyper_parameters=LONG)
    await stage.submit("broken", hyper_parameters=LONG)
    with pytest.raises(AssertionError, match="a fault of ours"):
        await work_beside(stage.queue, crew.runners, stage.ending)
    seen = (await stage.queue.look([other]))[0]
    assert seen.state is QueueState.QUEUED
    heir = await stage.claim()
    assert heir.name == other and heir.deaths == 0, "that was not its fault"


async def test_what_died_with_its_worker_runs_alone(stage: Stage) -> None:
    second = await stage.submit("j2", hyper_parameters=QUICK)
    await stage.claim("dead")  # and never heard of again
    await asyncio.sleep(LEASE_S * 1.2)
    first = await stage.submit("j1", hyper_parameters=LONG)
    crew = Crew(stage)
    running = asyncio.create_task(crew.runners[0].work(await _claimed(stage, first)))
    await crew.stepping(first)
    waiting = asyncio.create_task(crew.runners[1].work(await _claimed(stage, second)))
    async with asyncio.timeout(60):
        while (await stage.queue.look([second]))[0].progress.phase != "waiting":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(2 * LEASE_S)
    seen = (await stage.queue.look([second]))[0]
    assert (seen.state, seen.progress.step) == (QueueState.RUNNING, 0), "its lease is renewed"
    assert not crew.berths.taking
    await stage.queue.cancel(first, "c")
    await asyncio.wait_for(asyncio.gather(running, waiting), 60)
    assert crew.job(second).state is JobState.SUCCEEDED


async def test_waiting_costs_nothing() -> None:
    meter = TrainingMeter(None, Tariff(1.0, lambda: True))
    stint = meter.stint(tenant_id("acme"), When.OFF_PEAK)
    now = time.monotonic()
    stint.held(now + 1)
    stint.waited(now + 100)
    stint.held(now + 101)
    total = meter.meter.account(tenant_id("acme")).total
    assert 1.9e6 < total.training_us <= 2.1e6


async def _claimed(stage: Stage, name: JobName) -> Claim:
    held: list[Claim] = []
    for consumer in ("w1", "w2", "w3"):
        claim = await stage.queue.claim(consumer)
        assert claim is not None
        if claim.name == name:
            for other in held:
                await stage.queue.give_back(other)
            return claim
        held.append(claim)
    raise AssertionError(f"no claim of {name}")


@pytest.mark.parametrize(
    ("changes", "shop", "shares"),
    [
        ({}, {}, True),
        ({"validation_dataset": DATASET}, {}, True),
        ({}, {"shared_bytes_max": 100}, False),
        ({"method": Method.FULL, "promote_alias": ""}, {}, False),
    ],
)
async def test_which_jobs_are_small(
    stage: Stage, changes: dict[str, Any], shop: dict[str, Any], shares: bool
) -> None:
    runner = Crew(stage, **shop).runners[0]
    name = await stage.submit("j1", hyper_parameters=HyperParameters(), **changes)
    claim = await stage.claim()
    vplm = await stage.storage.vplm(VplmName.parse(VPLM))
    job = stage.storage.kept[str(name)].job
    passenger = await runner._passenger(claim, job, vplm)
    assert (passenger.backbone, passenger.shares) == ("toy", shares)
    dead = replace(claim, deaths=1)
    assert not (await runner._passenger(dead, job, vplm)).shares
