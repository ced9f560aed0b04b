"""Jobs that train whole models: what they take is known before, and they end as others do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import date
from pathlib import Path
from uuid import uuid4

import pytest

from services.trainer.backbones import described
from services.trainer.checks import check_job
from services.trainer.jobs import Jobs
from services.trainer.metering import Tariff, TrainingMeter
from services.trainer.queueing.queue import JobQueue, QueueSettings, QueueState
from services.trainer.storage import StoredBytes
from services.trainer.training.snapshots import decode
from services.trainer.whole import FullLimits, Needs, check_fits, spec_of
from smile.accounting import Counts, UsageDay
from smile.errors import FailedPrecondition, InvalidArgument, InvalidSpec, QuotaExceeded
from smile.limits import CHECKPOINT_BYTES_MAX, FULL_BYTES_MAX, GIB
from smile.model import layout, weights
from smile.model.sources import BackboneSource, describe
from smile.model.specs import (
    BackboneShape,
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Task,
)
from smile.names import JobName, tenant_id
from smile.resources import (
    HyperParameters,
    JobState,
    Method,
    Optimizer,
    Sweep,
    TrainingJob,
    TrainingStates,
    Usage,
    When,
    defaults_of,
)
from smile.savings import Assumptions, Savings
from smile.store.redis import Redis
from tests.unit.services.trainer.fakes import FakeStorage
from tests.unit.services.trainer.test_runner import (
    DATASET,
    QUICK,
    VPLM,
    Stage,
    stage,
    storage,
    toy,
)

pytestmark = pytest.mark.asyncio
__all__ = ["stage", "storage", "toy"]  # fixtures

ACME = tenant_id("acme")
WANTED = TrainingJob("", VPLM, DATASET, method=Method.FULL, promote_alias="")
HEAD = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b"))
MINILM = BackboneShape(6, 384, 1536, 12, 512, 22_565_376, 4 * 22_565_376)
BERT_BASE = BackboneShape(12, 768, 3072, 12, 512, 108_891_648, 4 * 108_891_648)


def spec(shape: BackboneShape) -> ModuleSpec:
    pet = PetSpec(PetKind.PFEIFFER, rank=8).placed(shape)
    return spec_of(WANTED, ModuleSpec("b", "0" * 64, pet, HEAD, DType.FLOAT16))


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis, QueueSettings(lease_s=5.0))


@pytest.fixture
def jobs(storage: FakeStorage, queue: JobQueue, toy: Path) -> Jobs:
    return jobs_of(storage, queue, toy, FullLimits())


def jobs_of(storage: FakeStorage, queue: JobQueue, toy: Path, limits: FullLimits) -> Jobs:
    sources = (BackboneSource.parse(f"toy=dir:{toy}"),)
    return Jobs(storage, queue, described(sources), full=limits)


async def submit(jobs: Jobs, **changes: object) -> TrainingJob:
    return await jobs.submit(ACME, replace(WANTED, **changes), str(uuid4()))  # type: ignore[arg-type]


async def test_a_job_ends_with_a_version_of_every_weight_that_no_alias_names(stage: Stage) -> None:
    values = replace(QUICK, learning_rate=1e-3, epochs=4)
    job = await stage.run(method=Method.FULL, promote_alias="", hyper_parameters=values)
    assert job.state is JobState.SUCCEEDED, job.error
    assert job.metrics["validation_accuracy"] >= 0.75
    assert stage.storage.vplms[VPLM].aliases == {}
    version, data, _ = stage.storage.stored[VPLM][0]
    shape = describe(stage.toy_path).shape
    assert version.spec.pet == PetSpec(PetKind.FULL, 0)
    assert version.spec.head == stage.storage.vplms[VPLM].spec.head
    assert (
        weights.decode(data, version.spec, shape).keys()
        == layout.tensors(version.spec, shape).keys()
    )
    curve = stage.storage.curves[job.name]
    assert len([m for m in curve if m.name == "validation_accuracy"]) == 4


async def test_it_goes_on_from_its_checkpoint_to_the_same_bytes(
    stage: Stage,
) -> None:
    values = replace(QUICK, learning_rate=1e-3)
    asked = {"method": Method.FULL, "promote_alias": "", "hyper_parameters": values}
    stage.shop = replace(stage.shop, checkpoint_s=0.0)
    stage.runner = stage.runner_of(stage.shop)
    whole = await stage.run(**asked)
    name = await stage.submit("j2", **asked)
    await stage.crash_past(name, 6)
    place = decode(stage.storage.checkpoints[str(name)]).snapshot
    assert 0 < place.step < 15
    again = await stage.repaired(name)
    first, second = (data for _, data, _ in stage.storage.stored[VPLM])
    assert first == second
    assert again.attempt == 2 and again.metrics["steps"] == whole.metrics["steps"]


async def test_a_worker_without_the_memory_says_so(stage: Stage) -> None:
    stage.shop = replace(stage.shop, full=FullLimits(memory_bytes_max=1 << 20))
    stage.runner = stage.runner_of(stage.shop)
    job = await stage.run(method=Method.FULL, promote_alias="")
    assert job.state is JobState.FAILED and job.error is not None
    assert job.error.reason == "FULL_MODEL_TOO_LARGE"
    assert "1048576" in job.error.message and "of a worker's memory" in job.error.message
    assert (await stage.run(job="j2")).state is JobState.SUCCEEDED, "a module does"


async def test_one_starts_from_another(stage: Stage) -> None:
    values = replace(QUICK, learning_rate=1e-3)
    first = await stage.run(method=Method.FULL, promote_alias="", hyper_parameters=values)
    more = replace(values, epochs=1)
    second = await stage.run(
        job="j2", method=Method.FULL, promote_alias="", base_version=1, hyper_parameters=more
    )
    losses = [
        next(m.value for m in stage.storage.curves[job.name] if m.name == "train_loss")
        for job in (first, second)
    ]
    assert losses[1] < 0.8 * losses[0], "it knows already"


async def test_what_it_stores_must_have_room_before_it_begins(
    jobs: Jobs, storage: FakeStorage, queue: JobQueue
) -> None:
    storage.bytes_stored = StoredBytes(used=900_000, allowed=1_000_000)
    with pytest.raises(QuotaExceeded, match="may store 1000000 bytes and 900000 are taken") as told:
        await submit(jobs)
    assert told.value.metadata["limit"] == "1000000"
    assert int(told.value.metadata["value"]) > 100_000
    assert storage.kept == {} and await queue.backlog(ACME) == 0
    await submit(jobs, method=Method.PET, promote_alias="serving")
    storage.bytes_stored = StoredBytes(used=900_000, allowed=100_000_000)
    await submit(jobs)


async def test_a_tenant_trains_one_at_a_time(
    jobs: Jobs, storage: FakeStorage, queue: JobQueue, toy: Path
) -> None:
    first = await submit(jobs)
    with pytest.raises(QuotaExceeded, match="has 1 jobs of method full that") as told:
        await submit(jobs)
    assert told.value.reason == "FULL_JOBS_MAX" and told.value.retry_after
    assert told.value.metadata == {"limit": "1", "value": "1"}
    other = jobs_of(storage, queue, toy, FullLimits())  # another trainer learns of it
    await other.reconcile()
    with pytest.raises(QuotaExceeded):
        await submit(other)
    await jobs.cancel(JobName.parse(first.name))
    assert (await submit(jobs)).state is JobState.QUEUED
    two = jobs_of(storage, queue, toy, FullLimits(jobs_max=2))
    await two.reconcile()
    await submit(two)


async def test_two_requests_at_once_take_one_place(jobs: Jobs) -> None:
    outcomes = await asyncio.gather(submit(jobs), submit(jobs), return_exceptions=True)
    assert sorted(type(one).__name__ for one in outcomes) == ["QuotaExceeded", "TrainingJob"]


async def test_a_repeated_request_is_the_same_job(jobs: Jobs) -> None:
    request_id = str(uuid4())
    first = await jobs.submit(ACME, WANTED, request_id)
    assert (await jobs.submit(ACME, WANTED, request_id)).name == first.name


async def test_platforms_without_whole_models_say_so(
    storage: FakeStorage, queue: JobQueue, toy: Path
) -> None:
    with pytest.raises(FailedPrecondition, match="SMILE_TRAINER_FULL_JOBS_MAX"):
        await submit(jobs_of(storage, queue, toy, FullLimits(jobs_max=0)))
    small = jobs_of(storage, queue, toy, FullLimits(memory_bytes_max=1000))
    with pytest.raises(FailedPrecondition, match="at most 1000 are there") as told:
        await submit(small)
    assert told.value.reason == "FULL_MODEL_TOO_LARGE"
    sweep = Sweep((HyperParameters(), HyperParameters(epochs=2)))
    with pytest.raises(FailedPrecondition, match="at most 1000 are there"):
        await submit(small, sweep=sweep)


async def test_versions_are_bases_of_their_own_method_alone(
    stage: Stage, jobs: Jobs, storage: FakeStorage
) -> None:
    await stage.run()
    with pytest.raises(InvalidArgument, match="method full cannot start from tenants/acme") as told:
        await submit(jobs, base_version=1)
    assert told.value.reason == "BASE_VERSION_MISMATCH"
    values = replace(QUICK, epochs=1)
    await stage.run(job="j2", method=Method.FULL, promote_alias="", hyper_parameters=values)
    await submit(jobs, base_version=2)
    with pytest.raises(InvalidArgument, match="which is of kind 'full'"):
        await submit(jobs, base_version=2, method=Method.PET)


async def test_no_alias_and_no_stand_in_goes_with_it() -> None:
    with pytest.raises(InvalidSpec, match="promote_alias must be '-', got 'serving'"):
        check_job(replace(WANTED, promote_alias="serving"), HEAD, MINILM)
    values = HyperParameters(states=TrainingStates.MIXED)
    with pytest.raises(InvalidSpec, match="states must be exact, got mixed"):
        check_job(replace(WANTED, hyper_parameters=values), HEAD, MINILM)
    check_job(WANTED, HEAD, MINILM)
    assert defaults_of(Method.FULL).learning_rate < defaults_of(Method.PET).learning_rate / 10


async def test_what_it_takes_is_a_hundred_times_a_modules() -> None:
    needs = Needs.of(spec(MINILM), MINILM, HyperParameters())
    module = layout.bytes_total(replace(spec(MINILM), pet=PetSpec(PetKind.PFEIFFER, 3, 24)), MINILM)
    assert needs.version_bytes > 100 * module
    assert needs.version_bytes == 2 * (MINILM.parameters + 2 * 385)
    assert needs.checkpoint_bytes == 7 * needs.version_bytes, "float32, two moments, float16"
    assert needs.memory_bytes < 2 * GIB
    lean = Needs.of(spec(MINILM), MINILM, HyperParameters(optimizer=Optimizer.ADAFACTOR))
    assert lean.memory_bytes < 0.6 * needs.memory_bytes
    check_fits(needs, FullLimits())
    with pytest.raises(FailedPrecondition, match="of a worker's memory"):
        check_fits(Needs.of(spec(BERT_BASE), BERT_BASE, HyperParameters()), FullLimits())
    check_fits(Needs.of(spec(BERT_BASE), BERT_BASE, HyperParameters()), FullLimits(1, 16 * GIB))
    for what in ("version_bytes", "checkpoint_bytes"):
        huge = replace(needs, **{what: max(CHECKPOINT_BYTES_MAX, FULL_BYTES_MAX) + 1})
        with pytest.raises(FailedPrecondition, match=f"bytes as a {what.partition('_')[0]}"):
            check_fits(huge, FullLimits())


async def test_it_is_charged_many_times() -> None:
    tariff = Tariff(2.0, lambda: False, 10.0)
    assert tariff.of(When.OFF_PEAK, Method.FULL) == 10 * tariff.of(When.OFF_PEAK)
    assert tariff.of(When.NOW, Method.FULL) == 20.0
    stint = TrainingMeter(None, tariff).stint(ACME, When.OFF_PEAK)
    assert stint.method is Method.PET


async def test_its_seconds_are_counted_by_method(stage: Stage) -> None:
    meter = TrainingMeter(None, Tariff(1.0, lambda: True, 10.0))
    stage.runner = stage.runner_of(stage.shop, meter)
    job = await stage.run(method=Method.FULL, promote_alias="")
    assert job.state is JobState.SUCCEEDED
    total = meter.meter.account(ACME).total  # before the record is read, it counts once
    assert total.charged_us > 5 * total.training_us > 0
    assert 0 < total.full_us <= total.training_us
    counted = total.counts()
    day = UsageDay(date(2031, 1, 1), counted + Counts(training_us=5_000_000))
    usage = Usage("tenants/acme", 0, 0, 0, 0, (), days=(day,))
    savings = Savings.of(usage, Assumptions(full_training_factor=3.0))
    whole = counted.full_us / 1e6
    modules = savings.training_seconds - whole
    assert savings.full_training_seconds == pytest.approx(3 * modules + whole)


async def test_cancelled_it_ends_and_makes_room(stage: Stage, jobs: Jobs) -> None:
    values = replace(QUICK, epochs=1000)
    name = await stage.submit(method=Method.FULL, promote_alias="", hyper_parameters=values)
    working = asyncio.create_task(stage.runner.work(await stage.claim()))
    async with asyncio.timeout(60):
        while (await stage.queue.look([name]))[0].progress.step == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert (await stage.queue.cancel(name, "c"))[0] is QueueState.RUNNING
        await working
    assert stage.storage.kept[str(name)].job.state is JobState.CANCELLED
    assert (await submit(jobs)).state is JobState.QUEUED
