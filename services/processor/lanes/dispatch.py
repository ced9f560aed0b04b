"""What event loop and device thread share: the queue and the modules, under one lock.

The event loop puts chunks in and takes back those nobody waits for; the device thread pulls the
next batch at its own pace. Every method holds the lock for a moment and does no I/O.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from services.processor.memory.residency import ModuleState, Residency, Temperature
from services.processor.memory.space import Slot
from services.processor.memory.tiers import Tier, TierCounters
from services.processor.requests import Batch, Chunk, Failed, ModuleKey, Part
from services.processor.scheduling.admission import UNMEETABLE
from services.processor.scheduling.room import BatchLimits, Closed
from services.processor.scheduling.scheduler import (
    DEFAULT,
    Plan,
    Terms,
    Waiting,
    enough,
    next_batch,
)
from smile.errors import DeadlineExceeded, Internal, SmileError, Unavailable

Module = TypeVar("Module")


@dataclass(frozen=True, slots=True)
class Work(Generic[Module]):
    """One batch and its parts' modules, held until `Dispatch.release`.

    Attributes:
        predicted_s: How long it will compute; None where nothing was measured.
        table_s: What the tables alone say of that; likewise.
        closed: Why nothing more is in it.
        bulk: Whether it is to give way to others that are computed meanwhile.
    """

    batch: Batch
    modules: tuple[Module, ...]
    predicted_s: float | None = None
    table_s: float | None = None
    closed: Closed | None = None
    bulk: bool = False

    def __post_init__(self) -> None:
        assert len(self.modules) == len(self.batch.parts), "one module per part"


@dataclass(frozen=True, slots=True)
class Taken(Generic[Module]):
    """What the device thread was given: work, if any, and what the event loop must hear of."""

    work: Work[Module] | None
    wanted: tuple[ModuleKey, ...]
    failed: tuple[Failed, ...]


@dataclass(frozen=True, slots=True)
class TierLevel:
    """How full one tier of memory is, and what it has done since start.

    Attributes:
        modules: In it now.
        nbytes: Memory its rows take.
        bytes_max: What they may take.
        counters: Since start; a copy.
    """

    modules: int
    nbytes: int
    bytes_max: int
    counters: TierCounters


@dataclass(frozen=True, slots=True)
class Level:
    """How full queue and module memory are. A hit of the host tier is a request that found its
    module in memory, one of the device tier a batch that did.
    """

    queue_texts: int
    host: TierLevel
    device: TierLevel
    unloads: int


class Dispatch(Generic[Module]):
    """The queue and the modules.

    Args:
        limits: Of a batch.
        residency: Modules in host memory; owned from here on.
        wait_s: How long a batch that is not full waits for company.
        clock: Monotonic seconds.
        terms: What scheduling asks of others.
    """

    def __init__(
        self,
        limits: BatchLimits,
        residency: Residency[Module],
        *,
        wait_s: float,
        clock: Callable[[], float],
        terms: Terms = DEFAULT,
    ) -> None:
        self._limits = limits
        self._residency = residency
        self._wait_s = wait_s
        self._clock = clock
        self._terms = terms
        self._waiting = Waiting(limits.tokens_max)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._since: float | None = None  # since when something could be computed
        self._travelling: Counter[int] = Counter()  # chunks of each request that were taken
        self._gone: set[int] = set()  # requests among them that nobody waits for any more
        self._coming: int | None = None  # requests expected that have put nothing yet
        self._here: set[int] = set()  # and those that have
        self._together: set[ModuleKey] = set()  # modules of that micro-batch
        self._roomless: set[ModuleKey] = set()  # loaded, and there is no room in memory
        self._bulk_works = 0  # of those below, the ones that give way
        self._works = 0  # taken and not yet released
        self._crowded = False  # the device has no room until one of them is, or one is unpinned
        self._dozes = False  # `take` waits for company, and wakes up by itself
        self._closed = False

    def expect(self, requests: int) -> None:
        """Form no batch until so many requests have come, and the modules of all are there.

        From the first call on every request is expected; each comes by `put`, and `leave`s.
        """
        with self._lock:
            self._coming = (self._coming or 0) + requests

    def leave(self) -> None:
        """One of the requests expected is over; what it put has been dropped."""
        with self._lock:
            assert self._coming, "as many leave as were expected"
            self._coming -= 1
            self._wake()

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Let chunks wait for a batch. Raises `Unavailable` once closed."""
        with self._lock:
            if self._closed:
                raise Unavailable("the processor is stopping", retry_after=1.0)
            for chunk in chunks:
                self._waiting.add(chunk)
            if self._coming is not None:
                self._come(chunks)
            self._wake()

    def drop(self, request: int) -> int:
        """Take back what still waits of a request; the number of chunks."""
        with self._lock:
            if request in self._travelling:
                self._gone.add(request)
            if request in self._here:
                self._here.remove(request)
                self._coming = (self._coming or 0) + 1  # until it leaves
            dropped = len(self._waiting.drop(request))
            if dropped:
                self._wake()  # what they held back is ready
            return dropped

    def gone(self, batch: Batch) -> list[Failed]:
        """Chunks of a batch that was taken which nobody waits for any more."""
        with self._lock:
            now = self._clock()
            return [
                Failed(chunk, _expired())
                for chunk in batch.chunks
                if chunk.request in self._gone or chunk.deadline <= now
            ]

    def demand(self, key: ModuleKey) -> ModuleState:
        """A request will use `key`. Where that is ABSENT, the caller must load it: it counts as
        begun.

        Raises:
            SmileError: it could not be loaded a moment ago; nobody has asked for it.
        """
        with self._lock:
            now = self._clock()
            state = self._residency.state(key, now)
            if state is ModuleState.FAILED:
                raise self._why(key)
            self._residency.demand(key, now)
            if state is ModuleState.ABSENT:
                self._residency.begin(key, now)
            return state

    def undemand(self, key: ModuleKey) -> None:
        """A request that had demanded `key` is over; one that was loaded for it alone may leave."""
        with self._lock:
            self._residency.undemand(key)

    def begin(self, key: ModuleKey) -> bool:
        """Whether the caller shall load `key` (again)."""
        with self._lock:
            return self._residency.begin(key, self._clock())

    def reserve(self, key: ModuleKey, sizes: Sequence[int]) -> tuple[Slot, ...] | None:
        """Room for a loading module's rows if there is any now. Raises `FailedPrecondition` if
        there never is. `publish` or `fail` must follow.
        """
        with self._lock:
            slots = self._residency.reserve(key, sizes)
            if slots is None:
                self._roomless.add(key)
                self._wake()
            else:
                self._roomless.discard(key)
            return slots

    def publish(self, key: ModuleKey, module: Module) -> None:
        """A loaded module lies in its room: whoever waits for it may use it."""
        with self._lock:
            self._residency.publish(key, module, self._clock())
            self._waiting.unpark(key)
            self._wake()

    def admit(self, key: ModuleKey, module: Module, nbytes: int) -> bool:
        """Reserve and publish in one go, for a module of one row. Whether there was room."""
        if (slots := self.reserve(key, (nbytes,))) is not None:
            self.publish(key, module)
        return slots is not None

    def pin(self, key: ModuleKey) -> bool:
        """Keep a module on the device until `unpin`; see `Residency.pin`."""
        with self._lock:
            return self._residency.pin(key)

    def unpin(self, key: ModuleKey) -> None:
        """A module may leave again."""
        with self._lock:
            self._residency.unpin(key)
            self._crowded = False
            self._wake()

    def unload(self, key: ModuleKey) -> bool:
        """Give back a module's memory once nobody needs it; see `Residency.unload`."""
        with self._lock:
            return self._residency.unload(key)

    def sweep(self, idle_s: float) -> int:
        """Unload what has not been used for `idle_s`; how many that were."""
        with self._lock:
            return self._residency.sweep(self._clock(), idle_s)

    def temperature(self, key: ModuleKey) -> Temperature:
        """How near the device a module is."""
        with self._lock:
            return self._residency.temperature(key)

    def last_used(self, key: ModuleKey) -> float | None:
        """When a module was last asked for, if it is in memory."""
        with self._lock:
            return self._residency.last_used(key)

    def fail(self, key: ModuleKey, error: SmileError) -> list[Failed]:
        """Give up on `key` for a while: what waited for it, taken out."""
        with self._lock:
            self._residency.fail(key, error, self._clock())
            self._roomless.discard(key)
            failed = [Failed(chunk, error) for chunk in self._waiting.abandon(key)]
            self._wake()
            return failed

    def error(self, key: ModuleKey) -> SmileError | None:
        """Why `key` cannot be had at the moment, if so."""
        with self._lock:
            failed = self._residency.state(key, self._clock()) is ModuleState.FAILED
            return self._residency.error(key) if failed else None

    def take(self) -> Taken[Module] | None:
        """Block until there is something to do; None once closed. For the device thread."""
        with self._lock:
            while not self._closed:
                if (left := self._company_s()) is None or left > 0:
                    self._dozes = left is not None
                    self._changed.wait(left)
                    continue
                taken = self._taken(self._plan())
                if taken.work or taken.wanted or taken.failed:
                    return taken
            return None

    def release(self, work: Work[Module]) -> None:
        """The work is over; its modules may leave, and what waited for its end is ready."""
        with self._lock:
            self._waiting.done(work.batch, self._terms)
            self._forget(work.batch)
            for part in work.batch.parts:
                self._residency.release(part.module)
            self._works -= 1
            self._count_bulk(-work.bulk)
            self._crowded = False
            self._wake()

    def close(self) -> list[Chunk]:
        """End `take`, and give back what was never computed."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            return self._waiting.clear()

    def level(self) -> Level:
        """How full everything is."""
        with self._lock:
            residency = self._residency
            return Level(
                queue_texts=self._waiting.texts,
                host=_tier_level(residency.host),
                device=_tier_level(residency.device),
                unloads=residency.unloads,
            )

    def _come(self, chunks: Sequence[Chunk]) -> None:
        """Requests that are expected put chunks, perhaps not for the first time."""
        self._together.update(chunk.module for chunk in chunks)
        new = {chunk.request for chunk in chunks} - self._here
        self._here |= new
        self._coming = (self._coming or 0) - len(new)

    def _wake(self) -> None:
        if self._since is None and self._waiting.ready:
            self._since = self._clock()
        left = self._company_s()
        if left is not None and (left <= 0 or not self._dozes):
            self._changed.notify_all()  # else `take` would only go on waiting

    def _company_s(self) -> float | None:
        """Seconds to wait for more chunks; None: until something changes."""
        if self._crowded or not self._waiting.ready or not self._complete():
            return None
        if self._since is None or enough(self._waiting, self._limits, self._terms):
            return 0.0
        return self._since + self._wait_s - self._clock()

    def _complete(self) -> bool:
        """Whether everyone expected has come, and every module on its way, too; as far as memory
        holds them, for what waits for room gets it from what is computed.
        """
        if self._coming is None:
            return True
        now = self._clock()
        loading = not self._roomless and any(
            self._residency.state(key, now) is ModuleState.LOADING for key in self._together
        )
        return not self._coming and not loading

    def _plan(self) -> Plan:
        now = self._clock()
        state_of = partial(self._residency.state, now=now)
        plan = next_batch(self._waiting, state_of, self._limits, now, self._terms)
        self._since = now if self._waiting.ready else None
        self._together.clear()
        return plan

    def _taken(self, plan: Plan) -> Taken[Module]:
        work = None
        if plan.batch is not None:
            work = self._boarded(plan)
        failed = [Failed(chunk, _expired()) for chunk in plan.expired]
        failed += [Failed(chunk, _late()) for chunk in plan.late]
        failed += [Failed(chunk, self._why(chunk.module)) for chunk in plan.failed]
        return Taken(work, tuple(plan.wanted), tuple(failed))

    def _boarded(self, plan: Plan) -> Work[Module] | None:
        """The part of a planned batch that the device has room for; the rest waits until it has."""
        batch, now = plan.batch, self._clock()
        assert batch is not None, "there is something to board"
        boarded: list[tuple[Part, Module]] = []
        left: list[Part] = []
        for part in batch.parts:
            if (module := self._residency.acquire(part.module, now)) is None:
                left.append(part)
            else:
                boarded.append((part, module))
        if left:
            self._crowded = True
            self._waiting.done(replace(batch, parts=tuple(left)), self._terms)
            for part in left:
                for chunk in part.chunks:
                    self._waiting.add(chunk)
        if not boarded:
            return None
        parts, modules = zip(*boarded, strict=True)
        self._works += 1
        self._count_bulk(plan.bulk)
        self._travelling.update(chunk.request for part in parts for chunk in part.chunks)
        work = Work(replace(batch, parts=parts), modules, closed=plan.closed, bulk=plan.bulk)
        if left or not plan.predicted_s:
            return work
        return replace(work, predicted_s=plan.predicted_s, table_s=plan.table_s)

    def _count_bulk(self, more: int) -> None:
        """So many more batches give way to others."""
        self._bulk_works += more
        self._waiting.bulk_full = 0 < self._limits.bulk_batches_max <= self._bulk_works

    def _forget(self, batch: Batch) -> None:
        """A batch is over: what was known of its requests alone."""
        for chunk in batch.chunks:
            self._travelling[chunk.request] -= 1
            if not self._travelling[chunk.request]:
                del self._travelling[chunk.request]
                self._gone.discard(chunk.request)

    def _why(self, key: ModuleKey) -> SmileError:
        return self._residency.error(key) or Internal("a module failed without a reason")


def _tier_level(tier: Tier[ModuleKey]) -> TierLevel:
    counters = replace(tier.counters)
    return TierLevel(len(tier), tier.space.nbytes, tier.space.bytes_max, counters)


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline passed while the request was queued; nothing was computed"
    )


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline would pass before the request is computed; nothing was computed",
        reason=UNMEETABLE,
    )
