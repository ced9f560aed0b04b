"""Runs the creator: `python -m services.creator`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from services.creator.catalogue import CHECK, Catalogue
from services.creator.config import CreatorSettings
from services.creator.servicer import FULL_NAME, CreatorServicer
from services.creator.vplms import Stored
from smile import logs
from smile.client.adapter_records import AdapterRecords
from smile.client.records import VplmRecords
from smile.client.version_reader import VersionReader
from smile.config import load
from smile.errors import Unavailable
from smile.rpc.auth import RemoteAuthenticator
from smile.rpc.channel import ServiceCredential, build_channel
from smile.rpc.health import Readiness
from smile.rpc.server import Service, run, serve
from smile.v1 import creator_pb2_grpc

STORAGE = "storage"
STORAGE_TIMEOUT_S = 1.5


async def main(settings: CreatorSettings) -> None:
    key = settings.service_key.get_secret_value()
    readiness = Readiness(CHECK)
    catalogue = Catalogue(settings.sources)
    async with build_channel(
        settings.storage_address, credentials=ServiceCredential(key), bulk=True
    ) as storage:
        readiness.watch(STORAGE, reaching(storage, settings.storage_address))
        stored = Stored(VplmRecords(storage), AdapterRecords(storage), VersionReader(storage))
        servicer = CreatorServicer(catalogue, stored)
        await serve(
            [Service(servicer, creator_pb2_grpc.add_CreatorServiceServicer_to_server, FULL_NAME)],
            settings=settings,
            authenticator=RemoteAuthenticator(storage, key),
            readiness=readiness,
            lifespan=reading(catalogue, settings, readiness),
        )


def reaching(channel: grpc.aio.Channel, address: str) -> Callable[[], Awaitable[None]]:
    """A probe that fails, in words, while storage does not take connections."""

    async def probe() -> None:
        try:
            async with asyncio.timeout(STORAGE_TIMEOUT_S):
                await channel.channel_ready()
        except TimeoutError as error:
            raise Unavailable(f"storage at {address} does not answer") from error

    return probe


@asynccontextmanager
async def reading(
    catalogue: Catalogue, settings: CreatorSettings, readiness: Readiness
) -> AsyncIterator[None]:
    """Reads the backbones beside the server, which is unready until all are there."""

    def told(missing: str | None) -> None:
        if missing is None:
            readiness.set_ready(CHECK)
        else:
            readiness.set_unready(CHECK, missing)

    task = asyncio.create_task(catalogue.load(retry_s=settings.catalogue_retry_s, ready=told))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    settings = load(CreatorSettings)
    logs.configure("creator", settings.log_level, settings.log_format)
    run(main(settings))
