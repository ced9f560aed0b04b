"""A replica whose clock is days ahead sweeps while another is amid a request."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass

from smile.errors import SmileError
from smile.v1 import storage_pb2
from tests.contract.storage_world import new_id
from tests.faults.buckets import S3Server
from tests.faults.failpoints import Blow
from tests.faults.operations import TENANT
from tests.faults.processes import Child, Nursery, until
from tests.faults.remote import remote_storage
from tests.faults.storing import Storage, compared, everything_told, kind_of, repeated, steps_of
from tests.faults.tally import Selection, Tally

YOUNG = "what is being stored, or can be had back, is not swept away by a replica's wrong clock"
AHEAD_S = 30 * 86_400.0  # more than any grace period
MAKING = (
    "create a vPLM",
    "create over a deleted one",
    "upload a version",
    "upload a dataset",
    "record a job",
    "keep a checkpoint",
)
SWEPT = '"event": "swept"'


@dataclass(frozen=True, slots=True)
class Sweeping:
    """A replica that makes things, and one that sweeps, all the time, by a wrong clock."""

    here: Storage
    sweeper: Child

    async def sweeps(self) -> None:
        """Waits for a whole sweep that begins after this."""
        seen = self._count()
        try:
            await until(lambda: self._count() >= seen + 2, "a sweep")
        except TimeoutError as error:
            raise AssertionError(f"no sweep: {self.sweeper.log.read_text()[-2000:]}") from error

    def _count(self) -> int:
        return self.sweeper.log.read_text().count(SWEPT)


async def wrong_sweeps(
    nursery: Nursery, server: S3Server, selection: Selection, tally: Tally
) -> None:
    """At the selected steps of everything that makes something."""
    began = time.monotonic()
    for operation in selection.among(list(MAKING), "sweeps"):
        async with remote_storage(nursery, server) as (here, _):
            sweeper = here.another()
            sweeper.settings |= {"SMILE_STORAGE_SWEEP_EVERY_S": "1", "SMILE_LOG_LEVEL": "info"}
            sweeper.points.clock_s = AHEAD_S
            await sweeper.start()
            try:
                count = await steps_of(here, operation, Blow.COUNT)
                deleted = await _deleted(here)
                for at in selection.of(count, f"sweep {operation}"):
                    await _swept(Sweeping(here, sweeper), operation, tally, at)
                await _had_back(here, deleted, tally)
                await everything_told(here, tally)
            finally:
                await sweeper.close()
    tally.seconds += time.monotonic() - began


async def _deleted(here: Storage) -> str:
    """A vPLM that was deleted just now."""
    change = await here.fresh("delete a vPLM")
    await change.done(here.world)
    assert isinstance(change.request, storage_pb2.DeleteVplmRecordRequest)
    return change.request.name


async def _had_back(here: Storage, name: str, tally: Tally) -> None:
    request = storage_pb2.UndeleteVplmRecordRequest(name=name, request_id=new_id())
    try:
        await here.world.call("StorageService.UndeleteVplm", request, here.world.service, TENANT)
    except SmileError as error:
        tally.expect(False, f"{name} was deleted just now, and is gone: {error!r}")
    else:
        tally.expect(True, name)


async def _swept(pair: Sweeping, operation: str, tally: Tally, at: int) -> None:
    here, child = pair.here, pair.here.child
    change = await here.fresh(operation)
    before = here.judged()
    child.points.arm(Blow.STOP, at)
    first = asyncio.ensure_future(change.send(here.world))
    await until(lambda: child.stopped or first.done(), "the replica to halt")
    if first.done():
        child.points.disarm()
        await first
        return
    step = child.points.steps()[at - 1]
    where = f"{operation}, swept at step {at} ({step})"
    tally.faults += 1
    tally.steps[f"{operation}: {kind_of(step)}"] += 1
    await pair.sweeps()
    halted = here.judged()
    child.points.disarm()
    child.send(signal.SIGCONT)
    try:
        await first
    except SmileError:
        await repeated(here, change, tally, where)
    compared(tally, where, (before, halted, here.judged()))
