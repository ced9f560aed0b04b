"""Who waits for which module: loads are started once, and their end reaches everyone who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.processor.dispatch import Dispatch
from services.processor.loader import Loader
from services.processor.requests import Failed, ModuleKey, Target
from services.processor.residency import ModuleState
from smile.errors import Internal, SmileError, Unavailable
from smile.logs import get_logger

Module = TypeVar("Module")


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
    """

    def __init__(
        self,
        dispatch: Dispatch[Module],
        loader: Loader[Module],
        clock: Callable[[], float],
        on_failed: Callable[[Failed], None],
    ) -> None:
        self._dispatch = dispatch
        self._loader = loader
        self._clock = clock
        self._on_failed = on_failed
        self._waiters: dict[ModuleKey, dict[int, _Waiter]] = {}
        self._loads: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()

    def enter(self, request: int, target: Target) -> LoadTime:
        """A request needs a module until it calls `leave`; an absent one is on its way now.

        Raises:
            SmileError: the module could not be loaded a moment ago; nothing was entered.
        """
        if (error := self._dispatch.error(target.key)) is not None:
            raise error
        state = self._dispatch.demand(target.key)
        load = LoadTime()
        self._waiters.setdefault(target.key, {})[request] = _Waiter(target, load)
        if state is not ModuleState.READY:
            load.waits(self._clock())
        if state is ModuleState.ABSENT:
            self._start_load(target)
        return load

    def leave(self, request: int, key: ModuleKey) -> None:
        """The request is over."""
        self._dispatch.undemand(key)
        del self._waiters[key][request]
        if not self._waiters[key]:
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
        now = self._clock()
        for waiter in self._waiters.get(target.key, {}).values():
            waiter.load.arrived(now)

    async def _fetch(self, target: Target) -> None:
        """Load a module and wait for room."""
        loaded = await self._loader.load(target)
        while not self._dispatch.admit(target.key, loaded.module, loaded.nbytes):
            self._room.clear()
            await self._room.wait()

    def _fail(self, key: ModuleKey, error: SmileError) -> None:
        for failed in self._dispatch.fail(key, error):
            self._on_failed(failed)
