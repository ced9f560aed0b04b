"""Wires a processor together by hand: everything between its settings and its server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from services.processor.admission import Admission
from services.processor.config import ProcessorSettings
from services.processor.device import Lanes
from services.processor.dispatch import Dispatch
from services.processor.engine import Engine
from services.processor.handoff import Handoff
from services.processor.loader import Bytes, Loader
from services.processor.pipeline import Collaborators, Pipeline
from services.processor.residency import Residency
from services.processor.resolver import Resolver, Versions
from services.processor.trace import Trace
from smile.logs import get_logger
from smile.model.loaded import LoadedModule
from smile.rpc.health import Readiness

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
    pool: ThreadPoolExecutor

    @classmethod
    def build(cls, settings: ProcessorSettings, storage: Storage) -> Processor:
        """A processor that has not been started."""
        engine = Engine(settings.engine_options)
        pool = ThreadPoolExecutor(settings.tokenizer_threads, thread_name_prefix="tokenize")
        clock = time.monotonic
        residency = Residency[LoadedModule](settings.modules_bytes_max, settings.module_failed_s)
        wait_s = settings.batch_wait_ms_max / 1e3
        dispatch = Dispatch(settings.batch_limits, residency, wait_s=wait_s, clock=clock)
        trace = Trace(settings.trace, clock=clock)
        parts = Collaborators(
            engine=engine,
            resolver=Resolver(storage, ttl_s=settings.resolve_ttl_s, clock=clock),
            loader=Loader(storage, engine, pool, loads_max=settings.module_loads_max),
            dispatch=dispatch,
            lanes=Lanes(dispatch, engine, Handoff(settings.batches_in_flight, clock, trace), trace),
            admission=Admission(settings.queue_limits),
            pool=pool,
            clock=clock,
        )
        return cls(engine, Pipeline(parts, settings.chunk_limits), pool)

    @asynccontextmanager
    async def running(self, readiness: Readiness) -> AsyncIterator[None]:
        """Backbones loaded and warmed up beside the server, then requests answered until left."""
        starting = asyncio.create_task(self._start(readiness))
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self.pipeline.close()
            self.pool.shutdown(wait=False, cancel_futures=True)

    async def _start(self, readiness: Readiness) -> None:
        wait_s = RETRY_S_FIRST
        while True:
            try:
                await asyncio.to_thread(self.engine.load)
            except Exception as error:
                get_logger().exception("a backbone cannot be served", retry_s=wait_s)
                readiness.set_unready(BACKBONES_CHECK, str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S_MAX)
            else:
                self.pipeline.start()
                readiness.set_ready(BACKBONES_CHECK)
                return
