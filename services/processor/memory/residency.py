"""Which modules are in memory, and how near the device. Pure: no I/O, no clock, no lock; times are
arguments.

    ABSENT ── begin ──▶ LOADING ── reserve, publish ──▶ READY ── evicted, unloaded, idle ──▶ ABSENT
                           └────── fail ──▶ FAILED ── after failed_s ──▶ ABSENT

A READY module has its rows in the host tier (warm); once used it has them in the device tier as
well (hot), until it leaves there for others. The device tier is part of the host tier: who leaves
the host leaves the device. On a CPU the device's rows *are* the host's, and its slots are counted
only; which it is, the `Mover` knows.

In use (`acquire`), pinned, or loaded for a request that has not used it yet: such a module never
leaves. So each load is of use to someone, and a working set larger than memory makes progress. All
operations take amortised constant time, however many modules there are.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.processor.memory.policy import Policy
from services.processor.memory.space import Slot, Space
from services.processor.memory.tiers import Tier
from services.processor.requests import VERSION_GONE, ModuleKey
from smile.errors import FailedPrecondition, Overloaded, SmileError

FAILURES_MAX = 10_000

Module = TypeVar("Module")


class ModuleState(enum.StrEnum):
    """Where a module is on its way into memory."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Temperature(enum.StrEnum):
    """How near the device a module is: in storage only, in host memory, on the device."""

    COLD = "cold"
    WARM = "warm"
    HOT = "hot"


class Transfer(Protocol):
    """Copies under way."""

    @property
    def done(self) -> bool:
        """Whether what was copied from may be reused."""
        ...


class Mover(Protocol[Module]):
    """Brings a module to the device."""

    def promote(self, module: Module, slots: Sequence[Slot]) -> tuple[Module, Transfer | None]:
        """The module as the device reads it, in `slots` there; None if nothing had to be copied.
        Does not wait: whatever computes with it comes after the copies.
        """
        ...


class InPlace(Generic[Module]):
    """The device reads host memory."""

    def promote(self, module: Module, slots: Sequence[Slot]) -> tuple[Module, Transfer | None]:
        """The module itself."""
        return module, None


@dataclass(frozen=True, slots=True)
class Memory(Generic[Module]):
    """What a residency manages.

    Attributes:
        host: Where modules' rows lie.
        device: Where the device's lie.
        host_policy: Who leaves the host first.
        device_policy: Who leaves the device first.
        mover: Between the two.
        pinned_share: Part of either that pinned modules may take.
    """

    host: Space
    device: Space
    host_policy: Policy[ModuleKey]
    device_policy: Policy[ModuleKey]
    mover: Mover[Module]
    pinned_share: float


@dataclass(slots=True)
class _Resident(Generic[Module]):
    """A READY module.

    Attributes:
        hot: As the device reads it, while it is there.
        unused: Not acquired since it was loaded.
        kept: Held in the host tier for the requests it was loaded for.
        leaving: Unloaded as soon as nobody holds it.
    """

    module: Module
    last_used: float
    hot: Module | None = None
    users: int = 0
    unused: bool = True
    kept: bool = False
    pinned: bool = False
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class _Failure:
    error: SmileError
    until: float


