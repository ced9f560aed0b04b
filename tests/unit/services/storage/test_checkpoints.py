"""Checkpoints of running jobs: fenced, whole or not there, and gone when the job has ended."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.storage import keys
from services.storage.blobs import Declared
from smile.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from smile.names import JobName
from smile.resources import JobState, TrainingJob, TrainingRecord
from tests.unit.services.storage.world import ACME, World, vplm

pytestmark = pytest.mark.asyncio
NAME = JobName(ACME, "j1")
JOB = TrainingJob(str(NAME), str(vplm()), f"tenants/{ACME}/datasets/news", state=JobState.RUNNING)


@pytest.fixture
def world() -> World:
    return World()


async def began(world: World, fence: int = 1) -> None:
    await world.tenant()
    await world.records.create(JOB)
    await world.records.update(TrainingRecord(JOB, fence))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def put(world: World, fence: int, data: bytes) -> None:
    declared = Declared(len(data), hashlib.sha256(data).hexdigest())
    await world.records.checkpoints.put(NAME, fence, declared, chunks(data[:3], data[3:]))


async def got(world: World) -> bytes:
    return b"".join([chunk async for chunk in world.records.checkpoints.get(NAME)])


async def kept(world: World) -> list[str]:
    return [key for key in await world.keys() if key.startswith(keys.checkpoints(NAME))]


async def test_the_latest_is_kept_and_no_other(world: World) -> None:
    await began(world)
    assert await got(world) == b""
    await put(world, 1, b"first")
    await put(world, 1, b"second")
    assert await got(world) == b"second"
    await put(world, 12, b"of the heir")
    assert await got(world) == b"of the heir"
    assert await kept(world) == [keys.checkpoint(NAME, 12)]


async def test_a_worker_that_lost_its_lease_writes_nothing(world: World) -> None:
    await began(world, fence=3)
    await put(world, 3, b"of the heir")
    with pytest.raises(Aborted, match="fence 3, this is 2"):
        await put(world, 2, b"of a zombie")
    assert await got(world) == b"of the heir"
    assert len(await kept(world)) == 1


async def test_one_that_loses_it_while_it_writes_leaves_nothing(world: World) -> None:
    await began(world, fence=1)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"of a "
        await world.records.update(TrainingRecord(JOB, 2))
        await put(world, 2, b"of the heir")
        yield b"zombie"

    data = b"of a zombie"
    declared = Declared(len(data), hashlib.sha256(data).hexdigest())
    with pytest.raises(Aborted):
        await world.records.checkpoints.put(NAME, 1, declared, slowly())
    assert await kept(world) == [keys.checkpoint(NAME, 2)]


async def test_a_broken_upload_leaves_the_one_before(world: World) -> None:
    await began(world)
    await put(world, 1, b"whole")
    with pytest.raises(InvalidArgument):
        await world.records.checkpoints.put(NAME, 1, Declared(5, "0" * 64), chunks(b"other"))
    with pytest.raises(InvalidArgument):
        await world.records.checkpoints.put(NAME, 1, Declared(9, "0" * 64), chunks(b"other"))
    assert await got(world) == b"whole"


async def test_they_go_when_the_job_ends_and_none_comes_after(world: World) -> None:
    await began(world)
    await put(world, 1, b"place")
    await world.records.update(TrainingRecord(replace(JOB, state=JobState.SUCCEEDED), 1))
    assert await kept(world) == []
    with pytest.raises(FailedPrecondition) as caught:
        await put(world, 1, b"late")
    assert caught.value.reason == "JOB_FINISHED"
    assert await kept(world) == []


async def test_what_an_end_that_was_cut_short_left_goes_with_the_next_look(world: World) -> None:
    """Killed between the record's end and the cleaning."""
    await began(world)
    await put(world, 1, b"place")
    done = TrainingRecord(replace(JOB, state=JobState.FAILED), 1)
    discard = world.records.checkpoints.discard

    async def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    world.records.checkpoints.discard = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        await world.records.update(done)
    world.records.checkpoints.discard = discard  # type: ignore[method-assign]
    assert await kept(world)
    assert await world.records.list_pending(10, "") == ([], "")
    assert await kept(world) == []
    assert not [key for key in await world.keys() if key.startswith(keys.PENDING_JOBS)]


async def test_jobs_that_are_not_there_have_none(world: World) -> None:
    await world.tenant()
    with pytest.raises(NotFound):
        await put(world, 1, b"place")
    assert await kept(world) == []
