"""Runs storage: `python -m services.storage`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.storage.config import StorageSettings
from services.storage.servicer.assembly import StorageOptions, assemble
from services.storage.sweeper import Sweeper
from smile import logs
from smile.config import load
from smile.rpc.health import Readiness
from smile.rpc.server import run, serve
from smile.store.objects import ObjectStore, open_store

CHECK = "object-store"
PROBE_EVERY_S = 5.0
PROBE_TIMEOUT_S = 10.0


async def main(settings: StorageSettings) -> None:
    store = open_store(settings.url, settings.s3)
    options = StorageOptions(
        service_key=settings.service_key.get_secret_value(),
        operator_key_sha256=settings.operator_key_sha256,
        dataset_bytes_max=settings.dataset_bytes_max,
        upload_bytes_max=settings.upload_bytes_max,
    )
    services, authenticator = assemble(store, options)
    readiness = Readiness()
    readiness.watch(CHECK, store.probe, every_s=PROBE_EVERY_S, timeout_s=PROBE_TIMEOUT_S)
    await serve(
        services,
        settings=settings,
        authenticator=authenticator,
        readiness=readiness,
        lifespan=sweeping(store, settings.sweep_every_s),
    )


@asynccontextmanager
async def sweeping(store: ObjectStore, every_s: float) -> AsyncIterator[None]:
    """Removes what broken-off requests left, beside the server."""
    task = asyncio.create_task(Sweeper(store).run(every_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    settings = load(StorageSettings)
    logs.configure("storage", settings.log_level, settings.log_format)
    run(main(settings))
