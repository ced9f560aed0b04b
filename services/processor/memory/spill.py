"""Local disk, below host memory: modules that memory had no room for, as they lie in it.

A module that comes from storage while memory is full is written down once, rows as they are. When
it is asked for again after it had to leave, it is read back to its new place: neither storage nor
decoding is in the way, so a working set larger than memory costs a copy for every miss.

One file without a name: nobody else can open it, and it is gone when the process ends. It is
written round and round; what is overwritten is loaded from storage the next time. Every module is
read whole and checked against a checksum that only memory holds, so damaged or missing bytes are a
miss and never an answer.
"""

from __future__ import annotations

import os
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Generic, TypeVar

import torch
from torch import Tensor

from services.processor.lanes.dispatch import TierLevel
from services.processor.memory.arena import Movable
from services.processor.memory.tiers import TierCounters
from services.processor.requests import ModuleKey
from smile.logs import get_logger
from smile.model.kernels.rows import Row

M = TypeVar("M", bound=Movable)

META = torch.device("meta")
FULL_SHARE = 0.9  # of memory: from here on modules will have to leave soon


class LostError(Exception):
    """What lay on disk is not there any more, or not as it was."""


@dataclass(frozen=True, slots=True)
class _Entry(Generic[M]):
    """Where a module lies in the file.

    Attributes:
        form: The module, its rows without memory.
        start: Its first byte.
        sizes: Bytes of each row.
        checksum: CRC-32 of all of them.
    """

    form: M
    start: int
    sizes: tuple[int, ...]
    checksum: int


@dataclass(frozen=True, slots=True)
class _Extent:
    """Bytes of the file that were given to a module: [start, stop)."""

    key: ModuleKey
    start: int
    stop: int

    def overlaps(self, end: int, start: int, stop: int) -> bool:
        """Whether it has bytes in [start, stop), or in what is left out behind `end` where the file
        begins again."""
        return (self.start < stop and start < self.stop) or start < end <= self.start


@dataclass(frozen=True, slots=True, eq=False)
class Recalled(Generic[M]):
    """A module that lies on disk and has no place in memory yet."""

    spill: Spill[M]
    key: ModuleKey
    entry: _Entry[M]

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """The size of each row `place` wants."""
        return self.entry.sizes

    def place(self, rows: Sequence[Row]) -> M:
        """Read it into rows of sizes `row_bytes`. Blocks.

        Raises:
            LostError: it has been overwritten meanwhile, or cannot be read; what is in the rows now
                is nothing.
        """
        self.spill.read(self.key, self.entry, [row.bytes for row in rows])
        return self.entry.form.on(rows)


