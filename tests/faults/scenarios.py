"""Every scenario: what is promised, what is done to it, and on what ground."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults import tables, tables_told, training
from tests.faults.buckets import S3Server, ceph, moto
from tests.faults.creating import MADE_ONCE, killed_creator
from tests.faults.disks import FULL, full_disk
from tests.faults.failpoints import Blow
from tests.faults.platform import Platform, platform
from tests.faults.processes import Nursery
from tests.faults.proxy import Mishap
from tests.faults.redis_server import may_set_clocks
from tests.faults.remote import REMOTE, at_every_request, on_a_real_server, remote_storage
from tests.faults.replicas import ONCE, stopped_replicas
from tests.faults.small_disk import may_mount
from tests.faults.storing import WHOLE, at_every_step, storage
from tests.faults.sweeping import YOUNG, wrong_sweeps
from tests.faults.tables import ENCODER_SAME, TABLE_WHOLE
from tests.faults.tables_told import SAME_ANSWERS
from tests.faults.tally import Selection, Tally
from tests.faults.training import ONE_RESULT, Trouble
from tests.faults.worker_disk import TOLD as DISK_TOLD
from tests.faults.worker_disk import full_worker_disk
from tests.s3_server import available

Run = Callable[["Ground", Selection, Tally], Awaitable[None]]


@dataclass
class Ground:
    """What scenarios stand on, made when first needed."""

    nursery: Nursery
    _stack: AsyncExitStack
    _s3: S3Server | None = None
    _ceph: S3Server | None = None
    _platform: Platform | None = field(default=None)

    @property
    def s3(self) -> S3Server:
        """A server that does as S3 does."""
        if self._s3 is None:
            self._s3 = self._stack.enter_context(moto())
        return self._s3

    @property
    def ceph(self) -> S3Server:
        """A real server."""
        if self._ceph is None:
            self._ceph = self._stack.enter_context(ceph())
        return self._ceph

    async def platform(self) -> Platform:
        if self._platform is None:
            self._platform = await self._stack.enter_async_context(platform(self.nursery))
        return self._platform


@asynccontextmanager
async def ground() -> AsyncIterator[Ground]:
    with Nursery() as nursery:
        async with AsyncExitStack() as stack:
            yield Ground(nursery, stack)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`possible`: whether this machine lets it be played."""

    guarantee: str
    fault: str
    run: Run
    faults: int = 1  # drawn of each operation, where not all are played
    possible: Callable[[], bool] = lambda: True

    async def play(self, on: Ground, *, everything: bool = False, seed: int = 0) -> Tally:
        tally = Tally(self.guarantee, self.fault)
        await self.run(on, Selection(everything, seed, self.faults), tally)
        return tally


def _on_disk(blow: Blow) -> Run:
    async def run(on: Ground, selection: Selection, tally: Tally) -> None:
        with TemporaryDirectory(prefix="sf") as folder:
            async with storage(on.nursery, Path(folder)) as here:
                await at_every_step(here, blow, selection, tally)

    return run


async def _killed_over_s3(on: Ground, selection: Selection, tally: Tally) -> None:
    async with remote_storage(on.nursery, on.s3) as (here, _):
        await at_every_step(here, Blow.KILL, selection, tally)


async def _stopped_replicas(on: Ground, selection: Selection, tally: Tally) -> None:
    await stopped_replicas(on.nursery, on.s3, selection, tally)


async def _wrong_sweeps(on: Ground, selection: Selection, tally: Tally) -> None:
    await wrong_sweeps(on.nursery, on.s3, selection, tally)


async def _full_disk(on: Ground, selection: Selection, tally: Tally) -> None:
    await full_disk(on.nursery, selection, tally)


def _mishap(mishap: Mishap) -> Run:
    async def run(on: Ground, selection: Selection, tally: Tally) -> None:
        await at_every_request(on.nursery, on.s3, mishap, selection, tally)

    return run


def _built(blow: Blow) -> Run:
    async def run(on: Ground, selection: Selection, tally: Tally) -> None:
        await tables.struck_builders(on.nursery, blow, selection, tally)

    return run


async def _table_on_full_disks(on: Ground, selection: Selection, tally: Tally) -> None:
    await tables.full_disks(on.nursery, tally)


async def _distilled(on: Ground, selection: Selection, tally: Tally) -> None:
    await tables.killed_distillers(on.nursery, selection, tally)


async def _real_server(on: Ground, selection: Selection, tally: Tally) -> None:
    await on_a_real_server(on.nursery, on.ceph, selection, tally)


def _training(play: Callable[[Platform, Selection, Tally], Awaitable[None]]) -> Run:
    async def run(on: Ground, selection: Selection, tally: Tally) -> None:
        await play(await on.platform(), selection, tally)

    return run


async def _redis_restarted(on: Ground, selection: Selection, tally: Tally) -> None:
    here = await on.platform()
    await training.harmed_redis(here, here.redis.restart, selection, tally)


