"""Where rows lie within a byte budget. Pure: numbers, and a `Backing` that holds the memory.

Rows of one class (one size) lie in slabs of equal slots. What a freed slot gives back depends on
the memory behind it. Where pages can be given back one by one (host memory), a slab is no more than
a range of addresses, and every row counts by itself: room is never lost to the way it is divided.
Where memory comes in blocks (a device's), a slab counts from its first row to its last, and rows of
other classes cannot use what is free in it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one row of `row_bytes`: the `index`th of a slab."""

    row_bytes: int
    slab: int
    index: int


class Backing(Protocol):
    """The memory behind slabs. A slab is opened before its slots are used, and closed when none
    is."""

    @property
    def by_row(self) -> bool:
        """Whether `free` gives a row's memory back, rather than `close` a slab's."""
        ...

    def open(self, slab: int, slots: int, row_bytes: int) -> None: ...
    def use(self, slot: Slot) -> None: ...
    def free(self, slot: Slot) -> None: ...
    def close(self, slab: int) -> None: ...


class Unbacked:
    """No memory of its own: slots are only counted."""

    by_row = True

    def open(self, slab: int, slots: int, row_bytes: int) -> None:
        """Nothing to do."""

    def use(self, slot: Slot) -> None:
        """Nothing to do."""

    def free(self, slot: Slot) -> None:
        """Nothing to do."""

    def close(self, slab: int) -> None:
        """Nothing to do."""


@dataclass(slots=True)
class _Slab:
    slots: int
    used: int = 0
    free: list[int] = field(default_factory=list)  # given back before
    fresh: int = 0  # all from here on have never been used

    @property
    def next(self) -> int:
        """The slot that `take` takes."""
        return self.free[-1] if self.free else self.fresh

    def take(self) -> None:
        self.used += 1
        if self.free:
            self.free.pop()
        else:
            self.fresh += 1

    @property
    def full(self) -> bool:
        return self.used == self.slots


@dataclass(slots=True)
class _RowClass:
    """Slabs of one row size; those with room by themselves, too."""

    slots: int  # of each slab
    slabs: dict[int, _Slab] = field(default_factory=dict)
    roomy: OrderedDict[int, None] = field(default_factory=OrderedDict)
    used: int = 0

    @property
    def free(self) -> int:
        return self.slots * len(self.slabs) - self.used


class Space:
    """Slots under a budget.

    Args:
        bytes_max: Budget of everything that `nbytes` counts.
        slab_bytes: About how large a slab is; one that holds a single row may be larger.
        granule: Sizes are rounded up to multiples of this.
        backing: The memory.
    """

    def __init__(
        self, bytes_max: int, *, slab_bytes: int, granule: int, backing: Backing | None = None
    ) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        self._slab_bytes = slab_bytes
        self._granule = granule
        self._backing = Unbacked() if backing is None else backing
        self._classes: dict[int, _RowClass] = {}
        self._slabs = 0

    @property
    def by_row(self) -> bool:
        """Whether every row counts by itself."""
        return self._backing.by_row

    def row_bytes(self, size: int) -> int:
        """What a row of `size` bytes takes: its class."""
        return max(1, -(-size // self._granule)) * self._granule

    def holds(self, sizes: Sequence[int]) -> bool:
        """Whether rows of these sizes fit together into an empty space."""
        return self._claim(sizes, empty=True) <= self.bytes_max

    def fits(self, sizes: Sequence[int]) -> bool:
        """Whether they fit now."""
        return self._claim(sizes) <= self.bytes_max - self.nbytes

    def take(self, sizes: Sequence[int]) -> tuple[Slot, ...]:
        """Slots for rows that fit."""
        assert self.fits(sizes), "room is made before it is taken"
        taken: list[Slot] = []
        try:
            for size in sizes:
                taken.append(self._take(self.row_bytes(size)))
        except Exception:  # the system has no memory after all
            self.give(taken)
            raise
        return tuple(taken)

    def give(self, slots: Sequence[Slot]) -> None:
        """Free slots, and the memory that nobody needs for now."""
        for slot in slots:
            self._give(slot)

    def _claim(self, sizes: Sequence[int], *, empty: bool = False) -> int:
        """Bytes that rows of these sizes would add to `nbytes`."""
        rows = Counter(self.row_bytes(size) for size in sizes)
        if self.by_row:
            return sum(row_bytes * count for row_bytes, count in rows.items())
        claimed = 0
        for row_bytes, count in rows.items():
            known = self._classes.get(row_bytes)
            slots = known.slots if known else self._slots(row_bytes)
            missing = count - (known.free if known and not empty else 0)
            claimed += max(0, -(-missing // slots)) * slots * row_bytes
        return claimed

    def _slots(self, row_bytes: int) -> int:
        return max(1, min(self._slab_bytes, self.bytes_max) // row_bytes)

    def _take(self, row_bytes: int) -> Slot:
        known = self._classes.get(row_bytes)
        if known is None:
            known = self._classes[row_bytes] = _RowClass(self._slots(row_bytes))
        if not known.roomy:
            self._open(known, row_bytes)
        number = next(iter(known.roomy))
        slab = known.slabs[number]
        slot = Slot(row_bytes, number, slab.next)
        self._backing.use(slot)
        slab.take()
        known.used += 1
        if slab.full:
            del known.roomy[number]
        if self.by_row:
            self.nbytes += row_bytes
        return slot

    def _open(self, known: _RowClass, row_bytes: int) -> None:
        number, self._slabs = self._slabs, self._slabs + 1
        self._backing.open(number, known.slots, row_bytes)
        known.slabs[number] = _Slab(known.slots)
        known.roomy[number] = None
        if not self.by_row:
            self.nbytes += known.slots * row_bytes

    def _give(self, slot: Slot) -> None:
        known = self._classes[slot.row_bytes]
        slab = known.slabs[slot.slab]
        self._backing.free(slot)
        slab.free.append(slot.index)
        slab.used -= 1
        known.used -= 1
        known.roomy[slot.slab] = None
        if self.by_row:
            self.nbytes -= slot.row_bytes
        if slab.used == 0:
            self._close(known, slot)

    def _close(self, known: _RowClass, slot: Slot) -> None:
        self._backing.close(slot.slab)
        del known.slabs[slot.slab], known.roomy[slot.slab]
        if not self.by_row:
            self.nbytes -= known.slots * slot.row_bytes
        if not known.slabs:
            del self._classes[slot.row_bytes]
