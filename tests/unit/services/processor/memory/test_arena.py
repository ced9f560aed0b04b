"""Memory behind slots: written where it should be, given back when it is freed."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Self

import pytest
import torch

from services.processor.memory.arena import GRANULE_BYTES, Copying, DeviceSlabs, HostSlabs
from services.processor.memory.hierarchy import Hierarchy
from services.processor.memory.policy import LeastRecentlyUsed
from services.processor.memory.residency import Memory, Residency
from services.processor.memory.space import Slot, Space
from services.processor.options import Device, Eviction, MemoryOptions
from smile.limits import KIB, MIB
from smile.model.kernels.rows import Row
from smile.model.loaded import LoadedModule
from tests.unit.services.processor.conftest import key

CLASSES = (8 * KIB, 60 * KIB, 100 * KIB, 300 * KIB, 1_200 * KIB)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def host(bytes_max: int, slab_bytes: int = 64 * MIB) -> tuple[HostSlabs, Space]:
    slabs = HostSlabs()
    return slabs, Space(bytes_max, slab_bytes=slab_bytes, granule=GRANULE_BYTES, backing=slabs)


def test_rows_do_not_overlap_and_keep_what_is_written() -> None:
    slabs, space = host(4 * MIB, slab_bytes=MIB)
    slots = [slot for _ in range(3) for slot in space.take((100 * KIB, 5_000))]
    rows = slabs.rows(slots)
    for number, row in enumerate(rows):
        row.bytes.fill_(number + 1)
    for number, row in enumerate(rows):
        assert bool((row.bytes == number + 1).all())
    assert rows[0].slab is rows[2].slab, "rows of a class are one tensor"
    assert rows[0].slab.shape == (10, 100 * KIB)
    assert rows[0].address % 64 == 0


def test_a_freed_row_is_given_back_and_its_neighbours_stay() -> None:
    slabs, space = host(4 * MIB)
    slots = space.take((MIB, MIB, MIB))
    first, second, third = slabs.rows(slots)
    for row in (first, second, third):
        row.bytes.fill_(7)
    before = resident_bytes()
    space.give([slots[1]])
    assert before - resident_bytes() > 0.9 * MIB, "at once, while the slab lives on"
    assert bool((first.bytes == 7).all()) and bool((third.bytes == 7).all())
    assert not second.bytes.any()


def test_addresses_take_no_memory() -> None:
    before = resident_bytes()
    slabs, space = host(1 << 40, slab_bytes=1 << 36)
    (slot,) = space.take((MIB,))
    assert slabs.rows([slot])[0].slab.shape[0] == 1 << 16
    assert resident_bytes() - before < MIB


def test_a_slab_outlives_its_closing_while_a_row_is_read() -> None:
    slabs, space = host(4 * MIB)
    slots = space.take((MIB,))
    (row,) = slabs.rows(slots)
    space.give(slots)
    assert slabs.count == 0
    assert not row.bytes.any(), "readable, though its bytes are gone"


def options(host_bytes: int, device_bytes: int) -> MemoryOptions:
    return MemoryOptions(host_bytes, device_bytes, pinned_share=0.5, eviction=Eviction.S3_FIFO)


@dataclass(eq=False)
class FakeModule:
    """A module that is its rows."""

    rows: tuple[Row, ...]

    def on(self, rows: Sequence[Row]) -> Self:
        return type(self)(tuple(rows))


def test_a_thousand_loads_and_unloads_leave_nothing_behind() -> None:
    """Five classes of rows through memory that holds some of them, then everything unloaded."""
    hierarchy = Hierarchy.build(options(16 * MIB, 8 * MIB), Device.CPU)
    residency: Residency[LoadedModule] = Residency(hierarchy.memory, failed_s=1.0)
    chance, sizes, levels = Random(3), [], []
    for number in range(1_000):
        name = key(f"m{number}")
        assert residency.begin(name, 0.0)
        sizes = [chance.choice(CLASSES), 8 * KIB]
        slots = residency.reserve(name, sizes)
        assert slots is not None
        rows = hierarchy.host.rows(slots)
        for row in rows:
            row.bytes.fill_(number % 251)
        residency.publish(name, FakeModule(rows), 0.0)  # type: ignore[arg-type]
        acquired = residency.acquire(name, 0.0)
        assert acquired is not None and int(acquired.rows[0].bytes[-1]) == number % 251
        residency.release(name)
        if number % 3 == 0:
            residency.unload(name)
        if number % 100 == 99:
            residency.sweep(100.0, idle_s=1.0)
            assert residency.host.space.nbytes == residency.device.space.nbytes == 0
            assert hierarchy.host.count == 0
            del rows, acquired, row
            gc.collect()
            levels.append(resident_bytes())
    growth = (levels[-1] - levels[1]) / 800
    assert growth < 4 * KIB, f"{growth:.0f} bytes a cycle stay behind: {levels}"


def test_what_the_arena_says_is_what_the_system_sees() -> None:
    slabs, space = host(64 * MIB)
    before, nbytes = resident_bytes(), space.nbytes
    for size in CLASSES * 10:
        for row in slabs.rows(space.take((size,))):
            row.bytes.fill_(1)
    grown = resident_bytes() - before
    assert grown == pytest.approx(space.nbytes - nbytes, rel=0.1)


@dataclass
class LateCopy:
    """A copy that happens when it is told to."""

    sources: Sequence[Row]
    targets: Sequence[Row]
    done: bool = False

    def happen(self) -> None:
        for source, target in zip(self.sources, self.targets, strict=True):
            target.bytes.copy_(source.bytes)
        self.done = True


@dataclass
class LateCopier:
    """Copies later, in order, as a stream of a GPU does."""

    copies: list[LateCopy] = field(default_factory=list)

    def copy(self, sources: Sequence[Row], targets: Sequence[Row]) -> LateCopy:
        self.copies.append(LateCopy(sources, targets))
        return self.copies[-1]


def test_modules_are_copied_to_device_slabs_and_their_sources_kept_until_then() -> None:
    """The GPU's path, on slabs of the CPU and with a copier that takes its time."""
    slabs, space = host(2 * MIB)
    device, copier = DeviceSlabs(torch.device("cpu")), LateCopier()
    memory = Memory(
        host=space,
        device=Space(2 * MIB, slab_bytes=MIB, granule=GRANULE_BYTES, backing=device),
        host_policy=LeastRecentlyUsed(),
        device_policy=LeastRecentlyUsed(),
        mover=Copying[FakeModule](device.rows, copier),
        pinned_share=0.5,
    )
    residency: Residency[FakeModule] = Residency(memory, failed_s=1.0)

    def load(name: str, value: int) -> bool:
        residency.begin(key(name), 0.0)
        if (slots := residency.reserve(key(name), (900 * KIB, 8 * KIB))) is None:
            return False
        rows = slabs.rows(slots)
        for row in rows:
            row.bytes.fill_(value)
        residency.publish(key(name), FakeModule(rows), 0.0)
        return True

    assert load("a", 1) and load("b", 2)
    hot = residency.acquire(key("a"), 0.0)
    assert hot is not None and hot.rows[0].slab is not slabs.rows([Slot(900 * KIB, 0, 0)])[0].slab
    residency.release(key("a"))
    assert residency.acquire(key("b"), 0.0) is not None
    assert not load("c", 3), "the rows of a are still being copied, b is in use"
    copier.copies[0].happen()
    residency.release(key("b"))
    assert int(hot.rows[0].bytes[0]) == 1 and int(hot.rows[1].bytes[-1]) == 1
    assert residency.reserve(key("c"), (900 * KIB, 8 * KIB)) is not None
    copier.copies[1].happen()
    assert device.count == 2, "a slab for each class"
    residency.sweep(100.0, idle_s=1.0)
