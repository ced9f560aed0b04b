"""Worker processes that are killed, stopped and ended while they train, against real services."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import smile
from smile.client.client import AsyncClient
from smile.config import inherited_environment
from smile.resources import JobState, TrainingJob
from tests.contract.platform_world import Platform, platform_world

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]
LEASE_S = 2.0  # of `platform_world` too
LABELS = ["sport", "money"]
ROWS = [{"text": "a goal", "label": "sport"}, {"text": "a bank", "label": "money"}] * 32
Process = asyncio.subprocess.Process


@asynccontextmanager
async def running(
    platform: Platform, *command: str, port: int = 0, skip: str = "", jobs: int = 1
) -> AsyncIterator[Process]:
    """A Python process with the trainer's settings, gone at the end whatever became of it."""
    environment = {
        **inherited_environment(),
        "SMILE_SERVICE_KEY": platform.service_key,
        "SMILE_STORAGE_ADDRESS": platform.addresses["storage"],
        "SMILE_REDIS_URL": platform.redis.url,
        "SMILE_BACKBONES": f"toy=dir:{platform.backbone}",
        "SMILE_TRAINER_LEASE_S": str(LEASE_S),
        "SMILE_TRAINER_CHECKPOINT_S": "0",
        "SMILE_TRAINER_THREADS": "1",
        "SMILE_TRAINER_PORT": str(port),
        "SMILE_TRAINER_WORKERS": "0",
        "SMILE_TRAINER_SKIP": skip,
        "SMILE_TRAINER_JOBS": str(jobs),
        "SMILE_LOG_LEVEL": "warning",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def worker(
    platform: Platform, skip: str = "", jobs: int = 1
) -> AbstractAsyncContextManager[Process]:
    """A worker process that ends with this one."""
    command = ("-m", "services.trainer.worker", "--parent", str(os.getpid()))
    return running(platform, *command, skip=skip, jobs=jobs)


@asynccontextmanager
async def training() -> AsyncIterator[tuple[Platform, AsyncClient, TrainingJob, Process]]:
    """A job in the hands of a worker process, between two of its steps."""
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(platform_world("acme"))
        client = await stack.enter_async_context(platform.client("acme"))
        await client.create_vplm(
            "topics", backbone="toy", pet=smile.Pfeiffer(rank=4), labels=LABELS
        )
        await client.upload_dataset("news", ROWS)
        process = await stack.enter_async_context(worker(platform))
        job = await client.train("topics", "news", epochs=150, batch_size=16)
        async with asyncio.timeout(60):
            while (await client.job(job)).progress.step == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield platform, client, job, process


async def checkpoints(platform: Platform) -> list[str]:
    return [key for key in await platform.store.snapshot() if "/checkpoints/" in key]


async def made_once(client: AsyncClient, job: TrainingJob) -> TrainingJob:
    """The job, succeeded; its vPLM has the initial version and one more."""
    ended = await client.wait(job, timeout=120)
    assert ended.state is JobState.SUCCEEDED
    vplm = await client.vplm("topics")
    assert (vplm.latest_version, vplm.aliases["serving"]) == (2, 2)
    return ended


async def test_a_killed_workers_job_is_done_by_another() -> None:
    async with training() as (platform, client, job, process):
        process.kill()
        async with worker(platform):
            assert (await made_once(client, job)).attempt == 2


async def test_a_job_killed_mid_epoch_ends_with_the_bytes_of_one_that_was_not() -> None:
    """It goes on from its last checkpoint, whose steps are not taken again; none is left."""
    async with training() as (platform, client, job, process):
        async with asyncio.timeout(60):
            while not await checkpoints(platform):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        process.kill()
        async with worker(platform):
            ended = await made_once(client, job)
            assert ended.attempt == 2
            whole = await client.wait(
                await client.train("topics", "news", epochs=150, batch_size=16), timeout=120
            )
        digests = [(await client.version("topics", number)).digest for number in (2, 3)]
        assert digests[0] == digests[1]
        curves = []
        for each in (ended, whole):
            events = [event async for event in client.watch(each)]
            metrics = {(m.step, m.name): m.value for event in events for m in event.metrics}
            curves.append(metrics)
        assert curves[0] == curves[1]
        assert not await checkpoints(platform)


async def test_a_worker_killed_with_two_jobs_costs_neither_a_byte() -> None:
    """Both go on from their checkpoints, alone as it may have been either's fault, and are the only
    ones of their kind."""
    asked: dict[str, Any] = {"epochs": 150, "batch_size": 16, "promote_alias": None}
    async with platform_world("acme") as platform, platform.client("acme") as client:
        await client.create_vplm(
            "topics", backbone="toy", pet=smile.Pfeiffer(rank=4), labels=LABELS
        )
        await client.upload_dataset("news", ROWS)
        jobs = [await client.train("topics", "news", seed=seed, **asked) for seed in (1, 2)]
        async with worker(platform, jobs=2) as process:
            async with asyncio.timeout(60):
                while len(await checkpoints(platform)) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            states = [(await client.job(job)).state for job in jobs]
            assert states == [JobState.RUNNING] * 2
            process.kill()
        async with worker(platform, jobs=2):
            ended = [await client.wait(job, timeout=240) for job in jobs]
            assert [job.attempt for job in ended] == [2, 2]
            again = [await client.train("topics", "news", seed=seed, **asked) for seed in (1, 2)]
            whole = [await client.wait(job, timeout=240) for job in again]
        digests = {v.training_job: v.digest async for v in client.versions("topics")}
        assert len(digests) == 5, "the initial one, and one of each job"
        for resumed, uninterrupted in zip(ended, whole, strict=True):
            assert digests[resumed.name] == digests[uninterrupted.name]
        assert not await checkpoints(platform)


async def test_a_worker_that_wakes_up_too_late_changes_nothing() -> None:
    async with training() as (platform, client, job, zombie):
        zombie.send_signal(signal.SIGSTOP)
        async with worker(platform):
            ended = await made_once(client, job)
        zombie.send_signal(signal.SIGCONT)
        await asyncio.sleep(LEASE_S)
        assert await made_once(client, job) == ended
        zombie.terminate()
        assert await asyncio.wait_for(zombie.wait(), 20) == 0


async def test_an_ending_worker_gives_its_job_back_at_once() -> None:
    async with training() as (_, client, job, process):
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert (await client.job(job)).state is JobState.QUEUED


async def test_without_redis_the_trainer_is_alive_but_not_ready_and_recovers_by_itself() -> None:
    async with platform_world("acme") as platform:
        platform.redis.kill()
        port = free_port()
        async with (
            running(platform, "-m", "services.trainer", port=port) as process,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            assert await health(channel, "liveness") == health_pb2.HealthCheckResponse.SERVING
            await asyncio.sleep(1)
            assert await health(channel, "") == health_pb2.HealthCheckResponse.NOT_SERVING
            platform.redis.start()
            async with asyncio.timeout(20):
                while await health(channel, "") != health_pb2.HealthCheckResponse.SERVING:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 20) == 0


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


async def health(channel: grpc.aio.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    return int((await stub.Check(request, timeout=20, wait_for_ready=True)).status)
