"""Jobs that go on where an earlier attempt was, with a real queue and a storage in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from services.trainer.queueing.events import MetricsEvent
from services.trainer.training.snapshots import decode
from services.trainer.worker.runner import Runner
from smile.errors import Unavailable
from smile.names import JobName
from smile.resources import JobState, Metric, TrainingJob
from smile.store.redis import Redis
from tests.unit.services.trainer.fakes import FakeStorage
from tests.unit.services.trainer.test_runner import (
    LEASE_S,
    QUICK,
    VPLM,
    Stage,
    storage,  # noqa: F401 -- a fixture
    toy,  # noqa: F401 -- a fixture
)

pytestmark = pytest.mark.asyncio
LONG = replace(QUICK, epochs=12)


@pytest.fixture
def stage(storage: FakeStorage, redis: Redis, toy: Path) -> Stage:  # noqa: F811
    stage = Stage(storage, redis, toy)
    stage.shop = replace(stage.shop, checkpoint_s=0.0)
    stage.runner = Runner(stage.shop, stage.queue, stage.ending)
    return stage


def digest(stage: Stage, job: TrainingJob) -> str:
    versions = [version for version, _, _ in stage.storage.stored[VPLM]]
    return next(version.digest for version in versions if version.name == job.version)


def steps(curve: list[Metric]) -> list[int]:
    return [metric.step for metric in curve if metric.name == "train_loss"]


async def uninterrupted(stage: Stage) -> TrainingJob:
    job = await stage.run(job="whole", hyper_parameters=LONG)
    assert job.state is JobState.SUCCEEDED, job.error
    return job


async def trained_steps(stage: Stage, name: JobName) -> int:
    """Steps that were taken by all attempts, told to watchers one by one."""
    told = await stage.queue.events(name, after="0", wait_s=0)
    metrics = [e.metrics for _, e in told if isinstance(e, MetricsEvent)]
    return len(steps([metric for some in metrics for metric in some]))


async def test_a_worker_that_dies_after_a_checkpoint_costs_only_what_came_after(
    stage: Stage,
) -> None:
    whole = await uninterrupted(stage)
    name = await stage.submit(hyper_parameters=LONG)
    await stage.crash_past(name, 7)
    kept = decode(stage.storage.checkpoints[str(name)]).snapshot
    assert 0 < kept.step < whole.metrics["steps"]
    job = await stage.repaired(name)
    assert job.state is JobState.SUCCEEDED
    assert digest(stage, job) == digest(stage, whole)
    curves = [stage.storage.curves[each.name] for each in (job, whole)]
    assert curves[0] == curves[1]
    assert steps(curves[0]) == list(range(1, int(job.metrics["steps"]) + 1))
    same = {"train_seconds"}
    assert {k: v for k, v in job.metrics.items() if k not in same} == {
        k: v for k, v in whole.metrics.items() if k not in same
    }


async def test_a_job_given_back_goes_on_where_it_was(stage: Stage) -> None:
    whole = await uninterrupted(stage)
    stage.shop = replace(stage.shop, checkpoint_s=3600.0)
    stage.runner = Runner(stage.shop, stage.queue, stage.ending)
    name = await stage.submit(hyper_parameters=LONG)
    working = asyncio.create_task(stage.runner.work(await stage.claim()))
    async with asyncio.timeout(20):
        while (await stage.queue.look([name]))[0].progress.step < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        stage.ending.set()
        await working
    if stage.storage.kept[str(name)].job.state.done:
        pytest.skip("this machine was faster than its watcher")
    assert stage.storage.checkpoints[str(name)]
    stage.ending.clear()
    heir = await stage.claim("w2")
    assert heir.deaths == 0
    await stage.runner.work(heir)
    job = stage.storage.kept[str(name)].job
    assert digest(stage, job) == digest(stage, whole)
    assert stage.storage.curves[job.name] == stage.storage.curves[whole.name]
    assert await trained_steps(stage, name) == job.metrics["steps"], "no step was taken twice"


@pytest.mark.parametrize("spoilt", [b"", b"x" * 100])
async def test_a_damaged_checkpoint_costs_time_and_nothing_else(
    stage: Stage, spoilt: bytes
) -> None:
    whole = await uninterrupted(stage)
    name = await stage.submit(hyper_parameters=LONG)
    await stage.claim("dies")
    stage.storage.checkpoints[str(name)] = spoilt
    await asyncio.sleep(LEASE_S * 1.2)
    job = await stage.repaired(name)
    assert digest(stage, job) == digest(stage, whole)


async def test_a_checkpoint_of_other_rows_is_not_gone_on_with(stage: Stage) -> None:
    other = await stage.submit("other", hyper_parameters=replace(LONG, seed=5))
    await stage.runner.work(await stage.claim())
    left = stage.storage.checkpoints[str(other)]
    whole = await uninterrupted(stage)
    name = await stage.submit(hyper_parameters=LONG)
    await stage.claim("dies")
    stage.storage.checkpoints[str(name)] = left
    await asyncio.sleep(LEASE_S * 1.2)
    job = await stage.repaired(name)
    assert digest(stage, job) == digest(stage, whole)


async def test_a_storage_that_keeps_no_checkpoint_does_not_stop_a_job(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise Unavailable("no checkpoint today")

    monkeypatch.setattr(stage.storage, "put_checkpoint", away)
    job = await stage.run(hyper_parameters=LONG)
    assert job.state is JobState.SUCCEEDED
