"""Training struck at every step: by the end of workers, of storage, of the trainer, of Redis."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from smile import codec
from smile.errors import SmileError
from smile.resources import TrainingJob
from smile.v1 import trainer_pb2
from tests.contract.storage_world import StorageWorld, new_id
from tests.faults.failpoints import Blow
from tests.faults.operations import TENANT
from tests.faults.platform import Platform
from tests.faults.processes import PATIENCE_S, Child, until
from tests.faults.tally import Selection, Tally, numbered

ONE_RESULT = "a job that was accepted ends once, with one version: the one it would have had"
ACCOUNTS = "accounting/journal/"  # told every so often, also of the time before the lease was lost
CLOCK_JUMP_S = 2 * 86_400
CLOCK_STEPS = 6  # of the worker, from the jump to its death: it renews its lease meanwhile
SUBMIT_STEPS = 12  # of the trainer, at least, in accepting a job


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that lasts for a while, and what a worker says of it."""

    begin: Callable[[], None]
    end: Callable[[], None]
    words: str
    refused: bool = True  # whether no job can be accepted meanwhile

    def told(self, worker: Child) -> bool:
        return self.words in worker.log.read_text()


@asynccontextmanager
async def timed(tally: Tally) -> AsyncIterator[None]:
    began = time.monotonic()
    yield
    tally.seconds += time.monotonic() - began


async def struck_worker(here: Platform, blow: Blow, at: int) -> tuple[TrainingJob, Child, bool]:
    """A job, and its worker after the blow at step `at`, or after its end if none fell."""
    worker = here.worker()
    worker.points.arm(blow, at)
    job = await here.train()
    worker.bear()
    await until(
        lambda: not worker.alive or worker.stopped or here.state(job) == "succeeded",
        "the blow, or the job's end",
    )
    fell = worker.points.struck
    assert fell or here.state(job) == "succeeded", worker.log.read_text()[-2000:]
    return job, worker, fell


def note(tally: Tally, child: Child, at: int, what: str) -> str:
    """Counts a blow that fell; what to say of it."""
    step = child.points.steps()[at - 1]
    tally.faults += 1
    tally.steps[f"{what}: {step}"] += 1
    return f"{what} at step {at} ({step})"


async def killed_workers(here: Platform, selection: Selection, tally: Tally) -> None:
    """A worker dies at a step; another goes on."""
    async with timed(tally):
        count = here.steps
        for at in numbered(selection, tally.fault, count):
            job, worker, fell = await struck_worker(here, Blow.KILL, at)
            where = note(tally, worker, at, "worker") if fell else "unharmed"
            here.worker().bear()
            await here.ended(job)
            await here.made_once(tally, where, job)
            await here.dismiss()
            if not fell and at >= count:
                return


async def zombies(here: Platform, selection: Selection, tally: Tally) -> None:
    """A worker is stopped past its lease, another ends the job, the first wakes up in vain."""
    async with timed(tally):
        count = here.steps
        for at in numbered(selection, tally.fault, count):
            job, zombie, fell = await struck_worker(here, Blow.STOP, at)
            if not fell:
                here.versions += 1
                await here.dismiss()
                if at >= count:
                    return
                continue
            where = note(tally, zombie, at, "worker")
            heir = here.worker()
            heir.points.arm(Blow.COUNT)
            heir.bear()
            await here.ended(job)
            await done(heir, 1)
            await here.made_once(tally, where, job)
            ended = here.snapshot()
            zombie.send(signal.SIGCONT)
            await done(zombie, at)
            awake = here.snapshot()
            changed = sorted(key for key in ended | awake if ended.get(key) != awake.get(key))
            changed = [key for key in changed if not key.startswith(ACCOUNTS)]
            tally.expect(not changed, f"{where}: awake, it changed {changed}")
            await here.dismiss()


async def done(worker: Child, since: int) -> None:
    """Waits until it has asked for another job after its step number `since`."""
    try:
        await until(
            lambda: "JobQueue.claim" in worker.points.steps()[since:], "a worker to be done"
        )
    except TimeoutError as error:
        told = worker.log.read_text()[-3000:]
        raise AssertionError(f"it hangs after {worker.points.steps()[-9:]}: {told}") from error


async def killed_storage(here: Platform, selection: Selection, tally: Tally) -> None:
    """Storage dies at a step while a job is done, and comes back."""
    async with timed(tally):
        points, count = here.store.child.points, here.store_steps
        for at in numbered(selection, tally.fault, count):
            job = await here.train()
            points.arm(Blow.KILL, at)
            here.worker().bear()
            await until(
                lambda job=job: points.struck or here.state(job) == "succeeded",  # type: ignore[misc]
                "the blow, or the job's end",
            )
            fell = points.struck
            if fell:
                where = note(tally, here.store.child, at, "storage")
                await here.store.child.dead()
                points.disarm()
                await here.store.restart()
            points.disarm()
            await here.ended(job)
            await here.made_once(tally, where if fell else "unharmed", job)
            await here.dismiss()
            if not fell and at >= count:
                return


async def killed_trainer(here: Platform, selection: Selection, tally: Tally) -> None:
    """The trainer dies at a step of accepting a job; the request is repeated."""
    async with timed(tally):
        points = here.trainer.points
        here.worker().bear()
        for at in numbered(selection, tally.fault, SUBMIT_STEPS):
            request = job_request(here)
            points.arm(Blow.KILL, at)
            answered = await asked(here, request)
            fell = points.struck
            where = "unharmed"
            if fell:
                where = note(tally, here.trainer, at, "trainer")
                tally.whole(answered is None, f"{where}: answered by the dead")
                await here.trainer.dead()
            points.disarm()
            if fell:
                await here.trainer.start()
            job = await accepted(here, request)
            await here.ended(job)
            await here.made_once(tally, where, job)
            if not fell:
                break
        await here.dismiss()


