"""A world with one of everything, and the ways to damage it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from services.storage.maintenance.verify import Extent, Verifier
from smile.maintenance import Finding, MaintenanceEvent, MaintenanceSummary
from smile.names import JobName
from smile.resources import Metric, TrainingJob
from smile.store.objects import ObjectStore
from tests.unit.services.storage.world import (
    ACME,
    World,
    chunks,
    commit,
    declared,
    module,
    new_dataset,
    new_version,
    vplm,
)

JOB = JobName(ACME, "j1")
ROWS = b"text,label\nhello,yes\n" * 50


async def furnished(store: ObjectStore | None = None) -> World:
    """A vPLM with two versions, a dataset, and a job that runs, with a curve and a checkpoint."""
    world = World(store)
    await world.tenant()
    await commit(world)
    await world.versions.put(new_version(module(1)), chunks(module(1)))
    await world.datasets.upload(new_dataset(ROWS), chunks(ROWS))
    await world.records.create(TrainingJob(str(JOB), str(vplm()), f"tenants/{ACME}/datasets/news"))
    await world.records.put_curve(JOB, 0, _curve())
    await checkpoint(world, 1)
    return world


async def checkpoint(world: World, fence: int) -> None:
    body = b"where the job is" * 100
    data = hashlib.sha256(body).digest() + body
    await world.records.checkpoints.put(JOB, fence, declared(data), chunks(data))


async def _curve() -> AsyncIterator[tuple[Metric, ...]]:
    yield (Metric("train_loss", 0.5, 1, 1), Metric("train_loss", 0.4, 2, 1))


async def overwrite(store: ObjectStore, key: str, data: bytes) -> None:
    """What a rotten disk does."""

    async def whole() -> AsyncIterator[bytes]:
        yield data

    await store.put_stream(key, whole())


async def told(
    events: AsyncIterator[MaintenanceEvent],
) -> tuple[list[Finding], MaintenanceSummary]:
    """All findings, and the summary, which comes last and once."""
    seen = [event async for event in events]
    (summary,) = (event for event in seen if isinstance(event, MaintenanceSummary))
    assert seen[-1] is summary
    return [event for event in seen if isinstance(event, Finding)], summary


async def verified(
    store: ObjectStore, extent: Extent | None = None
) -> tuple[list[Finding], MaintenanceSummary]:
    return await told(Verifier(store, extent).verify())


async def key_like(world: World, part: str) -> str:
    """The first key that ends with this, else the first that has it in it."""
    held = await world.keys()
    return next(key for key in (*(k for k in held if k.endswith(part)), *held) if part in key)
