"""Native calls, at once or put down first and run together.

A kernel's entry point takes one array of 64-bit words. So the calls of a whole pass are one array
too, which `smile_run` (tape.cpp) goes through without the interpreter's lock: other threads run
Python meanwhile, and none has to win the lock back a hundred times a batch.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from array import array
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from smile.model.kernels.matrices import Matrix, matrix

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ABSENT = -1  # no bias


class Library:
    """The kernels of one library that `build.load` found. Threads may share it."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self.handle = handle
        self._addresses: dict[tuple[str, torch.dtype | None], int] = {}
        self._run = handle["smile_run"]  # not as an attribute: those are shared, as are their types
        self._run.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        self._run.restype = ctypes.c_int
        self._give_way = handle["smile_give_way"]
        self._give_way.argtypes = ()
        self._give_way.restype = None

    def function(self, name: str, dtype: torch.dtype | None = None) -> int:
        """The address of `smile_<name>`, followed by a storage type's name if it has one."""
        found = self._addresses.get((name, dtype))
        if found is None:
            suffix = "" if dtype is None else f"_{SUFFIXES[dtype]}"
            pointer = ctypes.cast(self.handle[f"smile_{name}{suffix}"], ctypes.c_void_p)
            assert pointer.value is not None
            found = self._addresses[name, dtype] = pointer.value
        return found

    def run(self, words: Sequence[int]) -> None:
        """Runs calls: a function, the number of its words and the words, each.

        Raises:
            MemoryError: there was none for a kernel's own scratch.
        """
        tape = array("q", words)
        if self._run(*tape.buffer_info()) != 0:
            raise MemoryError("a native kernel could not get memory")

    def give_way(self) -> None:
        """From now on the calling thread's calls run when nobody else wants the processor, in a
        native thread that stands in for it; the calling thread's own priority stays as it is.
        """
        self._give_way()


class Calls(Protocol):
    """Where native kernels put their calls."""

    entries: Library

    @property
    def threads(self) -> int:
        """How many a kernel may use; the last word of its call."""
        ...

    def matrix(self, x: Tensor) -> Matrix:
        """`x` for words of calls, which it is kept for."""
        ...

    def add(self, function: int, words: Sequence[int], *kept: object) -> None:
        """One call; `kept` owns the memory that `words` point to besides matrices."""
        ...


class AtOnce:
    """Every call runs before `add` returns. Threads may share it."""

    def __init__(self, library: Library) -> None:
        self.entries = library

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def matrix(self, x: Tensor) -> Matrix:
        return matrix(x)

    def add(self, function: int, words: Sequence[int], *kept: object) -> None:
        self.entries.run((function, len(words), *words))


class Tape:
    """Calls wait for `run`, and so does the memory they use. For one thread and one run."""

    def __init__(self, library: Library) -> None:
        self.entries = library
        self.threads = torch.get_num_threads()
        self._words: list[int] = []
        self._matrices: dict[int, Matrix] = {}  # by identity: what it is of is kept
        self._kept: list[object] = []

    def matrix(self, x: Tensor) -> Matrix:
        found = self._matrices.get(id(x))
        if found is None:
            found = self._matrices[id(x)] = matrix(x)
            self._kept.append(x)
        return found

    def add(self, function: int, words: Sequence[int], *kept: object) -> None:
        self._words += (function, len(words), *words)
        self._kept += kept

    def run(self) -> None:
        """All calls, in order; see `Library.run` for what it raises."""
        self.entries.run(self._words)
        self._words.clear()
        self._matrices.clear()
        self._kept.clear()


@functools.lru_cache(maxsize=256)
def real(value: float) -> int:
    """A number with a fraction as a word."""
    (word,) = struct.unpack("q", struct.pack("d", value))
    return int(word)