def job_request(here: Platform) -> trainer_pb2.CreateTrainingJobRequest:
    assert here.pattern is not None
    return trainer_pb2.CreateTrainingJobRequest(
        parent=f"tenants/{TENANT}",
        training_job=codec.job_to_pb(here.pattern),
        request_id=new_id(),
    )


async def asked(
    here: Platform, request: trainer_pb2.CreateTrainingJobRequest
) -> TrainingJob | None:
    """The job that the trainer has accepted; None where it does not say so."""
    store = here.store
    world = StorageWorld(here.trainer.address, store.world.store, store.operator, store.service)
    key = store.world.keys[TENANT]
    try:
        (answer,) = await world.call("TrainerService.CreateTrainingJob", request, key)
    except SmileError:
        return None
    finally:
        await world.close()
    return codec.job_from_pb(answer)


async def accepted(here: Platform, request: trainer_pb2.CreateTrainingJobRequest) -> TrainingJob:
    """The job, once the trainer takes it, which it does within a while."""
    deadline = time.monotonic() + PATIENCE_S
    while (job := await asked(here, request)) is None:
        assert time.monotonic() < deadline, "the trainer does not accept a job"
        await asyncio.sleep(0.1)
    return job


async def harmed_redis(
    here: Platform, harm: Callable[[], None], selection: Selection, tally: Tally
) -> None:
    """Redis is struck while a worker is between two steps, and is well again at once."""
    async with timed(tally):
        count = here.steps
        for at in numbered(selection, tally.fault, count):
            job, worker, fell = await struck_worker(here, Blow.STOP, at)
            where = note(tally, worker, at, "worker") if fell else "unharmed"
            if fell:
                harm()
                worker.send(signal.SIGCONT)
                here.worker().bear()
            await here.ended(job)
            await here.made_once(tally, where, job)
            await here.dismiss()
            if not fell and at >= count:
                return


async def missed_redis(
    here: Platform, trouble: Trouble, selection: Selection, tally: Tally
) -> None:
    """Redis cannot be used while a worker goes on from a step, until it has said so. What is asked
    of the trainer meanwhile is refused, and accepted afterwards."""
    async with timed(tally):
        count = here.steps
        for at in numbered(selection, tally.fault, count):
            job, worker, fell = await struck_worker(here, Blow.STOP, at)
            where, request = "unharmed", None
            if fell:
                where, request = note(tally, worker, at, "worker"), job_request(here)
                trouble.begin()
                worker.send(signal.SIGCONT)
                meanwhile = await asked(here, request)
                right = meanwhile is None or not trouble.refused
                tally.whole(right, f"{where}: accepted without a queue")
                await until(lambda worker=worker: trouble.told(worker), "Redis to be missed")  # type: ignore[misc]
                trouble.end()
                here.worker().bear()
            jobs = [job] if request is None else [job, await accepted(here, request)]
            for each in jobs:
                await here.ended(each)
            await here.made_once(tally, where, *jobs)
            await here.dismiss()
            if not fell and at >= count:
                return


async def wrong_clocks(here: Platform, selection: Selection, tally: Tally) -> None:
    """The wall clocks of worker, trainer and storage jump while a job is done: no lease is lost."""
    async with timed(tally):
        count = here.steps
        for at in selection.of(count, tally.fault):
            for jump_s in (86_400.0 * 2, -86_400.0 * 2):
                job, worker, fell = await struck_worker(here, Blow.STOP, at)
                where = f"clocks jump by {jump_s:g} s"
                if fell:
                    where = f"{note(tally, worker, at, 'worker')}: {where}"
                    here.worker().bear()
                    for child in (worker, here.trainer, here.store.child):
                        child.points.clock_s = jump_s
                    worker.send(signal.SIGCONT)
                await here.ended(job)
                for child in (here.trainer, here.store.child):
                    child.points.clock_s = 0.0
                await here.made_once(tally, where, job)
                attempt = (await here.client.job(job)).attempt
                tally.whole(attempt == 1, f"{where}: {attempt} attempts")
                await here.dismiss()


async def wrong_redis_clock(here: Platform, selection: Selection, tally: Tally) -> None:
    """Redis' wall clock, by which leases end, jumps while a job is done, and is set right after the
    worker has died: neither is a job done twice to effect, nor does it wait for days.
    """
    async with timed(tally):
        count = here.steps
        for at in selection.of(count, tally.fault):
            for jump_s in (CLOCK_JUMP_S, -CLOCK_JUMP_S):
                for dies in (False, True):
                    await _redis_clock_jumps(here, tally, (at, jump_s), dies=dies)


async def _redis_clock_jumps(
    here: Platform, tally: Tally, blow: tuple[int, int], *, dies: bool
) -> None:
    """At a step, by so many seconds; with `dies`, back again when the worker is dead."""
    at, jump_s = blow
    job, worker, fell = await struck_worker(here, Blow.STOP, at)
    where = f"Redis' clock jumps by {jump_s} s"
    if fell:
        where = f"{note(tally, worker, at, 'worker')}: {where}"
        here.redis.set_clock(jump_s)
        if dies:
            worker.points.arm(Blow.KILL, CLOCK_STEPS)
            worker.send(signal.SIGCONT)
            await until(
                lambda: not worker.alive or here.state(job) == "succeeded", "the worker's end"
            )
            here.redis.set_clock(0)
        else:
            worker.send(signal.SIGCONT)
        here.worker().bear()
    await here.ended(job)
    here.redis.set_clock(0)
    await here.made_once(tally, where, job)
    await here.dismiss()
