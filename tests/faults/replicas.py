"""Two replicas of storage over one bucket: one is stopped amid a request, the other does it."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass

from smile.errors import SmileError
from tests.contract.storage_world import StorageWorld
from tests.faults.buckets import S3Server
from tests.faults.failpoints import Blow
from tests.faults.operations import OPERATIONS
from tests.faults.processes import Nursery, until
from tests.faults.remote import remote_storage
from tests.faults.storing import Storage, compared, everything_told, kind_of, steps_of
from tests.faults.tally import Selection, Tally

ONCE = "a request repeated at another replica takes effect once, whenever the first wakes up"


@dataclass(frozen=True, slots=True)
class Pair:
    """The replica that is stopped, and calls to the other one."""

    here: Storage
    other: StorageWorld


async def stopped_replicas(
    nursery: Nursery, server: S3Server, selection: Selection, tally: Tally
) -> None:
    """At the selected steps of every operation."""
    began = time.monotonic()
    for operation in selection.among(list(OPERATIONS), "replicas"):
        async with remote_storage(nursery, server) as (here, _):
            second = here.another()
            await second.start()
            other = here.asking(second)
            other.keys = here.world.keys
            try:
                count = await steps_of(here, operation, Blow.COUNT)
                for at in selection.of(count, f"replica {operation}"):
                    await _stopped(Pair(here, other), operation, tally, at)
                await everything_told(here, tally)
            finally:
                await other.close()
                await second.close()
    tally.seconds += time.monotonic() - began


async def _stopped(pair: Pair, operation: str, tally: Tally, at: int) -> None:
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
    where = f"{operation}, stopped at step {at} ({step})"
    tally.faults += 1
    tally.steps[f"{operation}: {kind_of(step)}"] += 1
    halted = here.judged()
    try:
        await change.send(pair.other)
    except SmileError as error:
        tally.whole(False, f"{where}: another replica cannot do it: {error}")
    done = here.judged()
    child.points.disarm()
    child.send(signal.SIGCONT)
    await asyncio.gather(first, return_exceptions=True)
    woken = here.judged()
    compared(tally, where, (before, halted, done))
    tally.expect(woken.whole == done.whole, f"{where}: awake, it changed what was done")
    tally.torn += [f"{where}: awake: {what}" for what in woken.torn]
