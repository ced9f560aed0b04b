"""Wires a processor together by hand: everything between its settings and its server."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from services.processor.config import ProcessorSettings
from services.processor.engine import Engine
from services.processor.lanes.device import Lanes
from services.processor.lanes.dispatch import Dispatch
from services.processor.lanes.handoff import Handoff
from services.processor.lanes.sequence import Turnstile
from services.processor.lanes.trace import Trace
from services.processor.materialize.fetching import Cache, Fetcher
from services.processor.materialize.keeping import Keeper
from services.processor.memory.hierarchy import Hierarchy
from services.processor.memory.loader import Bytes, Loader
from services.processor.memory.residency import Residency
from services.processor.metering import ProcessorMeter
from services.processor.metrics import exposed
from services.processor.pipeline import Collaborators, Pipeline
from services.processor.rentals import Rentals
from services.processor.renting import Estate, Renting
from services.processor.resolver import Resolver, Versions
from services.processor.scheduling.admission import Admission
from services.processor.scheduling.latency import Latencies
from services.processor.scheduling.probe import learn
from services.processor.scheduling.scheduler import Terms
from smile.client.metering import Bookkeeper, Meter
from smile.logs import get_logger
from smile.model.loaded import LoadedModule
from smile.rpc.freshness import Freshness
from smile.rpc.health import Readiness
from smile.store.redis import connect

BACKBONES_CHECK = "backbones"
STORAGE_CHECK = "storage"
RETRY_S_FIRST = 1.0
RETRY_S_MAX = 30.0


class Storage(Versions, Bytes, Protocol):
    """What the processor asks of storage."""


@dataclass(frozen=True, slots=True)
class Processor:
    """One processor: its device, its pipeline, and the threads that work beside it."""

    engine: Engine
    pipeline: Pipeline[LoadedModule]
    renting: Renting[LoadedModule]
    metrics_at: tuple[str, int]  # host and port; port 0: nowhere
    pool: ThreadPoolExecutor
    trace: Trace
    measure: Callable[[], None]
    meter: Meter
    keeper: Keeper
    fetcher: Fetcher

    @classmethod
    def build(
        cls,
        settings: ProcessorSettings,
        storage: Storage,
        freshness: Freshness | None = None,
        books: Bookkeeper | None = None,
        cache: Cache | None = None,
    ) -> Processor:
        """A processor that has not been started. Without `freshness`, no change feed is told of;
        without `books`, nobody of what tenants use; without `cache`, artifacts must be there."""
        pool = ThreadPoolExecutor(settings.tokenizer_threads, thread_name_prefix="tokenize")
        clock = time.monotonic
        hierarchy = Hierarchy.build(settings.memory_options, settings.device)
        residency = Residency(hierarchy.memory, settings.module_failed_s)
        rentals = Rentals(settings.rental_limits)
        latencies = Latencies(settings.stream_count)
        terms = Terms(rentals.weight_of, rentals.requests_max_of, latencies.of)
        wait_s = settings.batch_wait_ms_max / 1e3
        dispatch = Dispatch(
            settings.batch_limits, residency, wait_s=wait_s, clock=clock, terms=terms
        )
        trace = Trace(settings.trace, clock=clock)
        engine = Engine(settings.engine_options, trace)
        parts = Collaborators(
            engine=engine,
            resolver=Resolver(
                storage, ttl_s=settings.resolve_ttl_s, clock=clock, freshness=freshness
            ),
            loader=Loader(
                storage,
                engine,
                pool,
                rows_of=hierarchy.host.rows,
                loads_max=settings.module_loads_max,
                kept=hierarchy.spill,
            ),
            dispatch=dispatch,
            lanes=Lanes(
                dispatch,
                engine,
                Handoff(
                    settings.in_flight_max,
                    clock,
                    trace,
                    settings.stream_count,
                    settings.bulk_stream_count,
                ),
                trace,
            ),
            admission=_admission(settings, latencies, rentals, clock),
            latencies=latencies,
            rentals=rentals,
            pool=pool,
            clock=clock,
            trace=trace,
            turnstile=_turnstile(settings, dispatch) if settings.sequential else None,
            meter=ProcessorMeter(books, settings.usage_report_s),
        )
        pipeline = Pipeline(parts, settings.chunk_limits)
        renting = Renting(_estate(parts, pipeline, settings.module_idle_s))
        measure = partial(learn, engine, latencies, settings.latency_folder, settings.calibration_s)
        metrics_at, meter = settings.metrics_at, parts.meter.meter
        keeper = _keeper(settings, engine)
        fetcher = Fetcher(cache, settings.artifacts_wanted, engine.adopt)
        return cls(
            engine, pipeline, renting, metrics_at, pool, trace, measure, meter, keeper, fetcher
        )

    @asynccontextmanager
    async def running(self, readiness: Readiness) -> AsyncIterator[None]:
        """Backbones loaded and warmed up beside the server, then requests answered until left."""
        starting = asyncio.create_task(self._start(readiness))
        reporting = asyncio.create_task(self.meter.run())
        keeping = asyncio.create_task(self.keeper.run())
        fetching = asyncio.create_task(self.fetcher.run(readiness))
        try:
            with self._trace_on_signal():
                async with exposed(self.pipeline, *self.metrics_at):
                    yield
        finally:
            starting.cancel()
            reporting.cancel()
            keeping.cancel()
            fetching.cancel()
            await asyncio.gather(starting, reporting, keeping, fetching, return_exceptions=True)
            await self.renting.close()
            await self.pipeline.close()
            await self.meter.close()
            await self.keeper.close()
            self.pool.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(self._write_trace)

    @contextmanager
    def _trace_on_signal(self) -> Iterator[None]:
        """Where a trace is kept, SIGUSR1 writes it as far as it goes."""
        if not self.trace.on or threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(
            signal.SIGUSR1, lambda: loop.run_in_executor(None, self._write_trace)
        )
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGUSR1)

    def _write_trace(self) -> None:
        try:
            if (path := self.trace.write()) is not None:
                get_logger().info("trace written", path=str(path))
        except OSError as error:
            get_logger().error("the trace cannot be written", why=str(error))

    async def _start(self, readiness: Readiness) -> None:
        wait_s = RETRY_S_FIRST
        await self.fetcher.first()
        while True:
            try:
                await asyncio.to_thread(self.engine.load)
                await asyncio.to_thread(self.measure)
            except Exception as error:
                get_logger().exception("a backbone cannot be served", retry_s=wait_s)
                readiness.set_unready(BACKBONES_CHECK, str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S_MAX)
            else:
                self.pipeline.start()
                self.renting.start()
                self.fetcher.loaded.set()
                readiness.set_ready(BACKBONES_CHECK)
                return


def _admission(
    settings: ProcessorSettings,
    latencies: Latencies,
    rentals: Rentals,
    clock: Callable[[], float],
) -> Admission:
    return Admission(
        settings.queue_limits,
        bulk_s=latencies.bulk_s,
        weight_of=rentals.weight_of,
        slack_tokens=settings.ahead_tokens_max,
        streams=settings.stream_count,
        on_unmeetable=lambda: latencies.doubt(clock()),
    )


def _estate(
    parts: Collaborators[LoadedModule], pipeline: Pipeline[LoadedModule], sweep_s: float
) -> Estate[LoadedModule]:
    return Estate(
        rentals=parts.rentals,
        resolver=parts.resolver,
        demand=pipeline.demand,
        dispatch=parts.dispatch,
        check=parts.engine.check,
        clock=parts.clock,
        sweep_s=sweep_s,
    )


def _keeper(settings: ProcessorSettings, engine: Engine) -> Keeper:
    """Looks after rows that stand in for lower layers."""
    url = settings.cache_redis_url
    return Keeper(
        engine.live_rows,
        settings.stand_ins,
        rounds_s=settings.learning.rounds_s,
        redis=None if url is None else partial(connect, url.get_secret_value(), text=False),
    )


def _turnstile(settings: ProcessorSettings, dispatch: Dispatch[LoadedModule]) -> Turnstile:
    """Micro-batches of the size that pipelined execution forms."""
    limits = settings.batch_limits
    return Turnstile(
        tokens_max=limits.tokens_max,
        texts_max=limits.texts_max,
        wait_s=settings.batch_wait_ms_max / 1e3,
        expect=dispatch.expect,
        leave=dispatch.leave,
    )
