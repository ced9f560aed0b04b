"""Who waits for which module: loads are started once, and their end reaches everyone who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.processor.lanes.dispatch import Dispatch
from services.processor.lanes.trace import Facts, Lane, Trace
from services.processor.memory.loader import Loader
from services.processor.memory.residency import ModuleState, Temperature
from services.processor.requests import Failed, ModuleKey, Target
from smile.errors import Internal, Overloaded, SmileError, Unavailable
from smile.logs import get_logger

Module = TypeVar("Module")

PREFETCHES_MAX = 64
PREFETCH_RETRY_S = 1.0


@dataclass(slots=True, eq=False)
class LoadTime:
    """How long one request has waited for its module."""

    total_s: float = 0.0
    since: float | None = None

    def waits(self, now: float) -> None:
        """The module is not there."""
        if self.since is None:
            self.since = now

    def arrived(self, now: float) -> None:
        """The module has come, or never will."""
        if self.since is not None:
            self.total_s += now - self.since
            self.since = None


@dataclass(frozen=True, slots=True)
class _Waiter:
    target: Target
    load: LoadTime


class Demand(Generic[Module]):
    """Modules that requests inside need. For use on the event loop only.

    Args:
        dispatch: Where modules live.
        loader: Where they come from.
        clock: Monotonic seconds.
        on_failed: Told of every chunk whose module could not be had.
        trace: Told of every load.
    """

    def __init__(
        self,
        dispatch: Dispatch[Module],
        loader: Loader[Module],
        clock: Callable[[], float],
        on_failed: Callable[[Failed], None],
        trace: Trace,
    ) -> None:
        self._dispatch = dispatch
        self._loader = loader
        self._clock = clock
        self._on_failed = on_failed
        self._trace = trace
        self._waiters: dict[ModuleKey, dict[int, _Waiter]] = {}
        self._arrivals: dict[ModuleKey, set[asyncio.Future[None]]] = {}
        self._prefetches = 0
        self._loads: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self.on_loaded: Callable[[float], None] = lambda _: None  # told how long each took

    def enter(self, request: int, target: Target) -> LoadTime:
        """A request needs a module until it calls `leave`; an absent one is on its way now.

        Raises:
            SmileError: the module could not be loaded a moment ago; nothing was entered.
        """
        key = target.key
        state = self._dispatch.demand(key)
        load = LoadTime()
        if (waiters := self._waiters.get(key)) is None:
            waiters = self._waiters[key] = {}
        waiters[request] = _Waiter(target, load)
        if state is not ModuleState.READY:
            load.waits(self._clock())
        if state is ModuleState.ABSENT:
            self._start_load(target)
        return load

    def leave(self, request: int, key: ModuleKey) -> None:
        """The request is over, or through with this module."""
        self._dispatch.undemand(key)
        waiters = self._waiters[key]
        waiters.pop(request).load.arrived(self._clock())
        if not waiters:
            del self._waiters[key]
        self.room_made()

    def want(self, key: ModuleKey) -> None:
        """Chunks wait for a module: load it again if it left since its request came."""
        waiters = self._waiters.get(key)
        if not waiters or not self._dispatch.begin(key):
            return
        for waiter in waiters.values():
            waiter.load.waits(self._clock())
        self._start_load(next(iter(waiters.values())).target)

    async def prefetch(self, target: Target) -> None:
        """Bring a module into memory although no request needs it; returns when it is there.

        Raises:
            Overloaded: too many are being prefetched.
            SmileError: it cannot be loaded.
        """
        if (error := self._dispatch.error(target.key)) is not None:
            raise error
        if self._dispatch.temperature(target.key) is not Temperature.COLD:
            return
        with self._prefetching():
            arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._arrivals.setdefault(target.key, set()).add(arrival)
            try:
                if self._dispatch.begin(target.key):
                    self._start_load(target)
                await arrival
            finally:
                self._arrived(target.key, arrival)

    def unpin(self, key: ModuleKey) -> None:
        """A pinned module may leave again."""
        self._dispatch.unpin(key)
        self.room_made()

    def unload(self, key: ModuleKey) -> bool:
        """Give back a module's memory once nobody needs it; whether that was now."""
        unloaded = self._dispatch.unload(key)
        self.room_made()
        return unloaded

    def sweep(self, idle_s: float) -> int:
        """Unload what has not been used for `idle_s`; how many that were."""
        swept = self._dispatch.sweep(idle_s)
        self.room_made()
        return swept

    def room_made(self) -> None:
        """Modules have been used: some may leave, for those that wait for room."""
        self._room.set()

    async def close(self) -> None:
        """End all loads."""
        for task in list(self._loads):
            task.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)

    def _start_load(self, target: Target) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._load(target), context=Context())  # nobody's deadline
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _load(self, target: Target) -> None:
        started = self._clock()
        try:
            await self._fetch(target)
        except SmileError as error:
            get_logger().warning("module not loaded", version=str(target.name), why=error.message)
            self._fail(target.key, error)
        except asyncio.CancelledError:
            self._fail(target.key, Unavailable("the processor is stopping", retry_after=1.0))
            raise
        except Exception:
            get_logger().exception("loading a module failed", version=str(target.name))
            self._fail(target.key, Internal("the module could not be loaded; the log has why"))
        else:
            self.on_loaded(self._clock() - started)
            for arrival in self._arrivals.get(target.key, ()):
                if not arrival.done():
                    arrival.set_result(None)
        now = self._clock()
        for waiter in self._waiters.get(target.key, {}).values():
            waiter.load.arrived(now)

    async def _fetch(self, target: Target) -> None:
        """Load a module, wait for room and put it there."""
        started = self._clock()
        async with self._loader.load(target) as decoded:
            sizes = decoded.row_bytes
            while (slots := self._dispatch.reserve(target.key, sizes)) is None:
                self._room.clear()
                await self._room.wait()
            copying = self._clock()
            module = await self._loader.place(target, decoded, slots)
        if self._trace.on:  # before a batch can use it
            now, facts = self._clock(), Facts(vplms=1, bytes=sum(sizes))
            self._trace.span(Lane.COPY, copying, now, facts)
            self._trace.loaded(target.key, started, now, facts)
        self._dispatch.publish(target.key, module)
        self.room_made()  # it may leave if nobody has asked for it

    def _fail(self, key: ModuleKey, error: SmileError) -> None:
        for failed in self._dispatch.fail(key, error):
            self._on_failed(failed)
        for arrival in self._arrivals.get(key, ()):
            if not arrival.done():
                arrival.set_exception(error)
        self.room_made()

    @contextmanager
    def _prefetching(self) -> Iterator[None]:
        if self._prefetches >= PREFETCHES_MAX:
            raise Overloaded(
                f"{self._prefetches} modules are being prefetched, at most {PREFETCHES_MAX} may be",
                retry_after=PREFETCH_RETRY_S,
            )
        self._prefetches += 1
        try:
            yield
        finally:
            self._prefetches -= 1

    def _arrived(self, key: ModuleKey, arrival: asyncio.Future[None]) -> None:
        """Nobody waits for this arrival any more."""
        self._arrivals[key].remove(arrival)
        if not self._arrivals[key]:
            del self._arrivals[key]
