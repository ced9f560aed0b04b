"""Which immutable version answers: aliases and version names, resolved through storage and
remembered.

An answer is used while it is known to have held within the last `ttl_s`, so a moved alias or a
deleted vPLM is seen within that time. A change feed keeps answers known to hold; what it does not
cover ages from when it was asked for. A name in use is asked for again in the background from half
of `ttl_s` on, so hot vPLMs never wait for storage. While storage is away the last answer keeps
serving. Names carry the caller's tenant, so an answer never crosses tenants.

An alias may split its traffic between two versions. Which of them answers is decided by a hash of
the vPLM, the alias and the request's routing key: the same key gets the same version everywhere and
for as long as the weight stays, and a growing weight only moves keys towards the second version.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, replace
from random import uniform
from typing import Protocol

from services.processor.requests import Asked, Target
from smile.errors import DataCorrupted, DeadlineExceeded, NotFound, Overloaded, Unavailable
from smile.logs import get_logger
from smile.names import VersionName, VplmName
from smile.resources import VplmVersion
from smile.rpc.freshness import Freshness, Lookup
from smile.versioning import check_served

ENTRIES_MAX = 100_000
PATIENCE_S = 0.5  # how long a request waits for storage where an old answer is known
ASK_AGAIN_S = 1.0  # after storage could not answer
AWAY_S = 5.0  # how long it then counts as away, and nobody waits for it
_AWAY = (Unavailable, DeadlineExceeded, Overloaded)


class Versions(Protocol):
    """Where versions are looked up."""

    async def resolve(self, name: VplmName, alias: str) -> VplmVersion: ...
    async def fetch(self, name: VplmName, alias: str) -> VplmVersion:
        """As `resolve`, and likely to be loaded at once."""
        ...

    async def get(self, name: VersionName) -> VplmVersion: ...


@dataclass(frozen=True, slots=True)
class Route:
    """Where a name points: to one version, or to two of which `canary` gets the share `weight` of
    requests, 0 to 1.
    """

    target: Target
    canary: Target | None = None
    weight: float = 0.0

    @classmethod
    def of(cls, version: VplmVersion) -> Route:
        """Raises `InvalidName` if a manifest's name is no version's."""
        target = Target.of(version)
        if version.canary is None:
            return cls(target)
        return cls(target, Target.of(version.canary), version.canary_weight)

    @property
    def targets(self) -> tuple[Target, ...]:
        return (self.target,) if self.canary is None else (self.target, self.canary)

    def pick(self, asked: Asked, routing_key: str) -> Target:
        """The version that answers a request with this key."""
        if self.canary is None or place_of(asked, routing_key) >= self.weight:
            return self.target
        return self.canary


def place_of(asked: Asked, routing_key: str) -> float:
    """Where in [0, 1) a key lies; uniform, and apart for every vPLM and alias."""
    text = f"{asked.vplm}\n{asked.alias}\n{routing_key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48


@dataclass(frozen=True, slots=True)
class _Known:
    """An answer, asked for at `asked`; `failed` is when storage last could not confirm it.

    `name` is what a change feed calls it by; from `confirm` on it is asked for again whatever that
    says.
    """

    route: Route
    name: str
    asked: float
    confirm: float
    failed: float | None = None


@dataclass(frozen=True, slots=True)
class _Question:
    """What storage is being asked, since `began`."""

    task: asyncio.Task[Route]
    began: float


class Resolver:
    """Remembers where names point. For use on the event loop only.

    Args:
        versions: Where to ask.
        ttl_s: How long an answer is used while storage can be asked.
        clock: Monotonic seconds.
        freshness: What a change feed tells; without one, an answer is as old as its question.
        entries_max: Answers remembered; the least recently used leaves first.
    """

    def __init__(
        self,
        versions: Versions,
        *,
        ttl_s: float,
        clock: Callable[[], float],
        freshness: Freshness | None = None,
        entries_max: int = ENTRIES_MAX,
    ) -> None:
        self._versions = versions
        self.freshness = freshness or Freshness()
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries_max = entries_max
        self._known: OrderedDict[Asked, _Known] = OrderedDict()
        self._asking: dict[Asked, _Question] = {}

    async def target(self, asked: Asked, routing_key: str = "") -> Target:
        """The version that answers a request for `asked`; the key decides where there are two.

        Raises:
            NotFound: there is no such vPLM, alias or version (any more).
            FailedPrecondition: the version is a whole model, which is not served.
            Unavailable: storage is away and nothing is remembered.
        """
        return (await self._route(asked)).pick(asked, routing_key)

    async def renewed(self, asked: Asked, routing_key: str = "") -> Target:
        """As `target`, by an answer that storage is asked for from now on: the one remembered has
        turned out to be of the past.

        Raises:
            NotFound: there is no such vPLM, alias or version any more.
            Unavailable: storage is away.
        """
        return (await self._asked_since(asked, self._clock())).pick(asked, routing_key)

    async def _route(self, asked: Asked) -> Route:
        known = self._known.get(asked)
        lookups = self.freshness.lookups
        if known is None:
            lookups[Lookup.ALIAS_ASKED] += 1
            return await self._asked_since(asked, self._clock() - self._ttl_s)
        self._known.move_to_end(asked)
        now = self._clock()
        age_s = now - self.freshness.fresh_at(known.name, known.asked, now)
        if age_s <= self._ttl_s and not self.freshness.outdated(known.name, known.asked):
            lookups[Lookup.ALIAS_REMEMBERED] += 1
            if age_s > self._ttl_s / 2 or now >= known.confirm:
                self._start(asked)
            return known.route
        lookups[Lookup.ALIAS_ASKED] += 1
        if known.failed is not None and now - known.failed < AWAY_S:
            if now - known.failed >= ASK_AGAIN_S:
                self._start(asked)
            return known.route
        return await self._doubted(asked, known)

    async def close(self) -> None:
        """End what is being asked."""
        tasks = [question.task for question in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _asked_since(self, asked: Asked, since: float) -> Route:
        """Storage's answer to a question put after `since`: one under way from before may tell of
        what was long ago, and is let pass.
        """
        earlier = self._asking.get(asked)
        if earlier is not None and earlier.began <= since:
            await asyncio.wait({earlier.task})
        return await asyncio.shield(self._start(asked))

    async def _doubted(self, asked: Asked, known: _Known) -> Route:
        """The answer as of now; the one known where storage does not give any in time."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._asked_since(asked, self._clock() - self._ttl_s)
        except (TimeoutError, *_AWAY):
            get_logger().warning(
                "storage is away, using a remembered version", version=str(known.route.target.name)
            )
            return known.route

    def _start(self, asked: Asked) -> asyncio.Task[Route]:
        question = self._asking.get(asked)
        if question is None:
            task = asyncio.get_running_loop().create_task(self._ask(asked), context=Context())
            self._asking[asked] = question = _Question(task, self._clock())
            task.add_done_callback(lambda done: self._asked(asked, done))
        return question.task

    def _asked(self, asked: Asked, task: asyncio.Task[Route]) -> None:
        del self._asking[asked]
        if not task.cancelled():
            task.exception()  # taken, so that an answer nobody waits for does not warn

    async def _ask(self, asked: Asked) -> Route:
        started = self._clock()
        try:
            route = await self._look_up(asked)
        except NotFound:
            self._known.pop(asked, None)
            raise
        except _AWAY:
            if (known := self._known.get(asked)) is not None:
                self._known[asked] = replace(known, failed=self._clock())
            raise
        confirm = started + self.freshness.confirm_s * uniform(0.5, 1.0)  # noqa: S311
        self._known[asked] = _Known(route, str(asked.vplm), started, confirm)
        self._known.move_to_end(asked)
        if len(self._known) > self._entries_max:
            self._known.popitem(last=False)
        return route

    async def _look_up(self, asked: Asked) -> Route:
        if (name := asked.version_name) is not None:
            version = await self._versions.get(name)
        elif asked in self._known:
            version = await self._versions.resolve(asked.vplm, asked.alias)
        else:
            version = await self._versions.fetch(asked.vplm, asked.alias)
        route = Route.of(version)
        for target in route.targets:
            if target.name.vplm != asked.vplm or (name is not None and target.name != name):
                raise DataCorrupted(f"storage answered {asked.vplm} with {target.name}")
            check_served(target.name, target.spec)
        return route
