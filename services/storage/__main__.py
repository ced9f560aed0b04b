"""Runs storage: `python -m services.storage`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from services.storage.accounting.closing import Closer
from services.storage.config import StorageSettings
from services.storage.feed.bus import Bus, BusTimes
from services.storage.feed.hub import Hub
from services.storage.identity import Identity
from services.storage.servicer.assembly import Feed, StorageOptions, assemble
from services.storage.shelves import emptying
from services.storage.signing import SignedStore
from services.storage.storekeeper import Storekeeper
from services.storage.sweeper import Sweeper
from services.storage.usage import UsageReports
from smile import logs
from smile.config import load
from smile.rpc.health import Readiness
from smile.rpc.server import run, serve
from smile.store.objects import ObjectStore, open_store
from smile.store.redis import connect

CHECK = "object-store"
PROBE_EVERY_S = 5.0
PROBE_TIMEOUT_S = 30.0


async def main(settings: StorageSettings) -> None:
    bare = open_store(settings.url, settings.s3)
    keyring = settings.keyring
    store = bare if keyring is None else SignedStore(bare, keyring)
    keeper = Storekeeper(bare, settings.modes, keyring.view() if keyring else None)
    options = StorageOptions(
        service_key=settings.service_key.get_secret_value(),
        operator_key_sha256=settings.operator_key_sha256,
        dataset_bytes_max=settings.dataset_bytes_max,
        upload_bytes_max=settings.upload_bytes_max,
        limits=settings.limits,
        delete_grace=settings.delete_grace,
        gc_grace=settings.gc_grace,
        report=lambda: keeper.report,
    )
    hub, bus = feed_of(settings, store)
    services, authenticator = assemble(store, options, Feed(bus, hub))
    readiness = Readiness()
    readiness.watch(CHECK, keeper.check, every_s=PROBE_EVERY_S, timeout_s=PROBE_TIMEOUT_S)
    await serve(
        services,
        settings=settings,
        authenticator=authenticator,
        readiness=readiness,
        lifespan=beside(
            lambda: closer_of(store).run(settings.close_days_every_s),
            lambda: sweeper_of(store, settings).run(settings.sweep_every_s),
            *([bus.run] if bus is not None else []),
            *([lambda: _closing(hub, readiness)] if hub is not None else []),
        ),
    )


def feed_of(settings: StorageSettings, store: ObjectStore) -> tuple[Hub | None, Bus | None]:
    """The change feed, where there is a Redis to spread it."""
    if not (url := settings.redis_url.get_secret_value()):
        return None, None
    hub = Hub(time.monotonic, settings.write_s_max)
    return hub, Bus(connect(url), store, hub, times=BusTimes(doubt_s=settings.write_s_max))


def sweeper_of(store: ObjectStore, settings: StorageSettings) -> Sweeper:
    """Who empties the trash and collects what nothing points to."""
    trash = emptying(store, settings.delete_grace)
    return Sweeper(store, settings.gc_grace, [trash.vplms, trash.versions])


def closer_of(store: ObjectStore) -> Closer:
    """Who closes the days of accounts."""
    identity = Identity(store)
    usage = UsageReports(store, identity)
    return Closer(store, usage.accounts.journal, identity, usage.levels)


async def _closing(hub: Hub, readiness: Readiness) -> None:
    """End the streams of watchers once draining begins."""
    await readiness.draining.wait()
    hub.close()


@asynccontextmanager
async def beside(*work: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Works beside the server: removes what broken-off requests left, tells of changes."""
    tasks = [asyncio.create_task(each()) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    settings = load(StorageSettings)
    logs.configure("storage", settings.log_level, settings.log_format)
    run(main(settings))
