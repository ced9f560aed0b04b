"""The one seam between the model's mathematics and the machine it runs on.

Every kernel is there twice: in torch's operations, which run anywhere, and in C++, compiled for
the processor at first use. `kernels_for` chooses once; nothing else asks which.

Native kernels can be put together: calls are written down, and a whole pass is one native call.
"""

from __future__ import annotations

import enum
import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from smile.errors import FailedPrecondition
from smile.logs import get_logger
from smile.model.kernels.build import Loaded, Places, load
from smile.model.kernels.dense import DenseKernels, TorchDense
from smile.model.kernels.grouped import GroupedKernels, TorchGrouped
from smile.model.kernels.local_encoder import LocalKernels, NativeLocal, TorchLocal
from smile.model.kernels.merge import MergeKernels, NativeMerge, TorchMerge
from smile.model.kernels.native_dense import NativeDense
from smile.model.kernels.native_grouped import NativeGrouped
from smile.model.kernels.tape import AtOnce, Calls, Library, Tape
from smile.model.kernels.workspace import NO_ROOM, Room, Workspaces

NICENESS = 10  # of threads that give way in Python, too: a tenth of what others want
NATIVE_DTYPES = (torch.float32, torch.bfloat16)


class KernelChoice(enum.StrEnum):
    """Which kernels serve: AUTO takes the native ones where they can be had."""

    AUTO = "auto"
    NATIVE = "native"
    EAGER = "eager"


@dataclass(frozen=True, slots=True)
class Native:
    """What it takes to put native calls together. Threads may share it."""

    entries: Library
    workspaces: Workspaces


@dataclass(frozen=True, slots=True)
class Kernels:
    """Threads may share them, but for those that `together` yields.

    Attributes:
        dense: For every text.
        grouped: For the rows of many modules.
        merge: For rows of n-grams, in place of the lower layers.
        local: For computing such rows, and states from them.
        room: Where results go that the pass alone reads.
        native: None where calls run at once and cannot wait.
        target: What they were built for; empty: torch's own, or those that `together` yields.
    """

    dense: DenseKernels
    grouped: GroupedKernels
    merge: MergeKernels
    local: LocalKernels
    room: Room = NO_ROOM
    native: Native | None = None
    target: str = ""

    @contextmanager
    def together(self) -> Iterator[Kernels]:
        """Kernels whose calls may wait until the block ends, and then run in one native call.

        For one thread. Inside the block no result may be looked at, and none that lies in `room`
        after it; other results are there when it ends. If the block raises, nothing runs.

        Raises:
            MemoryError: there was none for a kernel's own scratch.
        """
        if self.native is None:
            yield self
            return
        with self.native.workspaces.borrowed() as room:
            tape = Tape(self.native.entries)
            yield _native(tape, room)
            tape.run()

    def give_way(self) -> None:
        """Let every other thread go first while the calling one computes, from now on: the system
        gives it what they leave. On Linux alone; elsewhere priorities are the process's.
        """
        if sys.platform != "linux":
            return
        if self.native is not None:
            self.native.entries.give_way()
        else:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


EAGER = Kernels(TorchDense(), TorchGrouped(), TorchMerge(), TorchLocal())


def kernels_for(
    device: torch.device,
    dtype: torch.dtype,
    choice: KernelChoice = KernelChoice.AUTO,
    places: Places | None = None,
) -> Kernels:
    """Kernels for activations of `dtype` on `device`. The first call may compile, for seconds.

    Raises:
        FailedPrecondition: NATIVE was asked for and cannot be had; the message says why.
    """
    if choice is KernelChoice.EAGER:
        return EAGER
    why = _unsuited(device, dtype)
    loaded = load(places or Places()) if why is None else Loaded(None, why)
    if loaded.handle is not None:
        _log_once(loaded)
        library = Library(loaded.handle)
        calls = AtOnce(library)
        native = Native(library, Workspaces())
        return replace(_native(calls, native=native), target=loaded.target)
    if choice is KernelChoice.NATIVE:
        raise FailedPrecondition(f"native kernels cannot be had: {loaded.origin}")
    if why is None:
        _log_once(loaded)
    return EAGER


def _native(calls: Calls, room: Room = NO_ROOM, native: Native | None = None) -> Kernels:
    """All kernels, putting their calls in one place."""
    return Kernels(
        NativeDense(calls),
        NativeGrouped(calls),
        NativeMerge(calls),
        NativeLocal(calls),
        room,
        native,
    )


def _unsuited(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"they run on CPUs, not on {device}"
    if dtype not in NATIVE_DTYPES:
        return f"they compute in {' or '.join(map(str, NATIVE_DTYPES))}, not in {dtype}"
    return None


@functools.cache
def _log_once(loaded: Loaded) -> None:
    if loaded.handle is None:
        get_logger().warning("no native kernels, torch's own serve", why=loaded.origin)
    else:
        get_logger().info("native kernels loaded", origin=loaded.origin)
