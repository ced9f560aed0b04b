"""Runs the processor: `python -m services.processor`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.processor.config import ProcessorSettings
from services.processor.servicer import FULL_NAME, ProcessorServicer
from services.processor.serving import BACKBONES_CHECK, STORAGE_CHECK, Processor
from smile import logs
from smile.client.artifact_cache import ArtifactCache
from smile.client.bookkeeping import Books
from smile.client.version_reader import VersionReader
from smile.config import load
from smile.rpc.auth import RemoteAuthenticator
from smile.rpc.changes import ChangeFeed
from smile.rpc.channel import ServiceCredential, build_channel
from smile.rpc.freshness import Freshness
from smile.rpc.health import Readiness
from smile.rpc.server import Service, run, serve
from smile.v1 import processor_pb2_grpc

# Objects, then generations: a queue full of tokens is not walked through every second.
COLLECT_AFTER = (20_000, 20, 20)
# So long a batch's thread, back from native code, waits for the event loop: not Python's 5 ms.
SWITCH_INTERVAL_S = 0.0005


async def main(settings: ProcessorSettings) -> None:
    key = settings.service_key.get_secret_value()
    readiness = Readiness(BACKBONES_CHECK, STORAGE_CHECK)
    credentials = ServiceCredential(key)
    async with build_channel(
        settings.storage_address, credentials=credentials, bulk=True
    ) as storage:
        freshness = Freshness()
        feed = ChangeFeed(storage, freshness)
        cache = ArtifactCache(storage, settings.artifacts)
        processor = Processor.build(
            settings, VersionReader(storage), freshness, Books(storage), cache
        )
        add = processor_pb2_grpc.add_ProcessorServiceServicer_to_server
        await serve(
            [Service(ProcessorServicer(processor.pipeline, processor.renting), add, FULL_NAME)],
            settings=settings,
            authenticator=RemoteAuthenticator(storage, key, freshness=freshness),
            readiness=readiness,
            lifespan=lifespan(processor, storage, feed, readiness),
        )


@asynccontextmanager
async def lifespan(
    processor: Processor, storage: grpc.aio.Channel, feed: ChangeFeed, readiness: Readiness
) -> AsyncIterator[None]:
    """The processor at work, ready once storage has been reached; later it serves without."""

    async def reach_storage() -> None:
        await storage.channel_ready()
        readiness.set_ready(STORAGE_CHECK)
        await feed.run()

    reaching = asyncio.create_task(reach_storage())
    async with processor.running(readiness):
        try:
            yield
        finally:
            reaching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reaching


if __name__ == "__main__":
    gc.set_threshold(*COLLECT_AFTER)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings = load(ProcessorSettings)
    logs.configure("processor", settings.log_level, settings.log_format)
    run(main(settings))
