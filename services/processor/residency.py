"""Which modules are in host memory. Pure: no I/O, no clock, no lock; times are arguments.

    ABSENT ── begin ──▶ LOADING ── admit ──▶ READY ── evicted ──▶ ABSENT
                           └────── fail ──▶ FAILED ── after failed_s ──▶ ABSENT

Modules are kept under a byte budget and leave least recently used first. One that is in use
(`acquire`) never leaves, nor does one that was loaded for requests which have not used it yet: so
each load is of use to someone, and a working set larger than the budget makes progress.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.processor.requests import ModuleKey
from smile.errors import FailedPrecondition, SmileError

FAILURES_MAX = 10_000

Module = TypeVar("Module")


class ModuleState(enum.StrEnum):
    """Where a module is on its way into memory."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class _Resident(Generic[Module]):
    module: Module
    nbytes: int
    users: int = 0
    unused: bool = True  # loaded, and not acquired since


@dataclass(frozen=True, slots=True)
class _Failure:
    error: SmileError
    until: float


class Residency(Generic[Module]):
    """Modules in host memory, by key.

    Args:
        bytes_max: Budget for all modules together.
        failed_s: How long a failed load is remembered instead of being tried again.
    """

    def __init__(self, bytes_max: int, failed_s: float) -> None:
        self.bytes_max = bytes_max
        self._failed_s = failed_s
        self._resident: OrderedDict[ModuleKey, _Resident[Module]] = (
            OrderedDict()
        )  # oldest use first
        self._loading: set[ModuleKey] = set()
        self._failures: OrderedDict[ModuleKey, _Failure] = OrderedDict()
        self._demand: dict[ModuleKey, int] = {}
        self.nbytes = 0
        self.hits = 0
        self.loads = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._resident)

    def state(self, key: ModuleKey, now: float) -> ModuleState:
        """Where `key` is."""
        if key in self._resident:
            return ModuleState.READY
        if key in self._loading:
            return ModuleState.LOADING
        failure = self._failures.get(key)
        return ModuleState.FAILED if failure and now < failure.until else ModuleState.ABSENT

    def error(self, key: ModuleKey) -> SmileError | None:
        """Why the last load of `key` failed, if it did."""
        failure = self._failures.get(key)
        return failure.error if failure else None

    def demand(self, key: ModuleKey) -> None:
        """One more request will use `key`. Balanced by `undemand`."""
        self._demand[key] = self._demand.get(key, 0) + 1
        if key in self._resident:
            self.hits += 1
            self._resident.move_to_end(key)

    def undemand(self, key: ModuleKey) -> None:
        """A request is over."""
        left = self._demand[key] - 1
        if left:
            self._demand[key] = left
        else:
            del self._demand[key]

    def begin(self, key: ModuleKey, now: float) -> bool:
        """Whether the caller shall load `key`: it is absent, and from now on loading."""
        if self.state(key, now) is not ModuleState.ABSENT:
            return False
        self._failures.pop(key, None)
        self._loading.add(key)
        return True

    def admit(self, key: ModuleKey, module: Module, nbytes: int) -> bool:
        """Keep a loaded module, evicting others as needed. Whether there was room; if not, try
        again later.

        Raises:
            FailedPrecondition: it does not fit even into an empty cache.
        """
        assert key in self._loading, "a module is admitted once, after `begin`"
        if nbytes > self.bytes_max:
            raise FailedPrecondition(
                f"the module takes {nbytes} bytes in memory, and all modules together may take "
                f"{self.bytes_max}",
                reason="MODULE_TOO_LARGE",
                metadata={"limit": str(self.bytes_max), "value": str(nbytes)},
            )
        if not self._make_room(nbytes):
            return False
        self._loading.remove(key)
        self._resident[key] = _Resident(module, nbytes)
        self.nbytes += nbytes
        self.loads += 1
        return True

    def fail(self, key: ModuleKey, error: SmileError, now: float) -> None:
        """The load of `key` ended with `error`."""
        self._loading.discard(key)
        self._failures[key] = _Failure(error, now + self._failed_s)
        self._failures.move_to_end(key)
        if len(self._failures) > FAILURES_MAX:
            self._failures.popitem(last=False)

    def acquire(self, key: ModuleKey) -> Module:
        """The module, which stays until as many `release`s."""
        resident = self._resident[key]
        resident.users += 1
        resident.unused = False
        self._resident.move_to_end(key)
        return resident.module

    def release(self, key: ModuleKey) -> None:
        """One use is over."""
        resident = self._resident[key]
        assert resident.users > 0, "released more often than acquired"
        resident.users -= 1

    def _make_room(self, nbytes: int) -> bool:
        """Evict as few as needed, oldest use first; none if that would not do."""
        leaving: list[ModuleKey] = []
        free = self.bytes_max - self.nbytes
        for key, resident in self._resident.items():
            if free >= nbytes:
                break
            if not self._stays(key, resident):
                leaving.append(key)
                free += resident.nbytes
        if free < nbytes:
            return False
        for key in leaving:
            self.nbytes -= self._resident.pop(key).nbytes
            self.evictions += 1
        return True

    def _stays(self, key: ModuleKey, resident: _Resident[Module]) -> bool:
        return resident.users > 0 or (resident.unused and key in self._demand)