async def _redis_wiped(on: Ground, selection: Selection, tally: Tally) -> None:
    here = await on.platform()
    await training.harmed_redis(here, here.redis.wipe, selection, tally)


async def _redis_full(on: Ground, selection: Selection, tally: Tally) -> None:
    here = await on.platform()
    trouble = Trouble(here.redis.fill, here.redis.empty, "Redis refuses writes", refused=False)
    await training.missed_redis(here, trouble, selection, tally)


async def _redis_down(on: Ground, selection: Selection, tally: Tally) -> None:
    here = await on.platform()
    trouble = Trouble(here.redis.kill, here.redis.start, "Redis is away")
    await training.missed_redis(here, trouble, selection, tally)


async def _worker_disk_full(on: Ground, selection: Selection, tally: Tally) -> None:
    await full_worker_disk(on.nursery, selection, tally)


async def _redis_disk_full(on: Ground, selection: Selection, tally: Tally) -> None:
    async with platform(on.nursery, redis_on_small_disk=True) as here:
        trouble = Trouble(
            here.redis.fill_disk, here.redis.empty_disk, "Redis refuses writes", refused=False
        )
        await training.missed_redis(here, trouble, selection, tally)


SCENARIOS: dict[str, Scenario] = {
    "storage-killed": Scenario(WHOLE, "SIGKILL of storage, directory", _on_disk(Blow.KILL)),
    "storage-killed-s3": Scenario(WHOLE, "SIGKILL of storage, S3", _killed_over_s3),
    "replica-stopped": Scenario(ONCE, "SIGSTOP of a replica of storage", _stopped_replicas),
    "disk-full": Scenario(WHOLE, "ENOSPC from a step on", _on_disk(Blow.FULL)),
    "disk-broken": Scenario(WHOLE, "EIO at a step", _on_disk(Blow.BROKEN)),
    "disk-really-full": Scenario(FULL, "a full file system", _full_disk, possible=may_mount),
    **{
        f"s3-{mishap.name.lower().replace('_', '-')}": Scenario(
            REMOTE, f"object store: {mishap}", _mishap(mishap)
        )
        for mishap in Mishap
    },
    "s3-real": Scenario(
        REMOTE, "a real object store (Ceph), all of these", _real_server, possible=available
    ),
    "creator-killed": Scenario(MADE_ONCE, "SIGKILL of the creator", _training(killed_creator)),
    "worker-killed": Scenario(
        ONE_RESULT, "SIGKILL of the worker", _training(training.killed_workers)
    ),
    "worker-stopped": Scenario(
        ONE_RESULT, "SIGSTOP of the worker past its lease", _training(training.zombies)
    ),
    "storage-killed-amid-training": Scenario(
        ONE_RESULT, "SIGKILL of storage amid a job", _training(training.killed_storage)
    ),
    "trainer-killed": Scenario(
        ONE_RESULT, "SIGKILL of the trainer", _training(training.killed_trainer)
    ),
    "redis-restarted": Scenario(ONE_RESULT, "SIGKILL of Redis, AOF", _redis_restarted),
    "redis-wiped": Scenario(ONE_RESULT, "Redis loses all", _redis_wiped),
    "redis-full": Scenario(ONE_RESULT, "Redis is full (noeviction)", _redis_full),
    "worker-disk-full": Scenario(
        DISK_TOLD, "the worker's own disk full", _worker_disk_full, possible=may_mount
    ),
    "redis-disk-full": Scenario(
        ONE_RESULT, "the disk of Redis' AOF full", _redis_disk_full, possible=may_mount
    ),
    "redis-clock": Scenario(
        ONE_RESULT,
        "Redis' wall clock jumps",
        _training(training.wrong_redis_clock),
        possible=may_set_clocks,
    ),
    "redis-down": Scenario(ONE_RESULT, "Redis is down", _redis_down),
    "sweeper-clock": Scenario(YOUNG, "a sweeping replica's clock is ahead", _wrong_sweeps),
    "table-killed": Scenario(
        TABLE_WHOLE, "SIGKILL of `smile tables build` at a step", _built(Blow.KILL), faults=3
    ),
    "table-disk-full": Scenario(TABLE_WHOLE, "ENOSPC from a step on", _built(Blow.FULL), faults=3),
    "table-disk-broken": Scenario(TABLE_WHOLE, "EIO at a step", _built(Blow.BROKEN), faults=3),
    "table-disk-really-full": Scenario(
        TABLE_WHOLE, "a full file system", _table_on_full_disks, possible=may_mount
    ),
    "distillation-killed": Scenario(
        ENCODER_SAME, "SIGKILL of `smile backbones distill`, up to 5 times", _distilled
    ),
    "rows-teller-killed": Scenario(
        SAME_ANSWERS,
        "SIGKILL of a processor that tells others rows",
        _training(tables_told.killed_tellers),
    ),
    "clocks": Scenario(ONE_RESULT, "wall clocks jump by 2 days", _training(training.wrong_clocks)),
}
