"""Which immutable version answers: aliases and version names, resolved through storage and
remembered briefly.

An answer is used for at most `ttl_s`, so a moved alias or a deleted vPLM is seen within that time;
a name in use is asked for again in the background from half of it on, so hot vPLMs never wait for
storage. While storage is away the last answer keeps serving. Names carry the caller's tenant, so an
answer never crosses tenants.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Protocol

from services.processor.requests import Target
from smile.errors import DataCorrupted, DeadlineExceeded, NotFound, Overloaded, Unavailable
from smile.logs import get_logger
from smile.names import VersionName, VplmName
from smile.resources import VplmVersion

ENTRIES_MAX = 100_000
PATIENCE_S = 0.5  # how long a request waits for storage where an old answer is known
ASK_AGAIN_S = 1.0  # after storage could not answer
AWAY_S = 5.0  # how long it then counts as away, and nobody waits for it
_AWAY = (Unavailable, DeadlineExceeded, Overloaded)


class Versions(Protocol):
    """Where versions are looked up."""

    async def resolve(self, name: VplmName, alias: str) -> VplmVersion: ...
    async def get(self, name: VersionName) -> VplmVersion: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked up: the version an alias points to, or one version in particular."""

    vplm: VplmName
    alias: str
    version: int | None = None

    @property
    def version_name(self) -> VersionName | None:
        return None if self.version is None else VersionName(self.vplm, self.version)


@dataclass(frozen=True, slots=True)
class _Known:
    """An answer, asked for at `asked`; `failed` is when storage last could not confirm it."""

    target: Target
    asked: float
    failed: float | None = None


class Resolver:
    """Remembers where names point. For use on the event loop only.

    Args:
        versions: Where to ask.
        ttl_s: How long an answer is used while storage can be asked.
        clock: Monotonic seconds.
        entries_max: Answers remembered; the least recently used leaves first.
    """

    def __init__(
        self,
        versions: Versions,
        *,
        ttl_s: float,
        clock: Callable[[], float],
        entries_max: int = ENTRIES_MAX,
    ) -> None:
        self._versions = versions
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries_max = entries_max
        self._known: OrderedDict[Asked, _Known] = OrderedDict()
        self._asking: dict[Asked, asyncio.Task[Target]] = {}

    async def target(self, asked: Asked) -> Target:
        """The version that answers `asked`.

        Raises:
            NotFound: there is no such vPLM, alias or version (any more).
            Unavailable: storage is away and nothing is remembered.
        """
        known = self._known.get(asked)
        if known is None:
            return await asyncio.shield(self._start(asked))
        self._known.move_to_end(asked)
        now = self._clock()
        if now - known.asked <= self._ttl_s:
            if now - known.asked > self._ttl_s / 2:
                self._start(asked)
            return known.target
        if known.failed is not None and now - known.failed < AWAY_S:
            if now - known.failed >= ASK_AGAIN_S:
                self._start(asked)
            return known.target
        return await self._doubted(asked, known)

    async def close(self) -> None:
        """End what is being asked."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _doubted(self, asked: Asked, known: _Known) -> Target:
        """The answer as of now; the one known where storage does not give any in time."""
        asking = self._start(asked)
        await asyncio.wait({asking}, timeout=PATIENCE_S)
        if asking.done() and not isinstance(asking.exception(), _AWAY):
            return asking.result()
        get_logger().warning(
            "storage is away, using a remembered version", version=str(known.target.name)
        )
        return known.target

    def _start(self, asked: Asked) -> asyncio.Task[Target]:
        task = self._asking.get(asked)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(asked), context=Context())
            self._asking[asked] = task
            task.add_done_callback(lambda done: self._asked(asked, done))
        return task

    def _asked(self, asked: Asked, task: asyncio.Task[Target]) -> None:
        del self._asking[asked]
        if not task.cancelled():
            task.exception()  # taken, so that an answer nobody waits for does not warn

    async def _ask(self, asked: Asked) -> Target:
        started = self._clock()
        try:
            target = await self._look_up(asked)
        except NotFound:
            self._known.pop(asked, None)
            raise
        except _AWAY:
            if (known := self._known.get(asked)) is not None:
                self._known[asked] = replace(known, failed=self._clock())
            raise
        self._known[asked] = _Known(target, started)
        self._known.move_to_end(asked)
        if len(self._known) > self._entries_max:
            self._known.popitem(last=False)
        return target

    async def _look_up(self, asked: Asked) -> Target:
        if (name := asked.version_name) is not None:
            version = await self._versions.get(name)
        else:
            version = await self._versions.resolve(asked.vplm, asked.alias)
        target = Target.of(version)
        if target.name.vplm != asked.vplm or (name is not None and target.name != name):
            raise DataCorrupted(f"storage answered {asked.vplm} with {version.name}")
        return target
