"""Memory for what does not outlive a pass over the backbone.

A pass writes a few matrices, layer after layer the same ones, and so does the pass after it: they
stay in the processor's caches, and no page is faulted in twice. Whoever holds a `Workspace` has it
alone. What is in it lasts until the next pass; what must last longer is written elsewhere.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

GROWTH = 1.25  # so that batches a little larger each time do not grow it each time


class Slot(enum.Enum):
    """What a matrix is for; a pass uses each slot for one thing at a time."""

    STATES = enum.auto()
    SELECTED = enum.auto()
    QKV = enum.auto()
    MIXED = enum.auto()
    OUTPUT = enum.auto()
    MIDDLE = enum.auto()
    WIDE = enum.auto()
    NORMED = enum.auto()


class Room(Protocol):
    """Gives kernels places for results that the pass alone reads."""

    def take(self, slot: Slot, rows: int, width: int, dtype: torch.dtype) -> Tensor | None:
        """[rows, width], its content whatever it held; the one before in this slot may be
        overwritten by it. None: let the kernel make a new one."""
        ...

    def part(self, x: Tensor, rows: slice) -> Tensor:
        """Rows from `rows.start` to `rows.stop` of x, a view."""
        ...


class NoRoom:
    """Every result is new. Threads may share it."""

    def take(self, slot: Slot, rows: int, width: int, dtype: torch.dtype) -> Tensor | None:
        return None

    def part(self, x: Tensor, rows: slice) -> Tensor:
        return x[rows]


NO_ROOM = NoRoom()


class Workspace:
    """One matrix per slot and type on the CPU; grows, never shrinks. For one thread at a time."""

    def __init__(self) -> None:
        self._memory: dict[tuple[Slot, torch.dtype], Tensor] = {}
        self._parts: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def take(self, slot: Slot, rows: int, width: int, dtype: torch.dtype) -> Tensor | None:
        size = rows * width
        memory = self._memory.get((slot, dtype))
        if memory is None or memory.shape[0] < size:
            memory = torch.empty(int(size * GROWTH), dtype=dtype)
            self._memory[slot, dtype] = memory
        return memory[:size].view(rows, width)

    def part(self, x: Tensor, rows: slice) -> Tensor:
        key = (id(x), rows.start, rows.stop)
        found = self._parts.get(key)
        if found is None:  # x is kept as well: its identity stays its own
            found = self._parts[key] = (x, x[rows])
        return found[1]

    def end_pass(self) -> None:
        """Lets go of all but the memory itself."""
        self._parts.clear()


class Workspaces:
    """As many workspaces as were ever in use at once, last used first. Threads may share it."""

    def __init__(self) -> None:
        self._idle: list[Workspace] = []

    @contextmanager
    def borrowed(self) -> Iterator[Workspace]:
        """One for the caller alone."""
        try:
            workspace = self._idle.pop()
        except IndexError:
            workspace = Workspace()
        try:
            yield workspace
        finally:
            workspace.end_pass()
            self._idle.append(workspace)
