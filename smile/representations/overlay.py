"""Live rows over an immutable table: inserted and evicted while others look up.

A view is an index and where rows lie, and never changes; publishing is one assignment. A row's
place is used again only when nobody has a view left in which it holds another row: views die with
their last reader, in whatever order, and places wait for all views that are as old.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from smile.errors import InvalidArgument
from smile.model.ngram_rows import RowFormat, RowStore, RowStores
from smile.representations.index import WORD_BYTES, NgramIndex
from smile.representations.snapshot import Table

INDEX_BYTES = 2 * 16 + 2 * WORD_BYTES  # an entry's, while a new index replaces an old one


class OverlayView:
    """Live rows as of one moment. Never changes."""

    __slots__ = ("index", "store")

    def __init__(self, index: NgramIndex, store: RowStore) -> None:
        self.index = index
        self.store = store


class Overlay:
    """Rows that can be added and removed, within a budget. Threads may share it.

    Args:
        budget_bytes: Of rows and index; memory is taken from the system as rows come.

    Raises:
        InvalidArgument: there is no room for one row.
    """

    def __init__(self, row_format: RowFormat, budget_bytes: int) -> None:
        entry_bytes = row_format.row_bytes + INDEX_BYTES
        if budget_bytes < entry_bytes:
            raise InvalidArgument(
                f"the budget of live rows must be at least {entry_bytes} bytes, one row, got "
                f"{budget_bytes}"
            )
        self.format = row_format
        self.capacity = budget_bytes // entry_bytes
        self._rows = np.empty((self.capacity, row_format.row_bytes), np.uint8)
        self._keys = np.full(self.capacity, -1, np.int64)  # by place; -1: not in the view
        self._free = np.arange(self.capacity, dtype=np.int32)[::-1]
        self._retired: deque[tuple[weakref.ref[RowStore], NDArray[np.int32]]] = deque()
        self._lock = threading.Lock()
        self._view = self._made()

    @property
    def view(self) -> OverlayView:
        """The rows of now. Their places are not used otherwise while its store is kept."""
        return self._view

    @property
    def room(self) -> int:
        """Rows that can be inserted now."""
        with self._lock:
            self._reclaim()
            return len(self._free)

    def __len__(self) -> int:
        return len(self.keys())

    def keys(self) -> NDArray[np.int64]:
        """Of all rows [n], in no order."""
        with self._lock:
            return self._keys[self._keys >= 0]

    def insert(self, keys: NDArray[np.int64], rows: NDArray[np.uint8]) -> int:
        """Adds packed rows [n, row_bytes], all at once; returns how many.

        What is there stays: a row is a pure function of its key. Those for which there is no room,
        or none until readers of old views end, are left out, the last first.
        """
        assert rows.shape == (len(keys), self.format.row_bytes) and rows.dtype == np.uint8
        with self._lock:
            self._reclaim()
            first = np.sort(np.unique(keys, return_index=True)[1])
            new = first[self._view.index.find(keys[first]) < 0][: len(self._free)]
            if len(new) == 0:
                return 0
            left = len(self._free) - len(new)
            slots, self._free = self._free[left:][::-1], self._free[:left]
            self._rows[slots] = rows[new]
            self._keys[slots] = keys[new]
            self._publish(slots[:0])
            return len(new)

    def remove(self, keys: NDArray[np.int64]) -> int:
        """Removes rows, all at once; returns how many were there."""
        with self._lock:
            found = self._view.index.find(np.unique(keys))
            slots = found[found >= 0]
            if len(slots):
                self._keys[slots] = -1
                self._publish(slots)
            return len(slots)

    def clear(self) -> None:
        """Removes all."""
        self.remove(self.keys())

    def _publish(self, left: NDArray[np.int32]) -> None:
        """Readers see what is now; `left` are places that only views of before have."""
        self._retired.append((weakref.ref(self._view.store), left))
        self._view = self._made()

    def _made(self) -> OverlayView:
        slots = np.flatnonzero(self._keys >= 0)
        index = NgramIndex.build(self._keys[slots], slots.astype(np.int32))
        return OverlayView(index, RowStore(self._rows))

    def _reclaim(self) -> None:
        """Places are free again once no view as old as they are is left."""
        while self._retired and self._retired[0][0]() is None:
            self._free = np.concatenate([self._free, self._retired.popleft()[1]])


class TableView:
    """A table's rows and live ones, as of one moment. Never changes, so threads may share it.

    Attributes:
        stores: The table's rows, then the live ones.
    """

    __slots__ = ("_indexes", "stores")

    def __init__(self, table: Table | None, live: OverlayView, row_format: RowFormat) -> None:
        parts = [] if table is None else [(table.index, table.store)]
        parts.append((live.index, live.store))
        self.stores = RowStores(row_format, [store for _, store in parts])
        self._indexes = list(zip((index for index, _ in parts), self.stores.firsts, strict=True))

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """The number of each key's row in `stores` [n], new; -1 where there is none."""
        numbers = np.full(len(keys), -1, np.int32)
        for index, first in self._indexes:
            index.find_into(keys, numbers, first)
        return numbers


class LiveTable:
    """A table that traffic adds to. Threads may share it.

    Args:
        table: None: nothing but what is added.

    Raises:
        InvalidArgument: rows of another format.
    """

    def __init__(self, table: Table | None, overlay: Overlay) -> None:
        if table is not None and table.format != overlay.format:
            raise InvalidArgument(f"rows must be {table.format}, got {overlay.format}")
        self.table = table
        self.overlay = overlay
        self._last = self._of(overlay.view)

    @property
    def view(self) -> TableView:
        """The rows of now."""
        live, (seen, made) = self.overlay.view, self._last
        return made if seen is live else self.refresh()

    def refresh(self) -> TableView:
        """Lets go of a view of before."""
        self._last = _, made = self._of(self.overlay.view)
        return made

    def _of(self, live: OverlayView) -> tuple[OverlayView, TableView]:
        return live, TableView(self.table, live, self.overlay.format)
