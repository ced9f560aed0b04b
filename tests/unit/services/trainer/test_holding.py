"""Holding a job while the queue comes and goes."""

from __future__ import annotations

import asyncio
import errno

import pytest

from services.trainer.queueing.queue import Beat, Claim, JobQueue, QueueSettings
from services.trainer.training.loop_events import Encoding, Planned, StepDone
from services.trainer.worker.failures import explained
from services.trainer.worker.holding import Holding, LetGo
from services.trainer.worker.report import Report, Stopped
from smile.errors import DataCorrupted, NotFound, Unavailable
from smile.names import JobName, tenant_id
from smile.resources import JobState, TrainingJob, TrainingRecord
from smile.store.redis import Redis

pytestmark = pytest.mark.asyncio
LEASE_S = 0.5
NAME = JobName(tenant_id("acme"), "j1")


class FragileQueue(JobQueue):
    """A queue that may be away."""

    away = False

    async def beat(self, claim: Claim, **rest: object) -> Beat:
        if self.away:
            raise Unavailable("Redis is away")
        return await super().beat(claim, **rest)  # type: ignore[arg-type]


async def holding(redis: Redis) -> tuple[FragileQueue, Holding]:
    queue = FragileQueue(redis, QueueSettings(lease_s=LEASE_S))
    await queue.enqueue(TrainingRecord(TrainingJob(str(NAME), "v", "d")))
    claim = await queue.claim("w")
    assert claim is not None
    return queue, Holding(queue, claim, Report(1), asyncio.Event())


async def test_a_short_absence_loses_neither_lease_nor_events(redis: Redis) -> None:
    queue, held = await holding(redis)
    keeping = asyncio.create_task(held.keep())
    queue.away = True
    held.report.hear(Planned(9, 1, 8, 1, 9, 9))
    held.report.hear(StepDone(1, 1, 0.5, 0.1))
    await asyncio.sleep(LEASE_S * 0.7)
    queue.away = False
    await asyncio.sleep(LEASE_S)
    assert not keeping.done()
    assert await held.finish(JobState.SUCCEEDED, "")
    metrics = [
        metric.step
        for _, event in await queue.events(NAME, after="0", wait_s=0)
        for metric in getattr(event, "metrics", ())
    ]
    assert metrics == [1, 1]
    keeping.cancel()


async def test_an_absence_longer_than_the_lease_ends_the_work(redis: Redis) -> None:
    queue, held = await holding(redis)
    queue.away = True
    async with asyncio.timeout(LEASE_S * 6):
        assert await held.keep() is LetGo.LEASE_LOST


async def test_a_settled_outcome_is_not_cancelled(redis: Redis) -> None:
    queue, held = await holding(redis)
    held.settled = True
    keeping = asyncio.create_task(held.keep())
    await queue.cancel(NAME, "trainer")
    await asyncio.sleep(LEASE_S)
    assert not keeping.done()
    keeping.cancel()


async def test_a_stopped_report_ends_the_thread_at_its_next_word() -> None:
    report = Report(1)
    report.hear(Encoding(0, 1))
    report.stop.set()
    with pytest.raises(Stopped):
        report.hear(StepDone(1, 1, 0.5, 0.1))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "OUT_OF_MEMORY"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "OUT_OF_MEMORY"),
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "DISK_FULL"),
        (OSError(errno.EIO, "what?"), "INTERNAL"),
        (NotFound("gone", metadata={"resource": "tenants/a/vplms/v"}), "VPLM_DELETED"),
        (NotFound("gone", metadata={"resource": "tenants/a/datasets/d"}), "DATASET_DELETED"),
        (
            NotFound("gone", metadata={"resource": "tenants/a/vplms/v/versions/3"}),
            "VERSION_DELETED",
        ),
        (DataCorrupted("bad bytes"), "DATA_CORRUPTED"),
        (RuntimeError("what?"), "INTERNAL"),
    ],
)
async def test_every_cause_has_a_reason(error: Exception, reason: str) -> None:
    told = explained(error, "job")
    assert told.reason == reason
    assert "what?" not in told.message
