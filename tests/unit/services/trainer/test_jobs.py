"""Jobs as their owners see them, over a real queue and a storage in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from services.trainer.backbones import described
from services.trainer.jobs import Jobs
from services.trainer.queueing.queue import JobQueue, QueueSettings
from services.trainer.queueing.turns import Share, Shares
from smile.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvalidSpec,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from smile.model.sources import BackboneSource, describe
from smile.model.specs import HeadSpec, ModuleSpec, PetKind, PetSpec, Task
from smile.model.toy import write_toy_backbone
from smile.names import JobName, tenant_id
from smile.resources import (
    ColumnMapping,
    DatasetFormat,
    HyperParameters,
    JobProgress,
    JobState,
    TrainingJob,
    Vplm,
)
from smile.store.redis import Redis, connect
from tests.unit.services.trainer.fakes import FakeStorage

pytestmark = pytest.mark.asyncio
ACME = tenant_id("acme")
VPLM, DATASET = "tenants/acme/vplms/topics", "tenants/acme/datasets/news"
WANTED = TrainingJob("", VPLM, DATASET)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def storage(toy: Path) -> FakeStorage:
    info = describe(toy)
    pet = PetSpec(PetKind.BITFIT).placed(info.shape)
    storage = FakeStorage()
    for name, head in (
        ("topics", HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b"))),
        ("nearest", HeadSpec(Task.EMBEDDING)),
    ):
        full = f"tenants/acme/vplms/{name}"
        storage.vplms[full] = Vplm(full, ModuleSpec("toy", info.digest, pet, head), uid="u1")
    storage.add_dataset(DATASET, b"text,label\n", DatasetFormat.CSV)
    return storage


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis, QueueSettings(lease_s=0.3, shares=Shares(Share(queued_max=3))))


@pytest.fixture
def jobs(storage: FakeStorage, queue: JobQueue, toy: Path) -> Jobs:
    return Jobs(storage, queue, described((BackboneSource.parse(f"toy=dir:{toy}"),)))


async def submit(jobs: Jobs, **changes: object) -> TrainingJob:
    return await jobs.submit(ACME, replace(WANTED, **changes), str(uuid4()))  # type: ignore[arg-type]


async def test_a_job_is_durable_and_queued_when_it_is_acknowledged(
    jobs: Jobs, storage: FakeStorage, queue: JobQueue
) -> None:
    first, second = await submit(jobs), await submit(jobs)
    assert (first.state, first.queue_position, second.queue_position) == (JobState.QUEUED, 0, 1)
    assert storage.kept[first.name].job.create_time is not None
    claim = await queue.claim("w")
    assert claim is not None and str(claim.name) == first.name


async def test_the_same_request_gives_the_same_job(jobs: Jobs, queue: JobQueue) -> None:
    request = str(uuid4())
    made = await asyncio.gather(*(jobs.submit(ACME, WANTED, request) for _ in range(5)))
    other = replace(WANTED, hyper_parameters=HyperParameters(epochs=9))
    made.append(await jobs.submit(ACME, other, request))
    assert len({job.name for job in made}) == 1
    assert made[-1].hyper_parameters.epochs == WANTED.hyper_parameters.epochs
    assert await queue.backlog(ACME) == 1
    assert (await submit(jobs)).name != made[0].name


async def test_another_tenant_never_shares_a_job_id(jobs: Jobs, storage: FakeStorage) -> None:
    request = str(uuid4())
    mine = await jobs.submit(ACME, WANTED, request)
    theirs = await jobs.submit(tenant_id("rival"), WANTED, request)
    assert mine.name.rpartition("/")[2] != theirs.name.rpartition("/")[2]


async def test_validate_only_leaves_nothing(
    jobs: Jobs, storage: FakeStorage, queue: JobQueue
) -> None:
    job = await jobs.submit(ACME, WANTED, str(uuid4()), validate_only=True)
    assert job.vplm == VPLM
    assert storage.kept == {}
    assert await queue.backlog(ACME) == 0


async def test_every_wrong_hyper_parameter_is_named_with_limit_and_value(jobs: Jobs) -> None:
    wrong = HyperParameters(
        epochs=0,
        learning_rate=-1,
        batch_size=2000,
        weight_decay=2,
        warmup_ratio=float("nan"),
        seed=-1,
        validation_ratio=0.95,
        gradient_norm_max=-1,
        tokens_max=9999,
    )
    with pytest.raises(InvalidSpec) as caught:
        await submit(jobs, hyper_parameters=wrong)
    told = dict(caught.value.violations)
    assert set(told) == {
        f"hyper_parameters.{name}"
        for name in (
            "epochs", "learning_rate", "batch_size", "weight_decay", "warmup_ratio", "seed",
            "validation_ratio", "gradient_norm_max", "tokens_max",
        )
    }  # fmt: skip
    assert told["hyper_parameters.batch_size"].endswith("between 1 and 1024, got 2000")
    assert told["hyper_parameters.learning_rate"].endswith("above 0 and at most 10, got -1")
    assert "backbone's 128" in told["hyper_parameters.tokens_max"]


async def test_early_stopping_needs_validation_rows(jobs: Jobs) -> None:
    values = HyperParameters(early_stopping_epochs=2, validation_ratio=0.0)
    with pytest.raises(InvalidSpec, match="needs validation rows"):
        await submit(jobs, hyper_parameters=values)


@pytest.mark.parametrize(
    "columns", [ColumnMapping("x", "x"), ColumnMapping(pair="other"), ColumnMapping("a", "b", "a")]
)
async def test_columns_must_fit_the_task(jobs: Jobs, columns: ColumnMapping) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await submit(jobs, columns=columns)
    assert caught.value.reason == "COLUMNS_INVALID"


async def test_pairs_fit_embeddings(jobs: Jobs) -> None:
    columns = ColumnMapping(pair="other")
    job = await submit(jobs, columns=columns, vplm="tenants/acme/vplms/nearest")
    assert job.columns == columns


@pytest.mark.parametrize(
    "changes",
    [
        {"vplm": "tenants/acme/vplms/nobody"},
        {"dataset": "tenants/acme/datasets/nothing"},
        {"validation_dataset": "tenants/acme/datasets/nothing"},
        {"base_version": 7},
    ],
)
async def test_what_is_not_there_is_told_before_anything_is_kept(
    jobs: Jobs, storage: FakeStorage, changes: dict[str, object]
) -> None:
    with pytest.raises(NotFound):
        await submit(jobs, **changes)
    assert storage.kept == {}


async def test_another_backbone_is_refused(jobs: Jobs, storage: FakeStorage) -> None:
    vplm = storage.vplms[VPLM]
    for spec, reason in (
        (replace(vplm.spec, backbone="other"), "BACKBONE_UNKNOWN"),
        (replace(vplm.spec, backbone_digest="0" * 64), "BACKBONE_MISMATCH"),
    ):
        storage.vplms[VPLM] = replace(vplm, spec=spec)
        with pytest.raises(FailedPrecondition) as caught:
            await submit(jobs)
        assert caught.value.reason == reason


async def test_a_full_backlog_refuses_and_keeps_nothing(jobs: Jobs, storage: FakeStorage) -> None:
    for _ in range(3):
        await submit(jobs)
    with pytest.raises(QuotaExceeded, match="at most 3 .* 3 are"):  # noqa: RUF043
        await submit(jobs)
    assert len(storage.kept) == 3


async def test_a_queue_that_fails_after_the_record_is_completed_by_the_retry(
    jobs: Jobs, storage: FakeStorage, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> bool:
        raise Unavailable("Redis is away")

    request = str(uuid4())
    with monkeypatch.context() as patch:
        patch.setattr(queue, "enqueue", away)
        with pytest.raises(Unavailable):
            await jobs.submit(ACME, WANTED, request)
    assert len(storage.kept) == 1
    assert await queue.backlog(ACME) == 0
    await jobs.submit(ACME, WANTED, request)
    assert (len(storage.kept), await queue.backlog(ACME)) == (1, 1)


async def test_a_flushed_queue_is_filled_again_from_the_records(
    jobs: Jobs, storage: FakeStorage, queue: JobQueue, redis: Redis
) -> None:
    made = [await submit(jobs) for _ in range(3)]
    claim = await queue.claim("w")
    assert claim is not None
    running = replace(storage.kept[made[0].name].job, state=JobState.RUNNING)
    await storage.update_record(replace(storage.kept[made[0].name], job=running, fence=claim.fence))
    ended = replace(storage.kept[made[2].name].job, state=JobState.CANCELLED)
    await storage.update_record(replace(storage.kept[made[2].name], job=ended))
    await redis.flushall()
    assert await jobs.reconcile() == 2
    assert await jobs.reconcile() == 0
    again = [await queue.claim(f"w{number}") for number in range(3)]
    assert {str(c.name): c.fence for c in again if c} == {made[0].name: 2, made[1].name: 1}


async def test_reading_shows_what_the_queue_knows(jobs: Jobs, queue: JobQueue) -> None:
    name = JobName.parse((await submit(jobs)).name)
    claim = await queue.claim("w")
    assert claim is not None
    progress = JobProgress("training", 3, 10, 1, 2, 0.5)
    await queue.beat(claim, progress=progress)
    for job in (await jobs.get(name), (await jobs.page(ACME, 0, "")).jobs[0]):
        assert (job.state, job.attempt, job.progress) == (JobState.RUNNING, 1, progress)
    with pytest.raises(NotFound):
        await jobs.get(JobName(ACME, "nobody"))


async def test_reading_goes_on_without_the_queue(
    storage: FakeStorage, jobs: Jobs, toy: Path
) -> None:
    job = await submit(jobs)
    nowhere = connect("redis://127.0.0.1:1/0")
    cut_off = Jobs(
        storage,
        JobQueue(nowhere, QueueSettings()),
        described((BackboneSource.parse(f"toy=dir:{toy}"),)),
    )
    assert (await cut_off.get(JobName.parse(job.name))).state is JobState.QUEUED
    with pytest.raises(Unavailable):
        await submit(cut_off)
    with pytest.raises(Unavailable):
        await cut_off.cancel(JobName.parse(job.name))
    assert len(storage.kept) == 1
    await nowhere.aclose()


async def test_pages_are_newest_first(jobs: Jobs) -> None:
    made = [(await submit(jobs)).name for _ in range(3)]
    first = await jobs.page(ACME, 2, "")
    rest = await jobs.page(ACME, 2, first.next_page_token)
    assert [job.name for job in (*first.jobs, *rest.jobs)] == made[::-1]
    assert rest.next_page_token == ""


async def test_a_waiting_job_is_cancelled_at_once_and_for_good(
    jobs: Jobs, storage: FakeStorage, queue: JobQueue
) -> None:
    name = JobName.parse((await submit(jobs)).name)
    job = await jobs.cancel(name)
    assert job.state is JobState.CANCELLED
    assert storage.kept[str(name)].job == job
    assert await jobs.cancel(name) == job
    assert await queue.claim("w") is None


async def test_a_job_the_queue_forgot_is_cancelled_too(jobs: Jobs, redis: Redis) -> None:
    name = JobName.parse((await submit(jobs)).name)
    await redis.flushall()
    assert (await jobs.cancel(name)).state is JobState.CANCELLED
    assert await jobs.reconcile() == 0


async def test_a_running_job_is_asked_to_stop(jobs: Jobs, queue: JobQueue) -> None:
    name = JobName.parse((await submit(jobs)).name)
    claim = await queue.claim("w")
    assert claim is not None
    assert (await jobs.cancel(name)).state is JobState.RUNNING
    assert await queue.beat(claim) == "cancel"
