"""One tier of memory: who is in it, who may not leave, and who leaves for whom. Pure.

Making room, where every row counts by itself: the coldest leave, one by one, until there is room;
none of them if that would not do. Where memory comes in slabs, a freed row is of use to its own
class only, so among the next few to leave one of the class that is needed goes first; if there is
none, the coldest goes and takes along everyone in its slab who may leave, so that the slab comes
free: a few more misses now for a slab's worth of slots. So shares of the classes follow what is
asked for, and no class keeps memory it was once given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.processor.memory.policy import Policy
from services.processor.memory.space import Slot, Space

K = TypeVar("K", bound=Hashable)

ABOUT_AS_COLD = 16  # the next so many to leave do not differ much


@dataclass(slots=True)
class TierCounters:
    """What a tier has done since start.

    Attributes:
        hits: Uses that found what they needed.
        misses: Uses that did not.
        loads: Modules brought in.
        loaded_bytes: What they take in memory, together.
        evictions: Modules that left to make room.
    """

    hits: int = 0
    misses: int = 0
    loads: int = 0
    loaded_bytes: int = 0
    evictions: int = 0


@dataclass(slots=True)
class _Entry:
    slots: tuple[Slot, ...]
    nbytes: int
    holds: int


class Tier(Generic[K]):
    """Rows of modules, by key.

    Args:
        space: Where rows lie.
        policy: Who leaves first.
        evicted: Told of everyone who left to make room.
    """

    def __init__(self, space: Space, policy: Policy[K], evicted: Callable[[K], None]) -> None:
        self.space = space
        self.counters = TierCounters()
        self._policy = policy
        self._evicted = evicted
        self._entries: dict[K, _Entry] = {}
        self._slabs: dict[int, dict[K, None]] = {}  # who is in a slab, where that matters
        self._evictable = 0  # bytes of those nobody holds

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def slots(self, key: K) -> tuple[Slot, ...]:
        """Where the rows of a key lie."""
        return self._entries[key].slots

    def nbytes(self, key: K) -> int:
        """What a key takes."""
        return self._entries[key].nbytes

    def held(self, key: K) -> bool:
        """Whether it may not leave."""
        return self._entries[key].holds > 0

    def admit(self, key: K, sizes: Sequence[int]) -> tuple[Slot, ...] | None:
        """Slots for a newcomer, held once by the caller; None if too many are held."""
        assert key not in self._entries, "admitted once"
        if not self._make_room(sizes):
            return None
        slots = self.space.take(sizes)
        entry = _Entry(slots, sum(slot.row_bytes for slot in slots), holds=1)
        self._entries[key] = entry
        self._policy.insert(key, entry.nbytes)
        if not self.space.by_row:
            for slot in slots:
                self._slabs.setdefault(slot.slab, {})[key] = None
        self.counters.loads += 1
        self.counters.loaded_bytes += entry.nbytes
        return slots

    def touch(self, key: K) -> None:
        """It was asked for."""
        self._policy.touch(key)

    def hold(self, key: K) -> None:
        """It may not leave until as many `free`s."""
        entry = self._entries[key]
        if entry.holds == 0:
            self._evictable -= entry.nbytes
        entry.holds += 1

    def free(self, key: K) -> None:
        """One reason to stay is gone."""
        entry = self._entries[key]
        assert entry.holds > 0, "freed more often than held"
        entry.holds -= 1
        if entry.holds == 0:
            self._evictable += entry.nbytes
            self._policy.free(key)

    def remove(self, key: K) -> None:
        """Give back the memory of one that nobody holds."""
        self._policy.remove(key)
        self._leave(key)

    def _leave(self, key: K) -> None:
        entry = self._entries.pop(key)
        assert entry.holds == 0, "what is held stays"
        self._evictable -= entry.nbytes
        if not self.space.by_row:
            for slot in entry.slots:
                inside = self._slabs[slot.slab]
                inside.pop(key, None)
                if not inside:
                    del self._slabs[slot.slab]
        self.space.give(entry.slots)

    def _make_room(self, sizes: Sequence[int]) -> bool:
        space = self.space
        if space.by_row:
            needed = sum(space.row_bytes(size) for size in sizes)
            if needed > space.bytes_max - space.nbytes + self._evictable:
                return False
        while not space.fits(sizes):
            victim = self._victim(sizes)
            if victim is None:
                return False
            beside = self._beside(victim, sizes)
            self._evict(victim)
            for key in beside:
                self._policy.remove(key)
                self._evict(key)
        return True

    def _evict(self, key: K) -> None:
        self._leave(key)
        self.counters.evictions += 1
        self._evicted(key)

    def _victim(self, sizes: Sequence[int]) -> K | None:
        """Who leaves next for rows of these sizes, taken out of the policy."""
        coldest = self._policy.evict(self.held)
        if self.space.by_row or coldest is None:
            return coldest
        passed: list[K] = []
        victim: K | None = coldest
        while victim is not None and not self._of_use(victim, sizes):
            passed.append(victim)
            full = len(passed) == ABOUT_AS_COLD
            victim = None if full else self._policy.evict(self.held)
        if victim is None:
            victim = passed.pop(0)
        for key in reversed(passed):
            self._policy.restore(key, self._entries[key].nbytes)
        return victim

    def _of_use(self, key: K, sizes: Sequence[int]) -> bool:
        needed = {self.space.row_bytes(size) for size in sizes}
        return any(slot.row_bytes in needed for slot in self._entries[key].slots)

    def _beside(self, victim: K, sizes: Sequence[int]) -> list[K]:
        """Who leaves with `victim` because its slab is to come free."""
        if self.space.by_row or self._of_use(victim, sizes):
            return []
        largest = max(self._entries[victim].slots, key=lambda slot: slot.row_bytes)
        inside = self._slabs[largest.slab]
        return [key for key in inside if key != victim and not self.held(key)]