class Spill(Generic[M]):
    """Modules on local disk, by key. Threads may share it.

    Args:
        folder: Where its file will be, once there is something to write; None: where the system
            keeps temporary files.
        bytes_max: How large the file may become; 0: nothing is kept.
        full: Whether memory is so full that modules will have to leave.
    """

    def __init__(self, folder: Path | None, bytes_max: int, full: Callable[[], bool]) -> None:
        self.counters = TierCounters()
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._bytes_max = bytes_max
        self._full = full
        self._lock = threading.Lock()
        self._entries: dict[ModuleKey, _Entry[M]] = {}
        self._extents: deque[_Extent] = deque()  # as they were given out, which is the file's order
        self._writing: set[ModuleKey] = set()
        self._end = 0
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: ModuleKey) -> Recalled[M] | None:
        """A module that was kept; None if it is not there. Does not block."""
        with self._lock:
            if (entry := self._entries.get(key)) is not None:
                return Recalled(self, key, entry)
            self.counters.misses += 1
            return None

    def read(self, key: ModuleKey, entry: _Entry[M], rows: Sequence[Tensor]) -> None:
        """A module's bytes as they were kept, into rows of its sizes. Raises `LostError`."""
        with self._lock:
            file = self._file
        if file is not None and _read(file, entry, rows):
            with self._lock:
                self.counters.hits += 1
            return
        with self._lock:
            self.counters.misses += 1
            if self._entries.get(key) is entry:
                self._forget(key)
        raise LostError(f"module {key.digest} is not on disk any more as it was kept")

    def keep(self, key: ModuleKey, module: M) -> None:
        """Write a module down if it will have to leave memory soon and is not written yet. Its
        rows must stay as they are meanwhile.
        """
        rows = [row.bytes for row in module.rows]
        sizes = tuple(row.nbytes for row in rows)
        if not self._full() or not 0 < sum(sizes) <= self._bytes_max:
            return
        with self._lock:
            if key in self._entries or key in self._writing or (file := self._opened()) is None:
                return
            start = self._room(key, sum(sizes))
            self._writing.add(key)
        try:
            checksum = _write(file, start, rows)
        except (OSError, ValueError) as error:  # a file that was closed has no number
            get_logger().warning("a module could not be kept on disk", why=str(error))
            checksum = None
        with self._lock:
            self._writing.remove(key)
            if checksum is not None:
                form = module.on([_unbacked(size) for size in sizes])
                self._entries[key] = _Entry(form, start, sizes, checksum)
                self._nbytes += sum(sizes)
                self.counters.loads += 1
                self.counters.loaded_bytes += sum(sizes)

    def close(self) -> None:
        """Give the disk back; nothing is kept from now on."""
        with self._lock:
            self._bytes_max = self._nbytes = 0
            self._entries.clear()
            if self._file is not None:
                self._file.close()

    def level(self) -> TierLevel:
        """How full it is, and what it has done."""
        with self._lock:
            counters = replace(self.counters)
            return TierLevel(len(self._entries), self._nbytes, self._bytes_max, counters)

    def _forget(self, key: ModuleKey) -> None:
        """It is not there any more. With the lock."""
        self._nbytes -= sum(self._entries.pop(key).sizes)

    def _opened(self) -> IO[bytes] | None:
        """The file; None, and nothing is kept from now on, if it cannot be made. With the lock."""
        if self._file is None and self._bytes_max:
            try:
                self._file = tempfile.TemporaryFile(  # noqa: SIM115 -- closed by `close`
                    prefix="smile-modules-", dir=self._folder, buffering=0
                )
            except OSError as error:
                get_logger().warning("modules will not be kept on disk", why=str(error))
                self._bytes_max = 0
        return self._file if self._bytes_max else None

    def _room(self, key: ModuleKey, size: int) -> int:
        """Where the next `size` bytes go; who lies there is forgotten. Holds the lock.

        Whoever is read or still written there meanwhile finds another checksum.
        """
        start = self._end if self._end + size <= self._bytes_max else 0
        while self._extents and self._extents[0].overlaps(self._end, start, start + size):
            extent = self._extents.popleft()
            entry = self._entries.get(extent.key)
            if entry is not None and entry.start == extent.start:
                self._forget(extent.key)
                self.counters.evictions += 1
        self._end = start + size
        self._extents.append(_Extent(key, start, self._end))
        return start


def _write(file: IO[bytes], start: int, rows: Sequence[Tensor]) -> int:
    """Write rows one after the other; their checksum."""
    checksum = 0
    for row in rows:
        view = row.numpy().data
        checksum = zlib.crc32(view, checksum)
        written = 0
        while written < len(view):
            written += os.pwrite(file.fileno(), view[written:], start + written)
        start += len(view)
    return checksum


def _read(file: IO[bytes], entry: _Entry[M], rows: Sequence[Tensor]) -> bool:
    """Every row; whether each byte is what was written."""
    views = [row.numpy().data for row in rows]
    try:
        count = os.preadv(file.fileno(), views, entry.start)
    except (OSError, ValueError) as error:
        get_logger().warning("modules on disk cannot be read", why=str(error))
        return False
    checksum = 0
    for view in views:
        checksum = zlib.crc32(view, checksum)
    return count == sum(entry.sizes) and checksum == entry.checksum


@cache
def _unbacked(size: int) -> Row:
    """A row of a size, without memory."""
    return Row(torch.empty((1, size), dtype=torch.uint8, device=META), 0)
