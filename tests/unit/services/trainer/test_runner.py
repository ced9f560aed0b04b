"""A job from its record to its end, with a real queue, the toy backbone and a storage in memory."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.trainer.backbones import loaded
from services.trainer.metering import TrainingMeter
from services.trainer.queueing.events import JobEvent, MetricsEvent
from services.trainer.queueing.queue import Claim, JobQueue, QueueSettings, QueueState
from services.trainer.training.loop_events import LoopEvent, StepDone
from services.trainer.worker.attempt import Workshop
from services.trainer.worker.report import Report
from services.trainer.worker.runner import Runner
from smile.model.backbone import Backbone
from smile.model.sources import BackboneSource
from smile.model.specs import HeadSpec, ModuleSpec, PetKind, PetSpec, Task
from smile.model.toy import write_toy_backbone
from smile.names import JobName, VplmName, tenant_id
from smile.resources import (
    DatasetFormat,
    HyperParameters,
    JobState,
    Optimizer,
    TrainingJob,
    TrainingRecord,
    Vplm,
)
from smile.store.redis import Redis
from tests.unit.services.trainer.fakes import Crash, FakeStorage

pytestmark = pytest.mark.asyncio
LEASE_S = 1.0
VPLM = "tenants/acme/vplms/topics"
DATASET = "tenants/acme/datasets/news"
QUICK = HyperParameters(epochs=3, learning_rate=1e-2, batch_size=16, validation_ratio=0.2)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def storage(toy: Path) -> FakeStorage:
    backbone = Backbone.load(toy, "toy")
    pet = PetSpec(PetKind.PFEIFFER, rank=4).placed(backbone.shape)
    head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("sport", "money"))
    storage = FakeStorage()
    storage.vplms[VPLM] = Vplm(VPLM, ModuleSpec("toy", backbone.digest, pet, head), uid="u1")
    storage.add_dataset(DATASET, rows(), DatasetFormat.JSONL)
    return storage


def rows(count: int = 100) -> bytes:
    draw = random.Random(1)
    words = {"sport": ["game", "play", "win", "goal"], "money": ["market", "price", "bank", "sell"]}
    lines = []
    for index in range(count):
        label = ("sport", "money")[index % 2]
        text = " ".join(draw.choices(words[label], k=5))
        lines.append(json.dumps({"text": text, "label": label}))
    return "\n".join(lines).encode()


class Stage:
    """Everything around a runner."""

    def __init__(self, storage: FakeStorage, redis: Redis, toy: Path) -> None:
        self.storage = storage
        self.queue = JobQueue(redis, QueueSettings(lease_s=LEASE_S))
        self.ending = asyncio.Event()
        source = BackboneSource.parse(f"toy=dir:{toy}")
        self.toy_path = toy
        self.shop = Workshop(storage, loaded((source,)), None, 1 << 20)
        self.runner = self.runner_of(self.shop)

    def runner_of(self, shop: Workshop, meter: TrainingMeter | None = None) -> Runner:
        return Runner(shop, self.queue, self.ending, meter=meter)

    async def submit(self, job: str = "j1", **changes: Any) -> JobName:
        name = JobName(tenant_id("acme"), job)
        made = TrainingJob(str(name), VPLM, DATASET, hyper_parameters=QUICK)
        record = await self.storage.create_record(replace(made, **changes))
        await self.queue.enqueue(record)
        return name

    async def claim(self, consumer: str = "w1") -> Claim:
        claim = await self.queue.claim(consumer)
        assert claim is not None
        return claim

    async def run(self, **changes: Any) -> TrainingJob:
        name = await self.submit(**changes)
        await self.runner.work(await self.claim())
        return self.storage.kept[str(name)].job

    async def crash(self, call: str) -> None:
        """One attempt that dies right after `call` took effect."""
        self.storage.fail_after.add(call)
        claim = await self.claim()
        with pytest.raises(Crash):
            await self.runner.work(claim)
        await asyncio.sleep(LEASE_S * 1.2)

    async def crash_past(self, name: JobName, step: int) -> None:
        """One attempt that dies amid an epoch, `step` steps on or later, once a checkpoint is
        kept.
        """
        hear = Report.hear

        def dies(report: Report, event: LoopEvent) -> None:
            hear(report, event)
            if isinstance(event, StepDone) and event.step >= step:
                time.sleep(0.05)  # the loop may store what was taken
                if str(name) in self.storage.checkpoints:
                    raise Crash("amid an epoch")

        claim = await self.claim()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Report, "hear", dies)
            with pytest.raises(Crash):
                await self.runner.work(claim)
        await asyncio.sleep(LEASE_S * 1.2)

    async def repaired(self, name: JobName) -> TrainingJob:
        heir = await self.claim("w2")
        assert heir.deaths == 1
        await self.runner.work(heir)
        assert (await self.queue.look([name]))[0].state is QueueState.SUCCEEDED
        return self.storage.kept[str(name)].job


@pytest.fixture
def stage(storage: FakeStorage, redis: Redis, toy: Path) -> Stage:
    return Stage(storage, redis, toy)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_job_ends_with_a_served_version_and_its_story(stage: Stage) -> None:
    job = await stage.run()
    assert job.state is JobState.SUCCEEDED
    assert (job.version, job.attempt) == (f"{VPLM}/versions/1", 1)
    assert job.metrics["validation_accuracy"] >= 0.75
    assert stage.storage.vplms[VPLM].aliases == {"serving": 1}
    assert job.start_time and job.end_time and job.progress.step == job.progress.steps_total == 15
    curve = stage.storage.curves[job.name]
    assert [m.step for m in curve if m.name == "train_loss"] == list(range(1, 16))
    assert [m.epoch for m in curve if m.name == "validation_accuracy"] == [1, 2, 3]
    events = [e for _, e in await stage.queue.events(JobName.parse(job.name), after="0", wait_s=0)]
    assert [m for e in events if isinstance(e, MetricsEvent) for m in e.metrics] == curve
    states = [event.state for event in events if isinstance(event, JobEvent)]
    assert (states[0], states[-1]) == (JobState.QUEUED, JobState.SUCCEEDED)


async def test_no_alias_moves_unasked(stage: Stage) -> None:
    job = await stage.run(promote_alias="")
    assert job.state is JobState.SUCCEEDED
    assert stage.storage.aliases == []


async def test_training_goes_on_from_a_version(stage: Stage) -> None:
    first = await stage.run(hyper_parameters=replace(QUICK, epochs=12))
    second = await stage.run(job="j2", base_version=1)
    assert second.version == f"{VPLM}/versions/2"
    losses = [stage.storage.curves[job.name][0].value for job in (first, second)]
    assert losses[1] < losses[0] / 2


@pytest.mark.parametrize("call", ["put_version", "set_alias", "update_record_done"])
async def test_a_death_during_publication_is_repaired_without_a_second_version(
    stage: Stage, call: str
) -> None:
    name = await stage.submit()
    await stage.crash(call)
    job = await stage.repaired(name)
    assert (job.state, job.version) == (JobState.SUCCEEDED, f"{VPLM}/versions/1")
    assert len(stage.storage.stored[VPLM]) == 1
    assert stage.storage.vplms[VPLM].aliases == {"serving": 1}


async def test_bad_rows_fail_the_job_with_their_report(stage: Stage) -> None:
    bad = rows() + b'\n{"text": "  ", "label": "sport"}\n{"text": "a", "label": "art"}'
    stage.storage.add_dataset(DATASET, bad, DatasetFormat.JSONL)
    job = await stage.run()
    assert job.state is JobState.FAILED
    assert job.error is not None and job.error.dataset_report is not None
    assert job.error.reason == "DATASET_INVALID"
    assert "2 problems in 102 rows" in job.error.message
    found = [(p.row, p.reason) for p in job.error.dataset_report.problems]
    assert found == [(101, "TEXT_EMPTY"), (102, "LABEL_UNKNOWN")]
    assert VPLM not in stage.storage.stored


async def test_a_vplm_deleted_meanwhile_says_so(stage: Stage) -> None:
    name = await stage.submit()
    del stage.storage.vplms[VPLM]
    await stage.runner.work(await stage.claim())
    error = stage.storage.kept[str(name)].job.error
    assert error is not None and error.reason == "VPLM_DELETED"


async def test_a_vplm_made_anew_meanwhile_gets_no_version(stage: Stage) -> None:
    name = await stage.submit(hyper_parameters=replace(QUICK, epochs=30))
    working = asyncio.create_task(stage.runner.work(await stage.claim()))
    await until(
        lambda: "download_dataset" in stage.storage.calls or "dataset" in stage.storage.calls
    )
    stage.storage.vplms[VPLM] = replace(stage.storage.vplms[VPLM], uid="u2")
    await working
    error = stage.storage.kept[str(name)].job.error
    assert error is not None and error.reason == "VPLM_DELETED"
    assert VPLM not in stage.storage.stored


async def test_another_backbone_says_so(stage: Stage) -> None:
    vplm = stage.storage.vplms[VPLM]
    stage.storage.vplms[VPLM] = replace(vplm, spec=replace(vplm.spec, backbone_digest="0" * 64))
    job = await stage.run()
    assert job.error is not None and job.error.reason == "BACKBONE_MISMATCH"


async def test_an_infinite_loss_comes_with_advice(stage: Stage) -> None:
    values = replace(QUICK, learning_rate=1e38, gradient_norm_max=0.0, optimizer=Optimizer.SGD)
    job = await stage.run(hyper_parameters=values)
    assert job.error is not None and job.error.reason == "LOSS_NOT_FINITE"
    assert "learning_rate ten times smaller" in job.error.message


async def test_a_full_disk_tells_the_operator_what_to_do(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    shop = replace(stage.shop, states_bytes_max=0, states_disk_bytes_max=1 << 20)
    stage.runner = Runner(shop, stage.queue, stage.ending)
    job = await stage.run()
    assert job.error is not None and job.error.reason == "DISK_FULL"
    assert "No space left on device" in job.error.message
    assert "SMILE_TRAINER_STATES_DISK_BYTES_MAX" in job.error.message


async def test_an_unforeseen_fault_names_an_incident_and_no_cause(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("another tenant's secret")

    monkeypatch.setattr("services.trainer.worker.attempt.read_dataset", broken)
    job = await stage.run()
    assert job.error is not None and job.error.reason == "INTERNAL"
    assert "incident" in job.error.message and "secret" not in job.error.message


async def test_a_running_job_is_cancelled_between_steps(stage: Stage) -> None:
    name = await stage.submit(hyper_parameters=replace(QUICK, epochs=1000))
    working = asyncio.create_task(stage.runner.work(await stage.claim()))
    async with asyncio.timeout(20):
        while (await stage.queue.look([name]))[0].progress.step == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await stage.queue.cancel(name, "trainer")
        await working
    job = stage.storage.kept[str(name)].job
    assert job.state is JobState.CANCELLED
    assert 0 < job.progress.step < job.progress.steps_total
    assert stage.storage.curves[job.name]
    assert (await stage.queue.look([name]))[0].state is QueueState.CANCELLED
    assert VPLM not in stage.storage.stored


async def test_an_ending_worker_gives_its_job_back(stage: Stage) -> None:
    name = await stage.submit(hyper_parameters=replace(QUICK, epochs=1000))
    working = asyncio.create_task(stage.runner.work(await stage.claim()))
    await asyncio.sleep(0.5)
    stage.ending.set()
    async with asyncio.timeout(10):
        await working
    assert (await stage.queue.look([name]))[0].state is QueueState.QUEUED
    assert (await stage.claim("w2")).deaths == 0


async def test_a_job_whose_workers_die_is_given_up(stage: Stage) -> None:
    name = await stage.submit()
    for number in range(3):
        assert (await stage.claim(f"dies{number}")).deaths == number
        await asyncio.sleep(LEASE_S * 1.1)
    await stage.runner.work(await stage.claim("w4"))
    job = stage.storage.kept[str(name)].job
    assert job.error is not None and job.error.reason == "WORKER_LOST"
    assert [entry async for entry in stage.queue.dead()] == [("acme/j1", "WORKER_LOST")]


async def test_a_zombie_writes_nothing(stage: Stage) -> None:
    """Its lease went to another while it was stopped; the other finished; then it woke up."""
    name = await stage.submit()
    zombie = await stage.claim("zombie")
    await asyncio.sleep(LEASE_S * 1.2)
    await stage.runner.work(await stage.claim("heir"))
    before = stage.storage.kept[str(name)]
    await stage.runner.work(zombie)
    assert stage.storage.kept[str(name)] == before
    assert len(stage.storage.stored[VPLM]) == 1


async def test_storage_away_is_waited_for(stage: Stage) -> None:
    name = await stage.submit()
    stage.storage.away = True
    working = asyncio.create_task(stage.runner.work(await stage.claim()))
    await asyncio.sleep(LEASE_S * 1.5)
    assert await stage.queue.claim("w2") is None, "the lease is renewed meanwhile"
    stage.storage.away = False
    async with asyncio.timeout(20):
        await working
    assert stage.storage.kept[str(name)].job.state is JobState.SUCCEEDED


async def test_a_flushed_queue_makes_the_worker_let_go(stage: Stage, redis: Redis) -> None:
    name = await stage.submit(hyper_parameters=replace(QUICK, epochs=1000))
    working = asyncio.create_task(stage.runner.work(await stage.claim()))
    await asyncio.sleep(0.5)
    await redis.flushall()
    async with asyncio.timeout(10):
        await working
    record = stage.storage.kept[str(name)]
    assert (record.job.state, record.fence) == (JobState.RUNNING, 1)
    await stage.queue.enqueue(TrainingRecord(record.job, record.fence))
    assert (await stage.claim("w2")).fence == 2


async def test_the_version_and_the_job_keep_the_summary(stage: Stage) -> None:
    job = await stage.run()
    (version, _, _) = stage.storage.stored[VPLM][0]
    assert job.summary is not None
    assert job.summary == version.training
    assert [row.label for row in job.summary.classes] == ["sport", "money"]
    assert len(job.summary.spec_digest) == 64
    assert {"torch", "threads", "smile"} <= job.summary.environment.keys()


async def test_two_runs_of_the_same_job_give_the_same_digest(stage: Stage) -> None:
    await stage.run()
    await stage.run(job="j2")
    digests = {version.digest for version in await stage.storage.versions(VplmName.parse(VPLM))}
    assert len(digests) == 1
