"""Job records: created once, changed under the fence, listed newest first; and curves."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.storage import keys, training_records
from smile.errors import (
    Aborted,
    DataCorrupted,
    FailedPrecondition,
    InvalidArgument,
    InvalidName,
    NotFound,
)
from smile.names import JobName, TenantId
from smile.resources import (
    DatasetReport,
    JobError,
    JobProgress,
    JobState,
    Metric,
    RowProblem,
    TrainingJob,
    TrainingRecord,
)
from tests.unit.services.storage.world import ACME, OTHER, World, vplm

pytestmark = pytest.mark.asyncio
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def job(name: str = "j1", minutes: int = 0, tenant: TenantId = ACME) -> TrainingJob:
    return TrainingJob(
        f"tenants/{tenant}/trainingJobs/{name}",
        str(vplm()),
        f"tenants/{tenant}/datasets/news",
        create_time=START + timedelta(minutes=minutes),
    )


async def _batches(*batches: tuple[Metric, ...]) -> AsyncIterator[tuple[Metric, ...]]:
    for batch in batches:
        yield batch


async def test_a_record_keeps_everything(world: World) -> None:
    report = DatasetReport(
        3, 2, (RowProblem(2, "label", "EMPTY", "no label"),), 1, {"a": 2}, ("x",)
    )
    full = replace(
        job(),
        state=JobState.FAILED,
        error=JobError("DATASET_INVALID", "one row", report),
        progress=JobProgress("train", 1, 2, 1, 5, float("nan")),
        metrics={"loss": float("inf")},
        start_time=START,
        attempt=2,
    )
    await world.records.create(job())
    await world.records.update(TrainingRecord(full, 3))
    found = await world.records.get(JobName(ACME, "j1"))
    assert math.isnan(found.job.progress.loss)
    assert found == TrainingRecord(replace(full, progress=found.job.progress), 3)


async def test_creating_again_gives_the_stored_record(world: World) -> None:
    await world.records.create(job())
    running = TrainingRecord(replace(job(), state=JobState.RUNNING), 1)
    await world.records.update(running)
    assert await world.records.create(job(minutes=5)) == running
    with pytest.raises(InvalidName):
        await world.records.create(replace(job(), name="tenants/acme/trainingJobs/../x"))
    with pytest.raises(NotFound):
        await world.records.create(job(tenant=OTHER))


async def test_only_the_newest_fence_writes(world: World) -> None:
    await world.records.create(job())
    running = replace(job(), state=JobState.RUNNING)
    await world.records.update(TrainingRecord(running, 2))
    with pytest.raises(Aborted) as caught:
        await world.records.update(TrainingRecord(replace(running, attempt=1), 1))
    assert caught.value.reason == "CONCURRENT_CHANGE"
    await world.records.update(TrainingRecord(replace(running, attempt=2), 2))
    done = TrainingRecord(replace(running, state=JobState.SUCCEEDED), 3)
    await world.records.update(done)
    assert await world.records.update(done) == done  # the answer was lost, say
    with pytest.raises(FailedPrecondition) as finished:
        await world.records.update(TrainingRecord(running, 4))
    assert finished.value.reason == "JOB_FINISHED"
    with pytest.raises(NotFound):
        await world.records.update(TrainingRecord(job("none"), 1))


async def test_the_time_of_creation_stays(world: World) -> None:
    await world.records.create(job())
    moved = replace(job(minutes=60), state=JobState.RUNNING)
    assert (await world.records.update(TrainingRecord(moved, 1))).job.create_time == START
    unnamed = await world.records.create(replace(job("j2"), create_time=None))
    assert unnamed.job.create_time is not None


async def test_newest_first_in_pages(world: World) -> None:
    minutes = {"c": 1, "a": 7, "z": 3, "b": 5, "y": 2}
    for name, at in minutes.items():
        await world.records.create(job(name, at))
    await world.store.put_if_absent(  # of a request that broke off
        keys.job_place(JobName(ACME, "torn"), START + timedelta(minutes=4)), b""
    )
    for size in (1, 2, 4, 5, 100):
        seen: list[str] = []
        token = ""
        while True:
            found, token = await world.records.list_page(ACME, size, token)
            assert len(found) <= size
            seen += [record.job.name.rpartition("/")[2] for record in found]
            if not token:
                break
        assert seen == ["a", "b", "z", "y", "c"]


async def test_pending_jobs_of_all_tenants(world: World) -> None:
    await world.tenant(OTHER)
    for number in range(3):
        await world.records.create(job(f"j{number}"))
        await world.records.create(job(f"j{number}", tenant=OTHER))
    ended = replace(job("j1"), state=JobState.CANCELLED)
    await world.records.update(TrainingRecord(ended, 1))
    names: list[str] = []
    token = ""
    while True:
        found, token = await world.records.list_pending(2, token)
        names += [record.job.name for record in found]
        if not token:
            break
    assert sorted(names) == [
        *(f"tenants/acme/trainingJobs/j{n}" for n in (0, 2)),
        *(f"tenants/other/trainingJobs/j{n}" for n in (0, 1, 2)),
    ]


async def test_curves_come_back(world: World) -> None:
    name = JobName(ACME, "j1")
    await world.records.create(job())
    assert [batch async for batch in world.records.curve(name)] == []
    batches = [
        tuple(Metric("loss", 1 / (step + 1), step, epoch) for step in range(3000))
        for epoch in range(9)
    ]
    nan = (Metric("loss", float("inf"), 1, 1),)
    assert await world.records.put_curve(name, 0, _batches(*batches, nan)) == 27_001
    assert [batch async for batch in world.records.curve(name)] == [*batches, nan]
    assert await world.records.put_curve(name, 0, _batches(nan)) == 1
    assert [batch async for batch in world.records.curve(name)] == [nan]


async def test_a_curve_is_written_by_who_holds_the_job(world: World) -> None:
    name, point = JobName(ACME, "j1"), (Metric("loss", 1.0, 1, 1),)
    await world.records.create(job())
    running = replace(job(), state=JobState.RUNNING)
    await world.records.update(TrainingRecord(running, 2))
    with pytest.raises(Aborted, match="fence 2, this is 1"):
        await world.records.put_curve(name, 1, _batches(point))
    assert await world.records.put_curve(name, 2, _batches(point)) == 1
    await world.records.update(TrainingRecord(replace(job(), state=JobState.FAILED), 2))
    with pytest.raises(FailedPrecondition, match="has ended as 'failed'"):
        await world.records.put_curve(name, 3, _batches(point))
    assert [batch async for batch in world.records.curve(name)] == [point]


async def test_curves_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_records, "CURVE_POINTS_MAX", 3)
    name = JobName(ACME, "j1")
    await world.records.create(job())
    point = Metric("loss", 1.0, 1, 1)
    with pytest.raises(InvalidArgument, match="3"):
        await world.records.put_curve(name, 0, _batches((point,) * 2, (point,) * 2))
    assert [batch async for batch in world.records.curve(name)] == []
    with pytest.raises(NotFound):
        await world.records.put_curve(JobName(ACME, "none"), 0, _batches((point,)))


@pytest.mark.parametrize("damage", [b"", b"[]", b"junk\n", b"[[1]]\n", b'[["l",1,1,1]]\n'])
async def test_damaged_curves_end_badly(world: World, damage: bytes) -> None:
    name = JobName(ACME, "j1")
    await world.records.create(job())
    await world.store.put_if_absent(keys.curve(name), damage)
    with pytest.raises(DataCorrupted):
        async for _ in world.records.curve(name):
            pass
