"""The memory behind slots: host slabs whose rows give their pages back, device slabs, and the
copies between them.

A host slab is one anonymous mapping, [slots, row_bytes] bytes. Only rows that were written take
memory, and a freed row's pages go back to the system at once; so a slab can be as large as the
budget, and all rows of a class are one large tensor. Where a GPU copies from host memory, a row is
pinned while it is in use.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from services.processor.memory.residency import Transfer
from services.processor.memory.space import Slot
from smile.model.kernels.rows import Row

GRANULE_BYTES = mmap.PAGESIZE  # rows are given back in whole pages
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # Python names it from 3.13 on


def device_named(name: str) -> torch.device:
    """The device whose memory `DeviceSlabs` takes."""
    return torch.device(name)


class Slabs:
    """Slabs by number, and rows in them."""

    def __init__(self) -> None:
        self._slabs: dict[int, Tensor] = {}

    def rows(self, slots: Sequence[Slot]) -> tuple[Row, ...]:
        """The rows in slots that are taken."""
        return tuple(Row(self._slabs[slot.slab], slot.index) for slot in slots)

    @property
    def count(self) -> int:
        """Slabs that are open."""
        return len(self._slabs)


class Pages(Protocol):
    """What is done to a row's memory [row_bytes] when it comes into use, and before it is freed."""

    def lock(self, row: Tensor) -> None: ...
    def unlock(self, row: Tensor) -> None: ...


class Pageable:
    """Host memory as it is."""

    def lock(self, row: Tensor) -> None:
        """Nothing to do."""

    def unlock(self, row: Tensor) -> None:
        """Nothing to do."""


class Pinned:
    """Host memory that the GPU reads directly, so that copies do not hold anybody up. Not measured
    on a GPU yet."""

    def lock(self, row: Tensor) -> None:
        """Pin a row. Raises `RuntimeError` if the system locks no more memory."""
        cuda = torch.cuda.cudart()
        torch.cuda.check_error(cuda.cudaHostRegister(row.data_ptr(), row.nbytes, 0))

    def unlock(self, row: Tensor) -> None:
        """Unpin a row."""
        torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(row.data_ptr()))


class HostSlabs(Slabs):
    """Slabs in host memory. Everyone who writes to a row owns its slot, so nothing is locked
    here."""

    by_row = True

    def __init__(self, pages: Pages | None = None) -> None:
        super().__init__()
        self._pages = pages or Pageable()
        self._maps: dict[int, mmap.mmap] = {}

    def open(self, slab: int, slots: int, row_bytes: int) -> None:
        """Map addresses; they take no memory yet."""
        assert row_bytes % GRANULE_BYTES == 0, f"rows of whole pages, got {row_bytes} bytes"
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        mapped = mmap.mmap(-1, slots * row_bytes, flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # huge pages would come back into the holes
            mapped.madvise(mmap.MADV_NOHUGEPAGE)
        self._maps[slab] = mapped
        self._slabs[slab] = torch.frombuffer(mapped, dtype=torch.uint8).view(slots, row_bytes)

    def use(self, slot: Slot) -> None:
        """Ready a row for use."""
        self._pages.lock(self._slabs[slot.slab][slot.index])

    def free(self, slot: Slot) -> None:
        """Give a row's pages back; its bytes are zero from then on."""
        self._pages.unlock(self._slabs[slot.slab][slot.index])
        start = slot.index * slot.row_bytes
        self._maps[slot.slab].madvise(mmap.MADV_DONTNEED, start, slot.row_bytes)

    def close(self, slab: int) -> None:
        """Give the addresses back, once no `Row` is left that has them."""
        del self._slabs[slab], self._maps[slab]


class DeviceSlabs(Slabs):
    """Slabs in a device's memory, as blocks. Not measured on a GPU yet."""

    by_row = False

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def open(self, slab: int, slots: int, row_bytes: int) -> None:
        """Take a block."""
        self._slabs[slab] = torch.empty((slots, row_bytes), dtype=torch.uint8, device=self._device)

    def use(self, slot: Slot) -> None:
        """Nothing to do: the block is there."""

    def free(self, slot: Slot) -> None:
        """Nothing to do: the block stays."""

    def close(self, slab: int) -> None:
        """Give the block back."""
        del self._slabs[slab]


class Copier(Protocol):
    """Copies rows without waiting for it."""

    def copy(self, sources: Sequence[Row], targets: Sequence[Row]) -> Transfer: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    event: torch.cuda.Event

    @property
    def done(self) -> bool:
        return bool(self.event.query())


class SideStream:
    """Copies on a stream of its own, beside computing. Not measured on a GPU yet.

    What is computed on the device's default stream from then on comes after the copies; a slot is
    freed only after the answers computed from it have reached the host, so no copy overtakes its
    readers.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._computing = torch.cuda.default_stream(device)

    def copy(self, sources: Sequence[Row], targets: Sequence[Row]) -> Transfer:
        """Start copying each source, a pinned host row, to its target."""
        with torch.cuda.stream(self._stream):
            for source, target in zip(sources, targets, strict=True):
                target.bytes.copy_(source.bytes, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        self._computing.wait_event(event)
        return _Recorded(event)


class Movable(Protocol):
    """A module that says where its rows are, and takes others of the same content."""

    @property
    def rows(self) -> tuple[Row, ...]: ...
    def on(self, rows: Sequence[Row]) -> Self: ...


M = TypeVar("M", bound=Movable)


class Copying(Generic[M]):
    """Brings modules to the device by copying their rows into its slabs.

    Args:
        rows: Of slots on the device, as `Slabs.rows`.
        copier: Copies.
    """

    def __init__(self, rows: Callable[[Sequence[Slot]], tuple[Row, ...]], copier: Copier) -> None:
        self._rows = rows
        self._copier = copier

    def promote(self, module: M, slots: Sequence[Slot]) -> tuple[M, Transfer]:
        """The module with its rows on the device; copying has begun."""
        rows = self._rows(slots)
        return module.on(rows), self._copier.copy(module.rows, rows)
