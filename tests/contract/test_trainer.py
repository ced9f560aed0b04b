"""The trainer over the wire: real SDK, server, queue, worker and storage, on the toy backbone."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

import smile
from smile import codec
from smile.client.client import AsyncClient
from smile.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvalidSpec,
    NotFound,
    QuotaExceeded,
    SmileError,
    Unavailable,
)
from smile.names import JobName
from smile.resources import JobState, TrainingJob
from smile.rpc.channel import ApiKey, build_channel
from smile.rpc.status import calling
from smile.v1 import trainer_pb2, trainer_pb2_grpc
from tests.contract.platform_world import Platform, platform_world

pytestmark = pytest.mark.asyncio
LABELS = ["sport", "money"]
QUICK: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 16}


def rows(count: int = 60) -> list[dict[str, str]]:
    draw = random.Random(1)
    words = {"sport": ["game", "play", "win", "goal"], "money": ["market", "price", "bank", "sell"]}
    return [
        {"text": " ".join(draw.choices(words[label], k=5)), "label": label}
        for label in LABELS * (count // 2)
    ]


@asynccontextmanager
async def ready(*, worker: bool = True) -> AsyncIterator[tuple[Platform, AsyncClient]]:
    """A platform where `acme` has a vPLM and a dataset."""
    async with platform_world("acme", "rival") as platform, platform.client("acme") as client:
        await client.create_vplm(
            "topics", backbone="toy", pet=smile.Pfeiffer(rank=4), labels=LABELS
        )
        await client.upload_dataset("news", rows())
        if not worker:
            yield platform, client
            return
        async with platform.worker():
            yield platform, client


async def test_a_job_is_followed_to_a_served_version() -> None:
    async with ready() as (_, client):
        job = await client.train("topics", "news", **QUICK)
        assert job.state in (JobState.QUEUED, JobState.RUNNING)
        events = [event async for event in client.watch(job)]
        ended = await client.job(job)
        assert ended.state is JobState.SUCCEEDED
        vplm = await client.vplm("topics")
        assert ended.version == f"{vplm.name}/versions/{vplm.aliases['serving']}"
        version = await client.version("topics", vplm.aliases["serving"])
        assert version.training_job == job.name
        assert version.metrics == ended.metrics
        losses = [m.step for e in events for m in e.metrics if m.name == "train_loss"]
        assert losses == list(range(1, ended.progress.steps_total + 1))
        again = [event async for event in client.watch(job, resume_token=events[2].resume_token)]
        told = [[(e.resume_token, e.metrics) for e in part] for part in (again, events[3:])]
        assert told[0] == told[1]


@pytest.mark.parametrize("pet", [smile.DiffPruning(0.05), smile.MaskBert()], ids=lambda p: p.kind)
async def test_a_sparse_kind_is_trained_again_from_what_it_learned(pet: smile.PetSpec) -> None:
    """Embeddings have no head: what the second job starts from is the module alone."""
    async with ready() as (_, client):
        await client.create_vplm("near", backbone="toy", pet=pet, task="embedding")
        before = (await client.version("near")).digest
        losses = []
        for number in (2, 3):
            job = await client.train("near", "news", base_version=number - 1, **QUICK)
            ended = await client.wait(job)
            assert ended.version.endswith(f"/near/versions/{number}")
            losses.append(ended.metrics["train_loss"])
        assert losses[1] < losses[0]
        answer = await client.infer("near", "market price")
        assert answer.version == ended.version and answer.digest != before


async def test_a_curve_outlives_the_queue() -> None:
    async with ready() as (platform, client):
        job = await client.wait(await client.train("topics", "news", **QUICK))
        platform.redis.kill()
        platform.redis.start()
        events = [event async for event in client.watch(job)]
        assert [m.step for e in events for m in e.metrics if m.name == "learning_rate"] == list(
            range(1, job.progress.steps_total + 1)
        )
        assert events[-1].job == job


async def test_a_lost_queue_loses_no_job() -> None:
    async with ready(worker=False) as (platform, client):
        job = await client.train("topics", "news", **QUICK)
        platform.redis.kill()
        with pytest.raises(Unavailable):
            await client.train("topics", "news", **QUICK, timeout=5)
        assert (await client.job(job)).state is JobState.QUEUED
        platform.redis.start()
        assert platform.jobs is not None
        assert await platform.jobs.reconcile() == 1
        async with platform.worker():
            assert (await client.wait(job, timeout=60)).state is JobState.SUCCEEDED


async def test_bad_rows_fail_the_job_with_the_report_that_validation_gives() -> None:
    async with ready() as (_, client):
        bad = [*rows(), {"text": " ", "label": "sport"}, {"text": "a", "label": "art"}]
        await client.upload_dataset("bad", bad)
        report = await client.validate_dataset("bad", "topics")
        assert [(p.row, p.reason) for p in report.problems] == [
            (61, "TEXT_EMPTY"),
            (62, "LABEL_UNKNOWN"),
        ]
        with pytest.raises(smile.JobFailed) as caught:
            await client.wait(await client.train("topics", "bad", **QUICK))
        error = caught.value.job.error
        assert error is not None and error.reason == "DATASET_INVALID"
        assert error.dataset_report == report


async def test_a_waiting_job_is_cancelled() -> None:
    async with ready(worker=False) as (_, client):
        first = await client.train("topics", "news", **QUICK)
        second = await client.train("topics", "news", **QUICK)
        assert (await client.job(second)).queue_position == 1
        assert (await client.cancel(first)).state is JobState.CANCELLED
        assert (await client.job(second)).queue_position == 0
        assert (await client.cancel(first)).state is JobState.CANCELLED
        assert [job.name async for job in client.jobs(page_size=1)] == [second.name, first.name]


async def test_the_backlog_of_a_tenant_is_bounded_and_another_tenants_is_not_touched() -> None:
    async with ready(worker=False) as (platform, client):
        await asyncio.gather(*(client.train("topics", "news", **QUICK) for _ in range(20)))
        with pytest.raises(QuotaExceeded) as caught:
            await client.train("topics", "news", **QUICK)
        assert caught.value.metadata == {"limit": "20", "value": "20"}
        async with platform.client("rival") as rival:
            await rival.create_vplm("mine", backbone="toy", pet=smile.BitFit(), labels=LABELS)
            await rival.upload_dataset("news", rows())
            theirs = await rival.train("mine", "news", **QUICK)
            assert theirs.queue_position == 1, "one job of acme is ahead, not twenty"


async def test_another_tenants_job_does_not_exist() -> None:
    async with ready(worker=False) as (platform, client):
        job = await client.train("topics", "news", **QUICK)
        absent = str(JobName.parse(job.name)).replace(job.name[-6:], "000000")
        async with platform.client("rival") as rival:
            told = [await said(rival, name) for name in (job.name, absent)]
        assert told[0][0] == told[1][0] == NotFound
        assert told[0][1].replace(job.name, absent) == told[1][1]


async def said(client: AsyncClient, name: str) -> tuple[type[SmileError], str]:
    found: set[tuple[type[SmileError], str]] = set()
    for ask in (client.job, client.cancel):
        try:
            await ask(name)
        except SmileError as error:
            found.add((type(error), error.message))
    assert len(found) == 1
    return found.pop()


async def create(platform: Platform, job: trainer_pb2.TrainingJob, **fields: Any) -> TrainingJob:
    """A raw call: what the SDK would not send."""
    async with build_channel(
        platform.addresses["trainer"], credentials=ApiKey(platform.keys["acme"])
    ) as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        request = trainer_pb2.CreateTrainingJobRequest(
            **{"parent": "tenants/-", "request_id": str(uuid4()), **fields}, training_job=job
        )
        with calling():
            made = await stub.CreateTrainingJob(request)
        return codec.job_from_pb(made)


NAMES: dict[str, Any] = {"vplm": "tenants/-/vplms/topics", "dataset": "tenants/-/datasets/news"}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1001}, "epochs"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"batch_size": 5000}, "batch_size"),
        ({"optimizer": 77}, "optimizer"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
        ({"validation_ratio": 1.0}, "validation_ratio"),
        ({"seed": -5}, "seed"),
        ({"tokens_max": 1000}, "tokens_max"),
    ],
)
async def test_wrong_hyper_parameters_are_named(values: dict[str, Any], field: str) -> None:
    async with ready(worker=False) as (platform, _):
        job = trainer_pb2.TrainingJob(
            **NAMES, hyper_parameters=trainer_pb2.HyperParameters(**values)
        )
        with pytest.raises((InvalidArgument, InvalidSpec)) as caught:
            await create(platform, job)
        assert any(field in name for name, _ in caught.value.violations), json.dumps(
            caught.value.violations
        )


async def test_requests_are_idempotent_and_names_are_completed() -> None:
    async with ready(worker=False) as (platform, _):
        request_id = str(uuid4())
        first, second = [
            await create(platform, trainer_pb2.TrainingJob(**NAMES), request_id=request_id)
            for _ in range(2)
        ]
        assert first.name == second.name
        assert first.vplm == "tenants/acme/vplms/topics"
        with pytest.raises(InvalidArgument):
            await create(platform, trainer_pb2.TrainingJob(**NAMES), request_id="not-a-uuid")
        foreign = {**NAMES, "dataset": "tenants/rival/datasets/news"}
        with pytest.raises(NotFound):
            await create(platform, trainer_pb2.TrainingJob(**foreign))


async def test_a_deleted_vplm_ends_its_waiting_job_with_a_reason() -> None:
    async with ready(worker=False) as (platform, client):
        job = await client.train("topics", "news", **QUICK)
        await client.delete_vplm("topics")
        async with platform.worker():
            with pytest.raises(smile.JobFailed) as caught:
                await client.wait(job, timeout=60)
        assert caught.value.job.error is not None
        assert caught.value.job.error.reason == "VPLM_DELETED"
        with pytest.raises((NotFound, FailedPrecondition)):
            await client.train("topics", "news", **QUICK)
