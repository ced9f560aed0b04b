"""Eviction policies that `benchmarks.eviction` compares with those the processor offers: as much of
them as a trace needs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.processor.memory.policy import Queue

K = TypeVar("K", bound=Hashable)

WINDOW_SHARE = 0.01
PROTECTED_SHARE = 0.8
SKETCH_ROWS = 4
SKETCH_WIDTH_MIN = 1 << 12
COUNT_MAX = 15
SAMPLES_PER_KEY = 10  # between agings, per key in the cache
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
_HALVES = bytes(count // 2 for count in range(256))
_BITS = (1 << 64) - 1


class Sketch:
    """A count-min sketch with aging: about how often a key was seen lately, 0 to 15."""

    def __init__(self) -> None:
        self._width = SKETCH_WIDTH_MIN
        self._rows = [bytearray(self._width) for _ in range(SKETCH_ROWS)]
        self._samples = 0
        self._keys = 1

    def add(self, key: Hashable) -> None:
        """`key` was seen. Only the least of its counters grow (conservative update)."""
        places = self._places(key)
        least = min(row[place] for row, place in zip(self._rows, places, strict=True))
        if least < COUNT_MAX:
            for row, place in zip(self._rows, places, strict=True):
                if row[place] == least:
                    row[place] = least + 1
        self._samples += 1
        if self._samples >= SAMPLES_PER_KEY * self._keys:
            self._rows = [row.translate(_HALVES) for row in self._rows]
            self._samples //= 2

    def count(self, key: Hashable) -> int:
        """About how often `key` was seen; never less than that since the last aging."""
        return min(row[place] for row, place in zip(self._rows, self._places(key), strict=True))

    def grow(self, keys: int) -> None:
        """Hold counts of `keys` keys apart."""
        self._keys = max(self._keys, keys)
        while self._width < 2 * keys:
            self._rows = [row + row for row in self._rows]
            self._width *= 2

    def _places(self, key: Hashable) -> list[int]:
        mixed = hash(key) * 0x2545F4914F6CDD1D & _BITS
        mixed ^= mixed >> 31
        return [(mixed * each & _BITS) >> 32 & (self._width - 1) for each in _MULTIPLIERS]


@dataclass(slots=True)
class _Entry(Generic[K]):
    queue: Queue[K]
    nbytes: int


class WTinyLfu(Generic[K]):
    """W-TinyLFU (Einziger, Friedman, Manes, "TinyLFU: a highly efficient cache admission policy",
    2017), in bytes: a small window of newcomers before a segmented LRU, into which one moves only
    if a frequency sketch says that it is wanted more than who would leave for it.
    """

    def __init__(self) -> None:
        self._window: Queue[K] = Queue()
        self._probation: Queue[K] = Queue()
        self._protected: Queue[K] = Queue()
        self._inside: dict[K, _Entry[K]] = {}
        self._sketch = Sketch()
        self._full = False  # until the first eviction, nobody has to win to get into the main part

    def insert(self, key: K, nbytes: int) -> None:
        self._inside[key] = _Entry(self._window, nbytes)
        self._window.push(key, nbytes)
        while not self._full and self._window.nbytes > WINDOW_SHARE * self._nbytes:
            oldest, size = self._window.pop()
            self._inside[oldest].queue = self._probation
            self._probation.push(oldest, size)
        self._sketch.grow(len(self._inside))
        self._sketch.add(key)

    def touch(self, key: K) -> None:
        self._sketch.add(key)
        entry = self._inside[key]
        if entry.queue is not self._probation:
            entry.queue.renew(key)
            return
        self._move(key, self._protected)
        main = self._probation.nbytes + self._protected.nbytes
        while self._protected.nbytes > PROTECTED_SHARE * main:
            oldest, nbytes = self._protected.pop()
            self._inside[oldest].queue = self._probation
            self._probation.push(oldest, nbytes)

    def evict(self, _: Callable[[K], bool]) -> K | None:
        self._full = True
        candidate = None
        if self._window.nbytes > WINDOW_SHARE * self._nbytes:
            candidate = self._oldest(self._window)
        victim = self._oldest(self._probation)
        if victim is None:
            victim = self._oldest(self._protected)
        if candidate is None and victim is None:
            candidate = self._oldest(self._window)
        leaves = self._duel(candidate, victim)
        if leaves is not None:
            del self._inside[leaves]
        return leaves

    @property
    def _nbytes(self) -> int:
        return self._window.nbytes + self._probation.nbytes + self._protected.nbytes

    def _duel(self, candidate: K | None, victim: K | None) -> K | None:
        """Who leaves; the other is put (back) into the main part."""
        if candidate is None or victim is None:
            return victim if candidate is None else candidate
        if self._sketch.count(candidate) > self._sketch.count(victim):
            self._inside[candidate].queue = self._probation
            self._probation.push(candidate, self._inside[candidate].nbytes)
            return victim
        self._inside[victim].queue.push_back(victim, self._inside[victim].nbytes)
        return candidate

    def _oldest(self, queue: Queue[K]) -> K | None:
        return queue.pop()[0] if queue else None

    def _move(self, key: K, queue: Queue[K]) -> None:
        entry = self._inside[key]
        entry.queue.remove(key)
        entry.queue = queue
        queue.push(key, entry.nbytes)


@dataclass(slots=True, eq=False)
class _Node(Generic[K]):
    key: K
    nbytes: int
    visited: bool = False
    older: _Node[K] | None = None
    younger: _Node[K] | None = None


class Sieve(Generic[K]):
    """SIEVE (Zhang et al., NSDI 2024): one queue, and a hand that goes from old to young and takes
    whoever was not asked for since it last came by.
    """

    def __init__(self) -> None:
        self._nodes: dict[K, _Node[K]] = {}
        self._oldest: _Node[K] | None = None
        self._youngest: _Node[K] | None = None
        self._hand: _Node[K] | None = None

    def insert(self, key: K, nbytes: int) -> None:
        node = _Node(key, nbytes, older=self._youngest)
        if self._youngest is not None:
            self._youngest.younger = node
        self._youngest = node
        self._oldest = self._oldest or node
        self._nodes[key] = node

    def touch(self, key: K) -> None:
        self._nodes[key].visited = True

    def evict(self, _: Callable[[K], bool]) -> K | None:
        for _step in range(2 * len(self._nodes)):  # a second time round nobody is visited
            node = self._hand or self._oldest
            assert node is not None
            if not node.visited:
                self._unlink(self._nodes.pop(node.key))
                self._hand = node.younger
                return node.key
            node.visited = False
            self._hand = node.younger
        return None

    def _unlink(self, node: _Node[K]) -> None:
        if node.older is not None:
            node.older.younger = node.younger
        else:
            self._oldest = node.younger
        if node.younger is not None:
            node.younger.older = node.older
        else:
            self._youngest = node.older
