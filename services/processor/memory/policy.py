"""Which resident leaves first. Pure: keys and sizes in bytes; no clock, no I/O.

A policy orders what is inside; it never refuses what comes in, since requests wait for it. Every
operation takes amortised constant time, however many keys there are: a key that `evict` meets while
it is held is put aside, and comes back when `free` says that it is held no more, so it is met once
per holding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class Policy(Protocol[K]):
    """An order of eviction over keys."""

    def insert(self, key: K, nbytes: int) -> None:
        """`key` has come in."""
        ...

    def touch(self, key: K) -> None:
        """`key`, which is inside, was asked for."""
        ...

    def remove(self, key: K) -> None:
        """`key` has left for another reason than `evict`."""
        ...

    def evict(self, held: Callable[[K], bool]) -> K | None:
        """Take out the next to leave that is not held; None if all are."""
        ...

    def restore(self, key: K, nbytes: int) -> None:
        """`key`, which `evict` has just given, stays after all, as the next to leave."""
        ...

    def free(self, key: K) -> None:
        """`key`, which is inside, is held no more."""
        ...


class Queue(Generic[K]):
    """Keys in order with their sizes, and the sum of those."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[K, int] = OrderedDict()  # oldest first
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: K) -> bool:
        return key in self._sizes

    def push(self, key: K, nbytes: int) -> None:
        """Put a key at the young end."""
        self._sizes[key] = nbytes
        self.nbytes += nbytes

    def push_back(self, key: K, nbytes: int) -> None:
        """Put a key at the old end."""
        self.push(key, nbytes)
        self._sizes.move_to_end(key, last=False)

    def pop(self) -> tuple[K, int]:
        """Take the oldest."""
        key, nbytes = self._sizes.popitem(last=False)
        self.nbytes -= nbytes
        return key, nbytes

    def renew(self, key: K) -> bool:
        """Make a key the youngest. Whether it is here."""
        if key not in self._sizes:
            return False
        self._sizes.move_to_end(key)
        return True

    def remove(self, key: K) -> int | None:
        """Take out a key; its size, if it was here."""
        nbytes = self._sizes.pop(key, None)
        self.nbytes -= nbytes or 0
        return nbytes


class LeastRecentlyUsed(Generic[K]):
    """Whose last use is longest ago. A scan longer than the cache empties it of everything else."""

    def __init__(self) -> None:
        self._order: Queue[K] = Queue()
        self._aside: dict[K, int] = {}

    def insert(self, key: K, nbytes: int) -> None:
        self._order.push(key, nbytes)

    def touch(self, key: K) -> None:
        self._order.renew(key)

    def remove(self, key: K) -> None:
        if self._order.remove(key) is None:
            del self._aside[key]

    def evict(self, held: Callable[[K], bool]) -> K | None:
        while self._order:
            key, nbytes = self._order.pop()
            if not held(key):
                return key
            self._aside[key] = nbytes
        return None

    def restore(self, key: K, nbytes: int) -> None:
        self._order.push_back(key, nbytes)

    def free(self, key: K) -> None:
        nbytes = self._aside.pop(key, None)
        if nbytes is not None:
            self._order.push(key, nbytes)


SMALL_SHARE = 0.1  # of the bytes: where newcomers prove themselves
USES_MAX = 3
USES_TO_STAY = 2  # asked for again so often while young: belongs to the main part


@dataclass(slots=True)
class _Fifo(Generic[K]):
    """A resident of S3-FIFO: the queue it is in, or goes back to."""

    queue: Queue[K]
    nbytes: int
    uses: int = 0
    aside: bool = False


class S3Fifo(Generic[K]):
    """S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) in bytes.

    Newcomers enter a small queue; those asked for again there move to the main one, where each use
    buys another round; the rest leave early, and only their names are kept for as long as the
    cache is large. Who comes back in that time enters the main queue at once.
    """

    def __init__(self) -> None:
        self._small: Queue[K] = Queue()
        self._main: Queue[K] = Queue()
        self._ghosts: Queue[K] = Queue()
        self._inside: dict[K, _Fifo[K]] = {}

    def insert(self, key: K, nbytes: int) -> None:
        known = self._ghosts.remove(key) is not None
        entry = _Fifo(self._main if known else self._small, nbytes)
        self._inside[key] = entry
        entry.queue.push(key, nbytes)

    def touch(self, key: K) -> None:
        entry = self._inside[key]
        entry.uses = min(entry.uses + 1, USES_MAX)

    def remove(self, key: K) -> None:
        self._inside.pop(key).queue.remove(key)

    def evict(self, held: Callable[[K], bool]) -> K | None:
        while self._small or self._main:
            queue = self._next_queue()
            key, nbytes = queue.pop()
            entry = self._inside[key]
            if held(key):
                entry.aside = True
            elif not self._stays(key, entry):
                del self._inside[key]
                if queue is self._small:
                    self._remember(key, nbytes)
                return key
        return None

    def restore(self, key: K, nbytes: int) -> None:
        young = self._ghosts.remove(key) is not None
        entry = _Fifo(self._small if young else self._main, nbytes)
        self._inside[key] = entry
        entry.queue.push_back(key, nbytes)

    def free(self, key: K) -> None:
        entry = self._inside[key]
        if entry.aside:
            entry.aside = False
            entry.queue.push(key, entry.nbytes)

    def _next_queue(self) -> Queue[K]:
        total = self._small.nbytes + self._main.nbytes
        young = self._small and (not self._main or self._small.nbytes >= SMALL_SHARE * total)
        return self._small if young else self._main

    def _stays(self, key: K, entry: _Fifo[K]) -> bool:
        """Let the one at the end of its queue go round again, if it has earned that."""
        if entry.queue is self._small and entry.uses >= USES_TO_STAY:
            entry.queue, entry.uses = self._main, 0
        elif entry.queue is self._main and entry.uses > 0:
            entry.uses -= 1
        else:
            return False
        entry.queue.push(key, entry.nbytes)
        return True

    def _remember(self, key: K, nbytes: int) -> None:
        self._ghosts.push(key, nbytes)
        while self._ghosts.nbytes > self._small.nbytes + self._main.nbytes + nbytes:
            self._ghosts.pop()
