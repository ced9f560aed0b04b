"""A worker process: `python -m services.trainer.worker`. Claims jobs, for ever: one at a time, or
several that are small.

With `--parent PID` it ends when the process that started it is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from services.trainer.backbones import loaded
from services.trainer.config import TrainerSettings
from services.trainer.metering import Allowances, Tariff, TrainingMeter
from services.trainer.queueing.queue import Claim, JobQueue, Terms, as_set
from services.trainer.standins import StandIns
from services.trainer.storage_client import StorageClient
from services.trainer.worker.attempt import Workshop
from services.trainer.worker.berths import Berths
from services.trainer.worker.memory import release_free_memory, tame_heap
from services.trainer.worker.runner import Runner
from smile import logs
from smile.client.artifact_cache import ArtifactCache
from smile.client.bookkeeping import Books
from smile.config import load
from smile.errors import Unavailable
from smile.logs import get_logger
from smile.rpc.channel import ServiceCredential, build_channel
from smile.rpc.server import run
from smile.store.redis import connect

PARENT = "--parent"
IDLE_S = 2.0  # how often an idle worker looks for leases that ran out
AWAY_S = 1.0  # pause while the queue is away
PARENT_CHECK_S = 0.5
SPARE_THREADS = 8  # for what is read and written beside training


async def main(settings: TrainerSettings, parent: int | None) -> None:
    ending = asyncio.Event()
    _end_on_signals(ending)
    watching = asyncio.create_task(_end_with(parent, ending))
    key = settings.service_key.get_secret_value()
    client = connect(settings.redis_url.get_secret_value())
    queue = JobQueue(client, settings.queue)
    async with build_channel(
        settings.storage_address, credentials=ServiceCredential(key)
    ) as channel:
        shop = Workshop(
            storage=StorageClient(channel),
            backbones=loaded(settings.sources),
            folder=settings.folder,
            states_bytes_max=settings.states_bytes_max // settings.jobs,
            checkpoint_s=settings.checkpoint_s,
            states_disk_bytes_max=settings.states_disk_bytes_max // settings.jobs,
            precision=settings.precision,
            stand_ins=StandIns(settings.stand_ins),
            full=settings.full,
            shared_bytes_max=settings.shared_bytes_max,
        )
        books = Books(channel)
        tariff = Tariff(settings.peak_factor, lambda: queue.off_peak, settings.full_factor)
        meter = TrainingMeter(books, tariff, settings.usage_report_s)
        reporting = asyncio.create_task(meter.meter.run())
        cache = ArtifactCache(channel, settings.artifacts)
        fetching = asyncio.create_task(cache.keep(settings.artifacts_wanted))
        berths = Berths(settings.jobs)
        runners = [
            Runner(shop, queue, ending, meter=meter, berths=berths) for _ in range(settings.jobs)
        ]
        await work_beside(queue, runners, ending, Allowances(books, meter).share)
        reporting.cancel()
        fetching.cancel()
        await meter.meter.close()
    await client.aclose()
    watching.cancel()


async def work_beside(
    queue: JobQueue, runners: Sequence[Runner], ending: asyncio.Event, terms: Terms = as_set
) -> None:
    """Claims and works with each of them until `ending` is set. Raises what one of them raises,
    once the others have given their jobs back."""

    async def until_it_ends(runner: Runner) -> None:
        try:
            await work(queue, runner, ending, terms)
        finally:
            ending.set()

    pool = ThreadPoolExecutor(len(runners) + SPARE_THREADS, "job")  # each job holds a thread
    asyncio.get_running_loop().set_default_executor(pool)
    outcomes = await asyncio.gather(*map(until_it_ends, runners), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


async def work(
    queue: JobQueue, runner: Runner, ending: asyncio.Event, terms: Terms = as_set
) -> None:
    """Claims and works until `ending` is set; `terms` tells what tenants may have. While a job
    here waits for others to end, none is claimed."""
    consumer = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
    get_logger().info("working", consumer=consumer)
    while not ending.is_set():
        await _unless(ending, runner.berths.until_taking())
        if ending.is_set():
            break
        claim = await _claim(queue, consumer, ending, terms)
        if claim is not None:
            await runner.work(claim)
            release_free_memory()
    get_logger().info("worker ends", consumer=consumer)


async def _claim(
    queue: JobQueue, consumer: str, ending: asyncio.Event, terms: Terms
) -> Claim | None:
    """A job; None after a while without one, or while the queue is away."""
    try:
        claim = await queue.claim(consumer, terms)
        if claim is None:
            await _unless(ending, queue.wait(min(IDLE_S, queue.lease_s)))
    except Unavailable as error:
        get_logger().warning("the queue is away", why=error.message)
        await _unless(ending, asyncio.sleep(AWAY_S))
        return None
    return claim


async def _unless(ending: asyncio.Event, waiting: Coroutine[None, None, None]) -> None:
    """Waits, but not past `ending`. Raises what `waiting` raises."""
    waited = asyncio.create_task(waiting)
    ended = asyncio.create_task(ending.wait())
    await asyncio.wait({waited, ended}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if waited.done():
        await waited
        return
    waited.cancel()
    await asyncio.wait({waited})


def _end_on_signals(ending: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)


async def _end_with(parent: int | None, ending: asyncio.Event) -> None:
    """Sets `ending` once this process is no longer a child of `parent`."""
    while parent is not None:
        if os.getppid() != parent:
            get_logger().warning("the supervisor is gone", parent=parent)
            ending.set()
            return
        await asyncio.sleep(PARENT_CHECK_S)


def set_threads(settings: TrainerSettings) -> None:
    """Shares the machine's cores among its workers' jobs."""
    import torch  # noqa: PLC0415

    cores = len(os.sched_getaffinity(0))
    at_once = max(settings.workers, 1) * settings.jobs
    torch.set_num_threads(settings.threads or max(1, cores // at_once))


if __name__ == "__main__":
    settings = load(TrainerSettings)
    logs.configure("trainer-worker", settings.log_level, settings.log_format)
    tame_heap()
    set_threads(settings)
    run(main(settings, int(sys.argv[2]) if sys.argv[1:2] == [PARENT] else None))
