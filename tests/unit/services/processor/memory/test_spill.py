"""Local disk: what was kept comes back as it was, or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import torch

from services.processor.memory.spill import LostError, Spill
from services.processor.requests import ModuleKey
from smile.model.kernels.rows import Row, own_row
from smile.names import tenant_id

SIZES = (4096, 8192)
NBYTES = sum(SIZES)
TENANT = tenant_id("acme")


@dataclass(frozen=True, eq=False)
class Rows:
    """A module that is its rows."""

    rows: tuple[Row, ...]

    def on(self, rows: Sequence[Row]) -> Self:
        return type(self)(tuple(rows))


def module(seed: int) -> Rows:
    random = torch.Generator().manual_seed(seed)
    rows = tuple(own_row(size) for size in SIZES)
    for row in rows:
        row.bytes.random_(0, 256, generator=random)
    return Rows(rows)


def key(number: int) -> ModuleKey:
    return ModuleKey(TENANT, f"{number:064x}", "spec")


def spill_of(folder: Path, modules: float = 4, *, full: bool = True) -> Spill[Rows]:
    return Spill(folder, int(modules * NBYTES), lambda: full)


def same(one: Rows, other: Rows) -> bool:
    pairs = zip(one.rows, other.rows, strict=True)
    return all(torch.equal(a.bytes, b.bytes) for a, b in pairs)


def recalled(disk: Spill[Rows], number: int) -> Rows | None:
    found = disk.find(key(number))
    try:
        return None if found is None else found.place([own_row(size) for size in found.row_bytes])
    except LostError:
        return None


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    disk = spill_of(tmp_path)
    for number in range(3):
        disk.keep(key(number), module(number))
    for number in range(3):
        found = recalled(disk, number)
        assert found is not None and same(found, module(number))
    assert recalled(disk, 3) is None
    assert (disk.counters.hits, disk.counters.misses) == (3, 1)
    assert disk.counters.loaded_bytes == 3 * NBYTES
    disk.close()


def test_nothing_is_written_before_memory_is_full(tmp_path: Path) -> None:
    disk = spill_of(tmp_path, full=False)
    disk.keep(key(0), module(0))
    assert recalled(disk, 0) is None and disk.counters.loaded_bytes == 0


def test_a_module_is_written_once(tmp_path: Path) -> None:
    disk = spill_of(tmp_path)
    disk.keep(key(0), module(0))
    disk.keep(key(0), module(0))
    assert disk.counters.loaded_bytes == NBYTES
    disk.close()


def test_the_file_has_no_name(tmp_path: Path) -> None:
    disk = spill_of(tmp_path)
    disk.keep(key(0), module(0))
    assert not list(tmp_path.iterdir())
    disk.close()


@pytest.mark.parametrize("modules", [1, 2.5, 4, 7.9])
def test_the_oldest_are_overwritten(tmp_path: Path, modules: float) -> None:
    disk = spill_of(tmp_path, modules)
    for number in range(40):
        disk.keep(key(number), module(number))
        kept = [one for one in range(number + 1) if recalled(disk, one) is not None]
        newest = min(number + 1, int(modules))
        assert kept[-newest:] == list(range(number + 1 - newest, number + 1))
        assert len(kept) == len(disk) <= modules
        assert disk.level().nbytes == len(kept) * NBYTES <= disk.level().bytes_max
        assert disk.counters.evictions == number + 1 - len(kept)
        assert all(same(recalled(disk, one) or module(-1), module(one)) for one in kept)
    disk.close()


def test_a_module_larger_than_the_disk_is_not_kept(tmp_path: Path) -> None:
    disk = spill_of(tmp_path, 0.9)
    disk.keep(key(0), module(0))
    assert len(disk) == 0


def test_damage_is_a_miss_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = spill_of(tmp_path)
    disk.keep(key(0), module(0))
    read = os.preadv

    def damaged(file: int, views: Sequence[memoryview], offset: int) -> int:
        count = read(file, views, offset)
        views[1][17] ^= 1
        return count

    monkeypatch.setattr(os, "preadv", damaged)
    assert recalled(disk, 0) is None
    monkeypatch.undo()
    assert recalled(disk, 0) is None and len(disk) == 0
    disk.close()


def test_a_disk_that_is_full_costs_nothing_but_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = spill_of(tmp_path)

    def refuse(*_: object) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    disk.keep(key(0), module(0))
    assert recalled(disk, 0) is None
    monkeypatch.undo()
    disk.keep(key(0), module(0))
    assert recalled(disk, 0) is not None
    disk.close()


def test_a_folder_that_is_not_there_keeps_nothing(tmp_path: Path) -> None:
    disk = spill_of(tmp_path / "absent")
    disk.keep(key(0), module(0))
    disk.keep(key(1), module(1))
    assert len(disk) == 0


def test_after_its_end_it_is_empty(tmp_path: Path) -> None:
    disk = spill_of(tmp_path)
    disk.keep(key(0), module(0))
    disk.close()
    disk.keep(key(1), module(1))
    assert recalled(disk, 0) is None and recalled(disk, 1) is None


def test_threads_get_what_was_kept_or_nothing(tmp_path: Path) -> None:
    disk = spill_of(tmp_path, 3)

    def act(number: int) -> bool:
        mine = number % 7
        disk.keep(key(mine), module(mine))
        found = recalled(disk, mine)
        return found is None or same(found, module(mine))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(act, range(400)))
    disk.close()
