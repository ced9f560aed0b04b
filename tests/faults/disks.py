"""Disks that are full: a real file system of a few hundred kilobytes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from smile.errors import SmileError
from tests.faults.operations import OPERATIONS, READS
from tests.faults.processes import Nursery
from tests.faults.storing import Storage, compared, repeated, storage
from tests.faults.tally import Selection, Tally

FULL = "on a full disk writing is refused with STORE_FULL, reading goes on, nothing is harmed"
DISK_KB = 32_768  # more than what a probe of the store takes
FILLER = "filler"


def may_mount() -> bool:
    """Whether this process may mount a small file system."""
    with TemporaryDirectory() as folder:
        return _mount(Path(folder)) and unmounted(Path(folder))


@asynccontextmanager
async def small_disk(nursery: Nursery) -> AsyncIterator[Storage]:
    """Storage on a disk of `DISK_KB`."""
    with TemporaryDirectory(prefix="sf") as folder:
        objects = Path(folder) / "objects"
        objects.mkdir()
        assert _mount(objects)
        try:
            async with storage(nursery, Path(folder)) as here:
                yield here
        finally:
            unmounted(objects)


def fill(here: Storage) -> None:
    """Takes all that is left."""
    with _filler(here).open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 10):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def make_room(here: Storage) -> None:
    _filler(here).unlink()


def _filler(here: Storage) -> Path:
    return here.folder / "objects" / ".smile" / FILLER


def mounted(folder: Path, options: str) -> bool:
    """A file system in memory at `folder`; whether this process may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return os.geteuid() == 0 and _succeeds(command)


def unmounted(folder: Path) -> bool:
    return _succeeds(["umount", "-l", str(folder)])


def _mount(folder: Path) -> bool:
    return mounted(folder, f"size={DISK_KB}k")


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


async def full_disk(nursery: Nursery, selection: Selection, tally: Tally) -> None:
    """Every operation on a full disk, and again once there is room."""
    began = time.monotonic()
    async with small_disk(nursery) as here:
        for operation in OPERATIONS:
            change = await here.fresh(operation)
            reads = [await here.fresh(read) for read in READS]
            before = here.judged()
            fill(here)
            failed: SmileError | None = None
            try:
                await change.send(here.world)
            except SmileError as error:
                failed = error
            tally.faults += 1
            tally.steps[operation] += 1
            reason = None if failed is None else failed.reason
            tally.whole(reason == "STORE_FULL", f"{operation}, disk full: {failed!r}")
            for read in reads:
                tally.expect(read.right(await read.send(here.world)), f"{operation}: cannot read")
            harmed = here.judged()
            make_room(here)
            where = f"{operation}, disk full"
            await repeated(here, change, tally, where)
            compared(tally, where, (before, harmed, here.judged()))
    tally.seconds += time.monotonic() - began
