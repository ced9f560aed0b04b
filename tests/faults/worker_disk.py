"""A worker whose own disk is full, from the start or from a step on."""

from __future__ import annotations

import signal

from smile.client.client import AsyncClient
from smile.resources import JobState, TrainingJob
from tests.faults.failpoints import Blow
from tests.faults.platform import VPLM, Platform, client, platform
from tests.faults.processes import Nursery
from tests.faults.small_disk import fill
from tests.faults.tally import Selection, Tally
from tests.faults.training import note, struck_worker, timed

TOLD = "a job for which a worker has no disk fails and says so; with room, it succeeds"
REASON = "DISK_FULL"


async def full_worker_disk(nursery: Nursery, selection: Selection, tally: Tally) -> None:
    """Before a job, and amid it at the selected steps."""
    async with platform(nursery, worker_on_small_disk=True) as here, timed(tally):
        fill(here.worker_filler)
        job = await here.train()
        here.worker().bear()
        await here.ended(job)
        tally.faults += 1
        tally.steps["from the start"] += 1
        told = await _ended(here, job, tally, "full from the start")
        tally.whole(told is JobState.FAILED, f"full from the start: {told}")
        await _again(here, tally, "full from the start")
        for at in selection.of(here.steps, tally.fault):
            job, worker, fell = await struck_worker(here, Blow.STOP, at)
            where = note(tally, worker, at, "worker") if fell else "unharmed"
            if fell:
                fill(here.worker_filler)
                worker.send(signal.SIGCONT)
            await here.ended(job)
            if await _ended(here, job, tally, where) is JobState.SUCCEEDED:
                await here.made_once(tally, where, job)
            await _again(here, tally, where)


async def _ended(here: Platform, job: TrainingJob, tally: Tally, where: str) -> JobState:
    """How a job ended. One that failed says why, and has made nothing."""
    asking: AsyncClient
    async with client(here) as asking:
        seen = await asking.job(job)
        numbers = [version.number async for version in asking.versions(VPLM)]
    if seen.state is JobState.SUCCEEDED:
        return seen.state
    reason = seen.error.reason if seen.error else ""
    tally.whole(reason == REASON, f"{where}: {seen.state}, {reason}: {seen.error}")
    tally.expect(len(numbers) == here.versions, f"{where}: it failed, and made {numbers}")
    return seen.state


async def _again(here: Platform, tally: Tally, where: str) -> None:
    """With room, the next job succeeds."""
    here.worker_filler.unlink(missing_ok=True)
    await here.dismiss()
    job = await here.train()
    here.worker().bear()
    await here.ended(job)
    await here.made_once(tally, f"{where}: again, with room", job)
    await here.dismiss()
