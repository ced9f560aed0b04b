"""Sweeps: as many trials at a time as asked for, one best, whoever advances them and how often."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from services.trainer.backbones import described
from services.trainer.jobs import SWEEPS_MAX, Jobs
from services.trainer.queueing.queue import JobQueue, QueueSettings
from services.trainer.queueing.turns import Share, Shares
from services.trainer.sweeps import Sweeps
from services.trainer.watch import Watcher
from smile.errors import InvalidSpec, QuotaExceeded
from smile.model.sources import BackboneSource, describe
from smile.model.specs import HeadSpec, ModuleSpec, PetKind, PetSpec, Task
from smile.model.toy import write_toy_backbone
from smile.names import JobName, tenant_id
from smile.resources import (
    DatasetFormat,
    HyperParameters,
    JobState,
    Selection,
    Sweep,
    TrainingJob,
    TrainingRecord,
    Vplm,
)
from smile.store.redis import Redis
from tests.unit.services.trainer.fakes import Crash, FakeStorage

pytestmark = pytest.mark.asyncio
ACME = tenant_id("acme")
VPLM, DATASET = "tenants/acme/vplms/topics", "tenants/acme/datasets/news"
TRIALS = tuple(HyperParameters(learning_rate=rate) for rate in (1e-3, 2e-3, 3e-3, 4e-3, 5e-3))
WANTED = TrainingJob("", VPLM, DATASET, sweep=Sweep(TRIALS, 2))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def storage(toy: Path) -> FakeStorage:
    info = describe(toy)
    pet = PetSpec(PetKind.BITFIT).placed(info.shape)
    head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b"))
    storage = FakeStorage()
    storage.vplms[VPLM] = Vplm(VPLM, ModuleSpec("toy", info.digest, pet, head), uid="u1")
    storage.add_dataset(DATASET, b"text,label\n", DatasetFormat.CSV)
    return storage


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis, QueueSettings(lease_s=30.0, shares=Shares(Share(queued_max=3))))


@pytest.fixture
def jobs(storage: FakeStorage, queue: JobQueue, toy: Path) -> Jobs:
    return Jobs(storage, queue, described((BackboneSource.parse(f"toy=dir:{toy}"),)))


@pytest.fixture
def sweeps(jobs: Jobs, storage: FakeStorage) -> Sweeps:
    return Sweeps(jobs, storage)


async def submit(jobs: Jobs, wanted: TrainingJob = WANTED) -> JobName:
    return JobName.parse((await jobs.submit(ACME, wanted, str(uuid4()))).name)


async def work(
    storage: FakeStorage, queue: JobQueue, value: float | None, metric: str = "validation_accuracy"
) -> TrainingJob:
    """The next trial, as a worker would leave it: succeeded, or failed where there is no value."""
    claim = await queue.claim("w")
    assert claim is not None
    job = storage.kept[str(claim.name)].job
    state = JobState.FAILED if value is None else JobState.SUCCEEDED
    number = 1 + sum(bool(record.job.version) for record in storage.kept.values())
    ended = replace(
        job,
        state=state,
        end_time=datetime.now(UTC),
        metrics={} if value is None else {metric: value, "validation_loss": value},
        version="" if value is None else f"{VPLM}/versions/{number}",
    )
    await storage.update_record(TrainingRecord(ended, claim.fence))
    await queue.finish(claim, state)
    return ended


def trials(storage: FakeStorage, parent: JobName) -> list[TrainingJob]:
    return [record.job for record in storage.kept.values() if record.job.parent_job == str(parent)]


async def test_the_best_of_all_trials_serves(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue
) -> None:
    name = await submit(jobs)
    values = [0.7, 0.9, None, 0.9, 0.8]
    for ended, value in enumerate(values):
        job = await sweeps.advance(name)
        assert (job.state, job.progress.step, job.progress.steps_total) == (
            JobState.RUNNING, ended, 5,
        )  # fmt: skip
        assert await queue.backlog(ACME) == min(2, 5 - ended)
        assert all(trial.promote_alias == "" for trial in trials(storage, name))
        await work(storage, queue, value)
    job = await sweeps.advance(name)
    assert (job.state, job.sweep and job.sweep.best) == (JobState.SUCCEEDED, 2)
    assert job.version == trials(storage, name)[1].version
    assert job.metrics["validation_accuracy"] == 0.9
    assert storage.aliases == [(job.version, "serving")]
    assert [trial.hyper_parameters for trial in trials(storage, name)] == list(TRIALS)
    assert jobs.sweeps == set()
    assert (await sweeps.advance(name)) == job, "nothing more comes of it"


async def test_of_a_loss_less_is_better(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue
) -> None:
    by_loss = tuple(replace(trial, selection=Selection.LOSS) for trial in TRIALS[:2])
    name = await submit(jobs, replace(WANTED, sweep=Sweep(by_loss, 2)))
    await sweeps.advance(name)
    for value in (0.5, 0.25):
        await work(storage, queue, value, "validation_loss")
    job = await sweeps.advance(name)
    assert job.sweep and (job.sweep.metric, job.sweep.best) == ("validation_loss", 2)


async def test_no_trial_that_succeeded_is_a_failure(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue
) -> None:
    name = await submit(jobs, replace(WANTED, sweep=Sweep(TRIALS[:1])))
    await sweeps.advance(name)
    await work(storage, queue, None)
    job = await sweeps.advance(name)
    assert job.state is JobState.FAILED and job.error and "none of 1 trials" in job.error.message
    assert storage.aliases == []


@pytest.mark.parametrize(
    "call", ["create_record", "update_record", "set_alias", "update_record_done"]
)
async def test_a_crash_anywhere_costs_nothing(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue, call: str
) -> None:
    name = await submit(jobs, replace(WANTED, sweep=Sweep(TRIALS[:3], 1)))
    crashes = 0
    for value in (0.1, 0.3, 0.2):
        storage.fail_after.add(call)
        for _ in range(2):
            try:
                await sweeps.advance(name)
            except Crash:
                crashes += 1
        storage.fail_after.discard(call)
        await jobs.reconcile()  # a trial may be recorded and not queued
        await work(storage, queue, value)
    storage.fail_after.add(call)
    for _ in range(2):
        try:
            job = await sweeps.advance(name)
        except Crash:
            crashes += 1
    assert crashes
    assert (job.state, len(trials(storage, name))) == (JobState.SUCCEEDED, 3)
    assert set(storage.aliases) == {(job.version, "serving")}


async def test_two_trainers_advance_one_sweep(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue, toy: Path
) -> None:
    other = Jobs(storage, queue, described((BackboneSource.parse(f"toy=dir:{toy}"),)))
    name = await submit(jobs)
    await other.reconcile()
    assert other.sweeps == {name}
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        await asyncio.gather(sweeps.advance(name), Sweeps(other, storage).advance(name))
        assert await queue.backlog(ACME) <= 2
        await work(storage, queue, value)
    await asyncio.gather(sweeps.advance(name), Sweeps(other, storage).advance(name))
    job = storage.kept[str(name)].job
    assert job.sweep and (job.state, job.sweep.best) == (JobState.SUCCEEDED, 5)
    assert len(trials(storage, name)) == 5


async def test_stopping_ends_what_waits_and_begins_no_more(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue
) -> None:
    name = await submit(jobs)
    await sweeps.advance(name)
    await work(storage, queue, 0.5)
    stopping = await jobs.cancel(name)
    assert stopping.sweep and stopping.sweep.stopping and not stopping.state.done
    assert (await jobs.cancel(name)).sweep == stopping.sweep
    await sweeps.advance(name)
    job = await sweeps.advance(name)
    assert job.state is JobState.CANCELLED and len(trials(storage, name)) == 2
    assert storage.aliases == [] and await queue.backlog(ACME) == 0


async def test_a_stop_is_not_written_over_by_who_read_before(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue
) -> None:
    name = await submit(jobs)
    before = await storage.record(name)
    await jobs.cancel(name)
    late = TrainingRecord(replace(before.job, priority=1), before.fence)
    with pytest.raises(Exception, match="fence"):
        await storage.update_record(late)
    assert (await sweeps.advance(name)).state is JobState.CANCELLED


async def test_trials_wait_while_the_tenants_queue_is_full(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue
) -> None:
    for _ in range(2):
        await jobs.submit(ACME, replace(WANTED, sweep=None), str(uuid4()))
    name = await submit(jobs)
    job = await sweeps.advance(name)
    assert job.sweep and len(job.sweep.outcomes) == 1 and job.state is JobState.RUNNING
    await work(storage, queue, 0.5)
    job = await sweeps.advance(name)
    assert job.sweep and len(job.sweep.outcomes) == 2


async def test_a_vplm_that_is_gone_ends_the_sweep(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue
) -> None:
    name = await submit(jobs, replace(WANTED, sweep=Sweep(TRIALS, 1)))
    await sweeps.advance(name)
    await work(storage, queue, 0.5)
    del storage.vplms[VPLM]
    job = await sweeps.advance(name)
    assert job.state is JobState.FAILED and job.error
    assert job.error.message.startswith("trial 2: ")


@pytest.mark.parametrize(
    ("sweep", "why"),
    [
        (Sweep(()), "sweep.trials must be between 1 and 256, got 0"),
        (Sweep(TRIALS * 60), "sweep.trials must be between 1 and 256, got 300"),
        (Sweep(TRIALS, 65), "sweep.concurrency_max must be between 1 and 64, got 65"),
        (Sweep((HyperParameters(), HyperParameters(epochs=0))), "trial 2: epochs must be"),
        (Sweep((HyperParameters(validation_ratio=0),)), "compared on validation rows"),
        (
            Sweep((HyperParameters(), HyperParameters(selection=Selection.LOSS))),
            "select by the same metric",
        ),
    ],
)
async def test_sweeps_that_cannot_be(
    jobs: Jobs, storage: FakeStorage, sweep: Sweep, why: str
) -> None:
    with pytest.raises(InvalidSpec, match=why):
        await submit(jobs, replace(WANTED, sweep=sweep))
    assert storage.kept == {}


async def test_a_tenant_has_so_many_sweeps(jobs: Jobs) -> None:
    for _ in range(SWEEPS_MAX):
        await submit(jobs)
    with pytest.raises(QuotaExceeded, match=f"at most {SWEEPS_MAX}") as caught:
        await submit(jobs)
    assert caught.value.reason == "TOO_MANY_SWEEPS"


async def test_watching_tells_of_every_trial_that_ends(
    jobs: Jobs, sweeps: Sweeps, storage: FakeStorage, queue: JobQueue
) -> None:
    name = await submit(jobs, replace(WANTED, sweep=Sweep(TRIALS[:2], 1)))
    seen: list[tuple[JobState, int, str]] = []

    async def watch() -> None:
        async for event in Watcher(storage, queue, wait_s=0.01).watch(name, ""):
            assert event.job is not None
            seen.append((event.job.state, event.job.progress.step, event.resume_token))

    watching = asyncio.create_task(watch())
    for value in (0.1, 0.2):
        await sweeps.advance(name)
        await work(storage, queue, value)
    await sweeps.advance(name)
    await asyncio.wait_for(watching, 10)
    assert seen[-1] == (JobState.SUCCEEDED, 2, "end")
    assert {state for state, _, _ in seen[:-1]} <= {JobState.RUNNING}
    resumed = [event async for event in Watcher(storage, queue).watch(name, "-.1")]
    assert [event.resume_token for event in resumed] == ["end"]