class Residency(Generic[Module]):
    """Modules in memory, by key.

    Args:
        memory: Tiers, and what moves between them.
        failed_s: How long a failed load is remembered instead of being tried again.
    """

    def __init__(self, memory: Memory[Module], failed_s: float) -> None:
        self.host: Tier[ModuleKey] = Tier(memory.host, memory.host_policy, self._cooled)
        self.device: Tier[ModuleKey] = Tier(memory.device, memory.device_policy, self._left_device)
        self._memory = memory
        self._failed_s = failed_s
        self._residents: dict[ModuleKey, _Resident[Module]] = {}
        self._idle: OrderedDict[ModuleKey, float] = OrderedDict()  # longest unused first
        self._loading: set[ModuleKey] = set()
        self._failures: OrderedDict[ModuleKey, _Failure] = OrderedDict()
        self._demand: dict[ModuleKey, int] = {}
        self._transfers: deque[tuple[ModuleKey, Transfer]] = deque()
        self._pinned_host = 0
        self._pinned_device = 0
        self.unloads = 0

    def __len__(self) -> int:
        return len(self._residents)

    def state(self, key: ModuleKey, now: float) -> ModuleState:
        """Where `key` is."""
        if key in self._residents:
            return ModuleState.READY
        if key in self._loading:
            return ModuleState.LOADING
        failure = self._failures.get(key)
        return ModuleState.FAILED if failure and now < failure.until else ModuleState.ABSENT

    def temperature(self, key: ModuleKey) -> Temperature:
        """How near the device `key` is."""
        if key not in self._residents:
            return Temperature.COLD
        return Temperature.HOT if key in self.device else Temperature.WARM

    def last_used(self, key: ModuleKey) -> float | None:
        """When `key` was last asked for or used, if it is in memory."""
        resident = self._residents.get(key)
        return resident.last_used if resident else None

    def error(self, key: ModuleKey) -> SmileError | None:
        """Why the last load of `key` failed, if it did."""
        failure = self._failures.get(key)
        return failure.error if failure else None

    def demand(self, key: ModuleKey, now: float) -> None:
        """One more request will use `key`. Balanced by `undemand`."""
        self._demand[key] = self._demand.get(key, 0) + 1
        resident = self._residents.get(key)
        if resident is None:
            self.host.counters.misses += 1
            return
        self.host.counters.hits += 1
        self.host.touch(key)
        resident.leaving = False
        self._used(key, resident, now)
        if resident.unused and not resident.kept:
            resident.kept = True
            self.host.hold(key)

    def undemand(self, key: ModuleKey) -> None:
        """A request is over."""
        left = self._demand[key] - 1
        if left:
            self._demand[key] = left
            return
        del self._demand[key]
        resident = self._residents.get(key)
        if resident is None:
            return
        if resident.kept:
            resident.kept = False
            self.host.free(key)
        self._leave_if_due(key, resident)

    def begin(self, key: ModuleKey, now: float) -> bool:
        """Whether the caller shall load `key`: it is absent, and from now on loading."""
        if self.state(key, now) is not ModuleState.ABSENT:
            return False
        self._failures.pop(key, None)
        self._loading.add(key)
        return True

    def reserve(self, key: ModuleKey, sizes: Sequence[int]) -> tuple[Slot, ...] | None:
        """Room in the host tier for a loading module's rows, others evicted as needed; None if
        there is none now: try again later. Given back by `fail`.

        Raises:
            FailedPrecondition: the rows do not fit even into empty memory.
        """
        assert key in self._loading, "room is made after `begin`"
        for space in (self.host.space, self.device.space):
            if not space.holds(sizes):
                raise FailedPrecondition(
                    f"the module takes {sum(sizes)} bytes in memory, and all modules together may "
                    f"take {space.bytes_max}",
                    reason="MODULE_TOO_LARGE",
                    metadata={"limit": str(space.bytes_max), "value": str(sum(sizes))},
                )
        self._transferred()
        return self.host.admit(key, sizes)

    def publish(self, key: ModuleKey, module: Module, now: float) -> None:
        """`module` lies in the room that was reserved: it is READY."""
        assert key in self._loading and key in self.host, "published once, after `reserve`"
        self._loading.remove(key)
        resident = self._residents[key] = _Resident(module, now)
        self._used(key, resident, now)
        requests = self._demand.get(key, 0)
        if requests > 1:  # the first brought it in, the others would have found it
            self.host.touch(key)
        if requests:
            resident.kept = True  # takes over the hold of `reserve`
        else:
            self.host.free(key)

    def fail(self, key: ModuleKey, error: SmileError, now: float) -> None:
        """The load of `key` ended with `error`, which is remembered unless it tells of a name
        rather than of the module.
        """
        self._loading.discard(key)
        if key in self.host and key not in self._residents:
            self.host.free(key)
            self.host.remove(key)
        if isinstance(error, VERSION_GONE):
            return
        self._failures[key] = _Failure(error, now + self._failed_s)
        self._failures.move_to_end(key)
        if len(self._failures) > FAILURES_MAX:
            self._failures.popitem(last=False)

    def acquire(self, key: ModuleKey, now: float) -> Module | None:
        """The module as the device reads it, which stays until as many `release`s; None if the
        device has no room for it before others are released.
        """
        self._transferred()
        resident = self._residents.get(key)
        if resident is None:
            return None
        warm = resident.hot is None
        if (hot := self._heated(key, resident)) is None:
            return None
        self.device.counters.misses += warm
        self.device.counters.hits += not warm
        resident.users += 1
        self.host.hold(key)
        self._used(key, resident, now)
        if resident.unused:
            resident.unused = False
            if resident.kept:
                resident.kept = False
                self.host.free(key)
        return hot

    def release(self, key: ModuleKey) -> None:
        """One use is over."""
        resident = self._residents[key]
        assert resident.users > 0, "released more often than acquired"
        resident.users -= 1
        self._transferred()
        self.device.free(key)
        self._free(key, resident)

    def pin(self, key: ModuleKey) -> bool:
        """Keep a READY module on the device until `unpin`. Whether that could be done now: it
        cannot where `key` is not READY, or all of the device is in use.

        Raises:
            Overloaded: pinned modules would take more than their share of memory.
        """
        resident = self._residents.get(key)
        if resident is None:
            return False
        if resident.pinned:
            return True
        host = self._pinnable(self.host, self._pinned_host, self.host.nbytes(key))
        device = self._pinnable(self.device, self._pinned_device, self.host.nbytes(key))
        self._transferred()
        if self._heated(key, resident) is None:
            return False
        self._pinned_host, self._pinned_device = host, device
        self.host.hold(key)
        resident.pinned = True
        resident.leaving = False
        return True

    def unpin(self, key: ModuleKey) -> None:
        """`key` may leave again, if it was pinned."""
        resident = self._residents.get(key)
        if resident is None or not resident.pinned:
            return
        resident.pinned = False
        self._pinned_host -= self.host.nbytes(key)
        self._pinned_device -= self.host.nbytes(key)
        self.device.free(key)
        self._free(key, resident)

    def unload(self, key: ModuleKey) -> bool:
        """Give back the memory of `key` as soon as nobody uses it, is to use it or pins it; not if
        it is asked for again before. Whether that was now.
        """
        resident = self._residents.get(key)
        if resident is None:
            return False
        resident.leaving = True
        return self._leave_if_due(key, resident)

    def sweep(self, now: float, idle_s: float) -> int:
        """Unload all that has not been used for `idle_s` and that nobody holds; their number."""
        left = 0
        for _ in range(len(self._idle)):  # each once, though who is held goes to the end
            key, since = next(iter(self._idle.items()))
            if since > now - idle_s:
                break
            if self.host.held(key):
                self._idle[key] = now
                self._idle.move_to_end(key)
            else:
                self._leave(key)
                left += 1
        return left

    def _heated(self, key: ModuleKey, resident: _Resident[Module]) -> Module | None:
        """The module on the device, held there once more; None if there is no room."""
        if resident.hot is not None:
            self.device.hold(key)
            self.device.touch(key)
            return resident.hot
        sizes = [slot.row_bytes for slot in self.host.slots(key)]
        slots = self.device.admit(key, sizes)
        if slots is None:
            return None
        resident.hot, transfer = self._memory.mover.promote(resident.module, slots)
        if transfer is not None:
            self.host.hold(key)
            self._transfers.append((key, transfer))
        return resident.hot

    def _transferred(self) -> None:
        """Let go of the host rows that have been copied; copies end in the order they began."""
        while self._transfers and self._transfers[0][1].done:
            key, _ = self._transfers.popleft()
            self._free(key, self._residents[key])

    def _used(self, key: ModuleKey, resident: _Resident[Module], now: float) -> None:
        resident.last_used = now
        self._idle[key] = now
        self._idle.move_to_end(key)

    def _free(self, key: ModuleKey, resident: _Resident[Module]) -> None:
        self.host.free(key)
        self._leave_if_due(key, resident)

    def _leave_if_due(self, key: ModuleKey, resident: _Resident[Module]) -> bool:
        due = resident.leaving and key not in self._demand and not self.host.held(key)
        if due:
            self._leave(key)
        return due

    def _leave(self, key: ModuleKey) -> None:
        self.host.remove(key)
        self.unloads += 1
        self._cooled(key)

    def _cooled(self, key: ModuleKey) -> None:
        """`key` has left the host tier."""
        if key in self.device:
            self.device.remove(key)
        del self._residents[key], self._idle[key]

    def _left_device(self, key: ModuleKey) -> None:
        self._residents[key].hot = None

    def _pinnable(self, tier: Tier[ModuleKey], pinned: int, nbytes: int) -> int:
        """What is pinned in a tier with `nbytes` more."""
        limit = int(self._memory.pinned_share * tier.space.bytes_max)
        if pinned + nbytes > limit:
            raise Overloaded(
                f"pinned modules would take {pinned + nbytes} bytes of memory; they may take "
                f"{limit}",
                reason="PINNED_SHARE_FULL",
                metadata={"limit": str(limit), "value": str(pinned + nbytes)},
            )
        return pinned + nbytes
