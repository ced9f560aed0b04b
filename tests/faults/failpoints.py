"""Where a process is to be struck, and with what: a few numbers in memory that two processes share.

The process under test calls `reach` before each of its steps. The test sets the number of the step
and the blow, and reads how far the process came, also after its death.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
import signal
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_LAYOUT = struct.Struct("=iiiid")  # blow, at, count, struck, wall clock's error in seconds
_SIZE = 64


class Blow(enum.IntEnum):
    """What happens to a process at a step."""

    NONE = 0  # it is not even counted
    COUNT = 1
    KILL = 2  # SIGKILL
    STOP = 3  # SIGSTOP
    FULL = 4  # ENOSPC, at this step and all that follow
    BROKEN = 5  # EIO, at this step alone


OF_DISKS = (Blow.FULL, Blow.BROKEN)


@dataclass(slots=True)
class Failpoints:
    """Both sides' view of one process's steps, in `file`; their names gather in `file`.trace."""

    file: Path
    _map: mmap.mmap
    _lock: threading.Lock

    @classmethod
    def create(cls, file: Path) -> Self:
        file.write_bytes(bytes(_SIZE))
        file.with_suffix(".trace").write_bytes(b"")
        return cls.at(file)

    @classmethod
    def at(cls, file: Path) -> Self:
        with file.open("r+b") as opened:
            return cls(file, mmap.mmap(opened.fileno(), _SIZE), threading.Lock())

    @property
    def _fields(self) -> tuple[int, int, int, int, float]:
        blow, at, count, struck, clock_s = _LAYOUT.unpack_from(self._map)
        return blow, at, count, struck, clock_s

    def arm(self, blow: Blow, at: int = 0) -> None:
        """Count steps from now on, and strike at number `at` (from 1)."""
        self.file.with_suffix(".trace").write_bytes(b"")
        _LAYOUT.pack_into(self._map, 0, blow, at, 0, 0, self.clock_s)

    def disarm(self) -> None:
        _, at, count, struck, clock_s = self._fields
        _LAYOUT.pack_into(self._map, 0, Blow.NONE, at, count, struck, clock_s)

    @property
    def count(self) -> int:
        """Steps begun since the last `arm`."""
        return self._fields[2]

    @property
    def struck(self) -> bool:
        """Whether the blow fell."""
        return self._fields[3] > 0

    @property
    def clock_s(self) -> float:
        """By how much the process's wall clock is wrong."""
        return self._fields[4]

    @clock_s.setter
    def clock_s(self, seconds: float) -> None:
        blow, at, count, struck, _ = self._fields
        _LAYOUT.pack_into(self._map, 0, blow, at, count, struck, seconds)

    def steps(self) -> list[str]:
        """Names of the steps begun since the last `arm`."""
        return self.file.with_suffix(".trace").read_text().splitlines()

    def reach(self, step: str, *, on_disk: bool = False) -> None:
        """In the process under test: it is about to do `step`. Raises `OSError` where the blow is
        one of the file system, which only falls `on_disk`."""
        with self._lock:
            blow, at, count, struck, clock_s = self._fields
            if blow == Blow.NONE or (blow in OF_DISKS and not on_disk):
                return
            count += 1
            due = count == at or (blow == Blow.FULL and 0 < at < count)
            struck += due
            _LAYOUT.pack_into(self._map, 0, blow, at, count, struck, clock_s)
            trace = os.open(self.file.with_suffix(".trace"), os.O_WRONLY | os.O_APPEND)
            os.write(trace, f"{step}\n".encode())
            os.close(trace)
        if due:
            _strike(Blow(blow), step)


def _strike(blow: Blow, step: str) -> None:
    match blow:
        case Blow.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # it comes at once, but not here
        case Blow.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Blow.FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), step)
        case Blow.BROKEN:
            raise OSError(errno.EIO, os.strerror(errno.EIO), step)
        case _:
            return
