"""Watching: from the start, from a token, across lost streams, and long after the end."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
import pytest_asyncio

from services.trainer.queueing.events import JobEvent, MetricsEvent
from services.trainer.queueing.queue import Claim, JobQueue, QueueSettings
from services.trainer.watch import END, Place, Watcher
from smile.errors import InvalidArgument, NotFound, Unavailable
from smile.names import JobName, tenant_id
from smile.resources import JobProgress, JobState, Metric, TrainingEvent, TrainingJob
from smile.store.redis import Redis, connect
from tests.unit.services.trainer.fakes import FakeStorage

pytestmark = pytest.mark.asyncio
NAME = JobName(tenant_id("acme"), "j1")


class Story:
    """A job with a running claim, told step by step."""

    def __init__(self, storage: FakeStorage, queue: JobQueue) -> None:
        self.storage = storage
        self.queue = queue
        self.watcher = Watcher(storage, queue, wait_s=0.1)
        self.claim: Claim | None = None

    async def begin(self) -> None:
        job = TrainingJob(str(NAME), "tenants/acme/vplms/v", "tenants/acme/datasets/d")
        await self.queue.enqueue(await self.storage.create_record(job))
        self.claim = await self.queue.claim("w")

    async def step(self, *steps: int) -> None:
        assert self.claim is not None
        metrics = MetricsEvent(tuple(measured(step) for step in steps))
        progress = JobProgress("training", steps[-1], 9)
        running = JobEvent(JobState.RUNNING, 1, progress)
        await self.queue.beat(self.claim, progress=progress, events=[metrics, running])
        self.storage.curves.setdefault(str(NAME), []).extend(metrics.metrics)

    async def end(self) -> None:
        assert self.claim is not None
        record = self.storage.kept[str(NAME)]
        job = replace(record.job, state=JobState.SUCCEEDED, version="v2")
        await self.storage.update_record(replace(record, job=job, fence=self.claim.fence))
        await self.queue.finish(self.claim, JobState.SUCCEEDED)

    async def told(self, token: str = "") -> list[TrainingEvent]:
        async with asyncio.timeout(10):
            return [event async for event in self.watcher.watch(NAME, token)]

    async def told_some(self) -> list[TrainingEvent]:
        """What can be told now, of a job that goes on."""
        seen: list[TrainingEvent] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                async for event in self.watcher.watch(NAME, ""):
                    seen.append(event)
        return seen


def measured(step: int) -> Metric:
    return Metric("train_loss", 1 / step, step, 1)


def steps(events: list[TrainingEvent]) -> list[int]:
    return [metric.step for event in events for metric in event.metrics]


@pytest_asyncio.fixture
async def story(redis: Redis) -> Story:
    return Story(FakeStorage(), JobQueue(redis, QueueSettings()))


async def test_the_whole_story_ends_with_the_record(story: Story) -> None:
    await story.begin()
    await story.step(1, 2)
    await story.step(3)
    await story.end()
    events = await story.told()
    assert steps(events) == [1, 2, 3]
    states = [event.job.state for event in events if event.job]
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.RUNNING, JobState.SUCCEEDED]
    assert events[-1].job == story.storage.kept[str(NAME)].job
    assert all(event.resume_token for event in events)


async def test_live_events_follow_the_story(story: Story) -> None:
    await story.begin()
    await story.step(1)
    watching = asyncio.create_task(story.told())
    await asyncio.sleep(0.3)
    await story.step(2)
    await asyncio.sleep(0.3)
    await story.end()
    assert steps(await watching) == [1, 2]


async def test_every_token_goes_on_right_after_its_event(story: Story) -> None:
    await story.begin()
    for step in range(1, 4):
        await story.step(step)
    await story.end()
    whole = await story.told()
    for index, event in enumerate(whole):
        assert await story.told(event.resume_token) == whole[index + 1 :]


async def test_an_ended_job_is_told_from_record_and_curve(story: Story, redis: Redis) -> None:
    await story.begin()
    await story.step(*range(1, 1501))
    middle = (await story.told_some())[-1].resume_token
    await story.step(*range(1501, 2001))
    await story.end()
    await redis.flushall()
    events = await story.told()
    assert steps(events) == list(range(1, 2001))
    assert len(events) == 3
    assert steps(await story.told(events[0].resume_token)) == list(range(1001, 2001))
    assert steps(await story.told(middle)) == list(range(1501, 2001))
    assert await story.told(END) == []


async def test_a_stream_lost_meanwhile_is_made_good_by_the_curve(
    story: Story, redis: Redis
) -> None:
    await story.begin()
    await story.step(1, 2)
    seen = await story.told_some()
    await story.step(3)
    await redis.flushall()
    await story.queue.enqueue(story.storage.kept[str(NAME)])
    story.claim = await story.queue.claim("w2")
    watching = asyncio.create_task(story.told(seen[-1].resume_token))
    await asyncio.sleep(0.2)
    await story.step(4)
    await story.end()
    assert steps(await watching) == [3, 4]


async def test_without_the_queue_only_ended_jobs_are_told(story: Story) -> None:
    nowhere = connect("redis://127.0.0.1:1/0")
    cut_off = Watcher(story.storage, JobQueue(nowhere, QueueSettings()))
    await story.begin()
    await story.step(1)
    with pytest.raises(Unavailable):
        await anext(cut_off.watch(NAME, ""))
    await story.end()
    events = [event async for event in cut_off.watch(NAME, "")]
    assert steps(events) == [1]
    assert events[-1].job is not None and events[-1].job.state is JobState.SUCCEEDED
    await nowhere.aclose()


async def test_an_end_the_queue_never_told_is_found_in_the_record(
    story: Story, redis: Redis
) -> None:
    await story.begin()
    watching = asyncio.create_task(story.told())
    await asyncio.sleep(0.2)
    record = story.storage.kept[str(NAME)]
    job = replace(record.job, state=JobState.FAILED)
    await story.storage.update_record(replace(record, job=job, fence=9))
    events = await watching
    assert events[-1].job is not None and events[-1].job.state is JobState.FAILED


@pytest.mark.parametrize("token", ["x", "1-1", "1-1.x", "-.-1", "9" * 150, "1-1.1\n", "../1.1"])
async def test_a_made_up_token_is_refused(story: Story, token: str) -> None:
    await story.begin()
    with pytest.raises(InvalidArgument) as caught:
        await story.told(token)
    assert caught.value.reason == "RESUME_TOKEN_INVALID"


async def test_an_absent_job_is_not_watched(story: Story) -> None:
    with pytest.raises(NotFound):
        await story.told()


async def test_places_are_their_tokens() -> None:
    for place in (Place(), Place("0", 7), Place("17-3", 7)):
        assert Place.parse(place.token) == place
