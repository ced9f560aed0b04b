"""What event loop and device thread share: the queue and the modules, under one lock.

The event loop puts chunks in and takes back those nobody waits for; the device thread pulls the
next batch at its own pace. Every method holds the lock for a moment and does no I/O.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from services.processor.requests import Batch, Chunk, Failed, ModuleKey
from services.processor.residency import ModuleState, Residency
from services.processor.scheduler import BatchLimits, Plan, Waiting, next_batch
from smile.errors import DeadlineExceeded, Internal, SmileError, Unavailable

Module = TypeVar("Module")


@dataclass(frozen=True, slots=True)
class Work(Generic[Module]):
    """One batch and its parts' modules, held until `Dispatch.release`."""

    batch: Batch
    modules: tuple[Module, ...]

    def __post_init__(self) -> None:
        assert len(self.modules) == len(self.batch.parts), "one module per part"


@dataclass(frozen=True, slots=True)
class Taken(Generic[Module]):
    """What the device thread was given: work, if any, and what the event loop must hear of."""

    work: Work[Module] | None
    wanted: tuple[ModuleKey, ...]
    failed: tuple[Failed, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """How full queue and module memory are."""

    queue_texts: int
    modules: int
    modules_bytes: int
    modules_bytes_max: int
    hits: int
    loads: int
    evictions: int


class Dispatch(Generic[Module]):
    """The queue and the modules.

    Args:
        limits: Of a batch.
        residency: Modules in host memory; owned from here on.
        wait_s: How long a batch that is not full waits for company.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limits: BatchLimits,
        residency: Residency[Module],
        *,
        wait_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._residency = residency
        self._wait_s = wait_s
        self._clock = clock
        self._waiting = Waiting()
        self._changed = threading.Condition()
        self._since: float | None = None  # since when something could be computed
        self._closed = False

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Let chunks wait for a batch. Raises `Unavailable` once closed."""
        with self._changed:
            if self._closed:
                raise Unavailable("the processor is stopping", retry_after=1.0)
            for chunk in chunks:
                self._waiting.add(chunk)
            self._wake()

    def drop(self, request: int) -> int:
        """Take back what still waits of a request; the number of chunks."""
        with self._changed:
            return len(self._waiting.drop(request))

    def demand(self, key: ModuleKey) -> ModuleState:
        """A request will use `key`. Where that is ABSENT, the caller must load it: it counts as
        begun.
        """
        with self._changed:
            now = self._clock()
            state = self._residency.state(key, now)
            self._residency.demand(key)
            self._residency.begin(key, now)
            return state

    def undemand(self, key: ModuleKey) -> None:
        """A request that had demanded `key` is over; one that was loaded for it alone may leave."""
        with self._changed:
            self._residency.undemand(key)

    def begin(self, key: ModuleKey) -> bool:
        """Whether the caller shall load `key` (again)."""
        with self._changed:
            return self._residency.begin(key, self._clock())

    def admit(self, key: ModuleKey, module: Module, nbytes: int) -> bool:
        """Make a loaded module available if there is room. Raises `FailedPrecondition` if there
        never is.
        """
        with self._changed:
            admitted = self._residency.admit(key, module, nbytes)
            if admitted:
                self._waiting.unpark(key)
                self._wake()
            return admitted

    def fail(self, key: ModuleKey, error: SmileError) -> list[Failed]:
        """Give up on `key` for a while: what waited for it, taken out."""
        with self._changed:
            self._residency.fail(key, error, self._clock())
            return [Failed(chunk, error) for chunk in self._waiting.abandon(key)]

    def error(self, key: ModuleKey) -> SmileError | None:
        """Why `key` cannot be had at the moment, if so."""
        with self._changed:
            failed = self._residency.state(key, self._clock()) is ModuleState.FAILED
            return self._residency.error(key) if failed else None

    def take(self) -> Taken[Module] | None:
        """Block until there is something to do; None once closed. For the device thread."""
        with self._changed:
            while not self._closed:
                if (left := self._company_s()) is None or left > 0:
                    self._changed.wait(left)
                    continue
                if not (plan := self._plan()).empty:
                    return self._taken(plan)
            return None

    def release(self, work: Work[Module]) -> None:
        """The work is over; its modules may leave."""
        with self._changed:
            for part in work.batch.parts:
                self._residency.release(part.module)

    def close(self) -> list[Chunk]:
        """End `take`, and give back what was never computed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self._waiting.clear()

    def level(self) -> Level:
        """How full everything is."""
        with self._changed:
            residency = self._residency
            return Level(
                queue_texts=self._waiting.texts,
                modules=len(residency),
                modules_bytes=residency.nbytes,
                modules_bytes_max=residency.bytes_max,
                hits=residency.hits,
                loads=residency.loads,
                evictions=residency.evictions,
            )

    def _wake(self) -> None:
        if self._since is None and self._waiting.ready:
            self._since = self._clock()
        self._changed.notify_all()

    def _company_s(self) -> float | None:
        """Seconds to wait for more chunks; None where there is nothing to compute at all."""
        if not self._waiting.ready:
            return None
        full = (
            self._waiting.tokens >= self._limits.tokens_max
            or self._waiting.texts >= self._limits.texts_max
        )
        if full or self._since is None:
            return 0.0
        return self._since + self._wait_s - self._clock()

    def _plan(self) -> Plan:
        now = self._clock()
        state_of = partial(self._residency.state, now=now)
        plan = next_batch(self._waiting, state_of, self._limits, now)
        self._since = now if self._waiting.ready else None
        return plan

    def _taken(self, plan: Plan) -> Taken[Module]:
        work = None
        if plan.batch is not None:
            modules = tuple(self._residency.acquire(part.module) for part in plan.batch.parts)
            work = Work(plan.batch, modules)
        failed = [Failed(chunk, _expired()) for chunk in plan.expired]
        failed += [Failed(chunk, self._why(chunk.module)) for chunk in plan.failed]
        return Taken(work, tuple(plan.wanted), tuple(failed))

    def _why(self, key: ModuleKey) -> SmileError:
        return self._residency.error(key) or Internal("a module failed without a reason")


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline passed while the request was queued; nothing was computed"
    )
