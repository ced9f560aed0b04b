"""Runs the trainer and its workers: `python -m services.trainer`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.trainer.backbones import described
from services.trainer.config import TrainerSettings
from services.trainer.jobs import Jobs
from services.trainer.metering import Allowances
from services.trainer.queueing.queue import JobQueue
from services.trainer.servicer import FULL_NAME, TrainerServicer
from services.trainer.standins import StandIns
from services.trainer.storage_client import StorageClient
from services.trainer.supervisor import SupervisorSettings, supervised, worker_command
from services.trainer.sweeps import Sweeps
from services.trainer.validation import ValidationLimits, Validator
from services.trainer.watch import Watcher
from smile import logs
from smile.client.artifact_cache import ArtifactCache
from smile.client.bookkeeping import Books
from smile.config import load
from smile.rpc.auth import RemoteAuthenticator
from smile.rpc.channel import ServiceCredential, build_channel
from smile.rpc.health import Readiness
from smile.rpc.server import Service, run, serve
from smile.store.redis import connect
from smile.v1 import trainer_pb2_grpc

SWEEPS_EVERY_S = 1.0


async def main(settings: TrainerSettings) -> None:
    key = settings.service_key.get_secret_value()
    client = connect(settings.redis_url.get_secret_value())
    queue = JobQueue(client, settings.queue)
    readiness = Readiness()
    readiness.watch("redis", queue.probe)
    async with build_channel(
        settings.storage_address, credentials=ServiceCredential(key), bulk=True
    ) as channel:
        storage = StorageClient(channel)
        readiness.watch("storage", channel.channel_ready)
        jobs = Jobs(
            storage,
            queue,
            described(settings.sources),
            allowances=Allowances(Books(channel)),
            stand_ins=StandIns(settings.stand_ins),
            full=settings.full,
        )
        limits = ValidationLimits(
            settings.validate_bytes_max, settings.validations_max, settings.folder
        )
        servicer = TrainerServicer(jobs, Watcher(storage, queue), Validator(storage, limits))
        await serve(
            [Service(servicer, trainer_pb2_grpc.add_TrainerServiceServicer_to_server, FULL_NAME)],
            settings=settings,
            authenticator=RemoteAuthenticator(channel, key),
            readiness=readiness,
            lifespan=working(
                settings, jobs, Sweeps(jobs, storage), ArtifactCache(channel, settings.artifacts)
            ),
        )
    await client.aclose()


@asynccontextmanager
async def working(
    settings: TrainerSettings, jobs: Jobs, sweeps: Sweeps, cache: ArtifactCache
) -> AsyncIterator[None]:
    """Workers, the reconciler, who advances sweeps and who fetches artifacts, beside the server."""
    beside = [
        asyncio.create_task(jobs.keep_reconciling(settings.reconcile_s)),
        asyncio.create_task(sweeps.keep_going(SWEEPS_EVERY_S)),
        asyncio.create_task(cache.keep(settings.artifacts_wanted)),
    ]
    try:
        async with supervised(SupervisorSettings(worker_command(), settings.workers)):
            yield
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


if __name__ == "__main__":
    settings = load(TrainerSettings)
    logs.configure("trainer", settings.log_level, settings.log_format)
    run(main(settings))
