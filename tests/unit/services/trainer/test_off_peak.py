"""Windows, weights, caps and priorities in the queue itself, against a real server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.trainer.queueing.queue import JobQueue, QueueSettings, QueueState
from services.trainer.queueing.turns import Share, Shares
from services.trainer.queueing.windows import Windows
from services.trainer.worker.runner import Runner
from smile.names import JobName, tenant_id
from smile.resources import JobState, TrainingJob, TrainingRecord, When
from smile.store.redis import Redis
from tests.unit.services.trainer.fakes import FakeStorage
from tests.unit.services.trainer.test_runner import (
    QUICK,
    VPLM,
    Stage,
    storage,  # noqa: F401 -- a fixture
    toy,  # noqa: F401 -- a fixture
)

pytestmark = pytest.mark.asyncio
NIGHTS = Windows.parse("mon-sun 22:00-06:00", "Europe/Berlin")
DAY = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
NIGHT = datetime(2026, 11, 20, 23, 0, tzinfo=UTC)
OPENS = datetime(2026, 11, 20, 21, 0, tzinfo=UTC)


class Clock:
    def __init__(self, now: datetime = DAY) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def queue_of(redis: Redis, clock: Clock, shares: Shares | None = None) -> JobQueue:
    settings = QueueSettings(lease_s=5.0, shares=shares or Shares(), windows=NIGHTS)
    return JobQueue(redis, settings, clock=clock)


async def put(
    queue: JobQueue, job: str, *, when: When = When.NOW, priority: int = 0, tenant: str = "acme"
) -> JobName:
    name = JobName(tenant_id(tenant), job)
    made = TrainingJob(str(name), "v", "d", when=when, priority=priority)
    assert await queue.enqueue(TrainingRecord(made))
    return name


async def order(queue: JobQueue, count: int) -> list[str]:
    found = [await queue.claim(f"w{index}") for index in range(count)]
    return [claim.name.job for claim in found if claim is not None]


async def test_a_job_for_the_night_waits_for_it(redis: Redis, clock: Clock) -> None:
    queue = queue_of(redis, clock)
    await put(queue, "late", when=When.OFF_PEAK)
    await put(queue, "soon")
    assert await order(queue, 2) == ["soon"]
    clock.now = NIGHT
    claim = await queue.claim("w9")
    assert claim is not None
    assert (claim.name.job, claim.when) == ("late", When.OFF_PEAK)


async def test_at_night_arrival_decides_again(redis: Redis, clock: Clock) -> None:
    queue = queue_of(redis, clock)
    for job, when in (("a", When.OFF_PEAK), ("b", When.NOW), ("c", When.OFF_PEAK)):
        await put(queue, job, when=when)
    clock.now = NIGHT
    assert await order(queue, 3) == ["a", "b", "c"]


async def test_priority_goes_before_arrival_inside_a_tenant_alone(
    redis: Redis, clock: Clock
) -> None:
    queue = queue_of(redis, clock)
    for job, priority in (("a", 0), ("b", -3), ("c", 7), ("d", 7)):
        await put(queue, job, priority=priority)
    await put(queue, "other", tenant="b", priority=-10)
    ahead = [(await queue.look([JobName(tenant_id("acme"), j)]))[0].jobs_ahead for j in "cdab"]
    assert await order(queue, 5) == ["c", "other", "d", "a", "b"]
    assert ahead == [0, 2, 3, 4]


async def test_a_weight_of_three_gets_three_turns_of_four(redis: Redis, clock: Clock) -> None:
    queue = queue_of(redis, clock, Shares(Share(), {tenant_id("acme"): Share(weight=3)}))
    for index in range(12):
        await put(queue, f"a{index}")
        await put(queue, f"b{index}", tenant="b")
    served = [job[0] for job in await order(queue, 8)]
    assert served.count("a") == 6
    assert "bb" not in "".join(served)


async def test_a_cap_is_kept_and_the_next_job_starts_when_one_ends(
    redis: Redis, clock: Clock
) -> None:
    queue = queue_of(redis, clock, Shares(Share(running_max=2)))
    for index in range(4):
        await put(queue, f"a{index}")
    first = await queue.claim("w1")
    assert first is not None
    assert await queue.claim("w2") is not None
    assert await queue.claim("w3") is None
    assert await queue.finish(first, JobState.SUCCEEDED)
    third = await queue.claim("w3")
    assert third is not None
    assert await queue.claim("w4") is None
    assert await queue.give_back(third)
    assert await queue.claim("w4") is not None


async def test_workers_that_race_take_every_job_once(redis: Redis, clock: Clock) -> None:
    queue = queue_of(redis, clock, Shares(Share(running_max=5)))
    for index in range(12):
        await put(queue, f"a{index}", tenant=f"t{index % 3}")
    claims = await asyncio.gather(*(queue.claim(f"w{index}") for index in range(30)))
    held = [claim.name for claim in claims if claim is not None]
    assert len(held) == len(set(held))
    rest = [await queue.claim(f"x{index}") for index in range(12)]
    held += [claim.name for claim in rest if claim is not None]
    assert len(held) == len(set(held)) == 12


async def test_the_start_is_estimated_from_how_long_jobs_take(redis: Redis, clock: Clock) -> None:
    queue = queue_of(redis, clock)
    first = await put(queue, "a")
    assert (await queue.look([first]))[0].starts_at is None, "no job was done yet"
    claim = await queue.claim("w1")
    assert claim is not None
    await asyncio.sleep(0.1)
    await queue.finish(claim, JobState.SUCCEEDED)
    soon, later = await put(queue, "b"), await put(queue, "c")
    night = await put(queue, "n", when=When.OFF_PEAK)
    sightings = await queue.look([soon, later, night])
    assert sightings[0].starts_at == DAY
    waits = [s.starts_at - DAY for s in sightings[:2] if s.starts_at is not None]
    assert timedelta(seconds=0.09) < waits[1] < timedelta(seconds=5)
    starts = sightings[2].starts_at
    assert starts is not None
    assert OPENS < starts < OPENS + timedelta(seconds=10)


async def test_a_running_job_yields_at_the_end_of_the_window_and_goes_on_in_the_next(
    redis: Redis,
    clock: Clock,
    storage: FakeStorage,  # noqa: F811
    toy: Path,  # noqa: F811
) -> None:
    """It keeps what it did, and ends with the bytes of a job that was never sent away."""
    stage = Stage(storage, redis, toy)
    clock.now = NIGHT
    settings = QueueSettings(lease_s=1.0, windows=NIGHTS)
    stage.queue = JobQueue(redis, settings, clock=clock)
    stage.runner = Runner(stage.shop, stage.queue, stage.ending)
    long = replace(QUICK, epochs=60)
    name = await stage.submit(hyper_parameters=long, when=When.OFF_PEAK)
    working = asyncio.create_task(stage.runner.work(await stage.claim()))
    async with asyncio.timeout(30):
        while (await stage.queue.look([name]))[0].progress.step < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        clock.now = DAY
        await working
    (sighting,) = await stage.queue.look([name])
    assert sighting.state is QueueState.QUEUED
    assert await stage.queue.claim("w2") is None
    clock.now = NIGHT
    heir = await stage.claim("w2")
    assert (heir.deaths, heir.attempt) == (0, 2)
    await stage.runner.work(heir)
    job = storage.kept[str(name)].job
    assert job.state is JobState.SUCCEEDED
    await stage.run(job="whole", hyper_parameters=long)
    assert len({version.digest for version, _, _ in storage.stored[VPLM]}) == 1


async def test_a_job_for_now_stays_when_the_window_ends(
    redis: Redis,
    clock: Clock,
    storage: FakeStorage,  # noqa: F811
    toy: Path,  # noqa: F811
) -> None:
    stage = Stage(storage, redis, toy)
    stage.queue = JobQueue(redis, QueueSettings(lease_s=1.0, windows=NIGHTS), clock=clock)
    stage.runner = Runner(stage.shop, stage.queue, stage.ending)
    assert (await stage.run()).state is JobState.SUCCEEDED
