"""Disks that are full: a real file system of a few hundred kilobytes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from smile.errors import SmileError
from tests.faults.operations import OPERATIONS, READS
from tests.faults.processes import Nursery
from tests.faults.small_disk import fill, small_disk
from tests.faults.storing import Storage, compared, repeated, storage
from tests.faults.tally import Selection, Tally

FULL = "on a full disk writing is refused with STORE_FULL, reading goes on, nothing is harmed"
FILLER = "filler"


@asynccontextmanager
async def storage_on_small_disk(nursery: Nursery) -> AsyncIterator[Storage]:
    """Storage on a disk of its own."""
    with TemporaryDirectory(prefix="sf") as folder, small_disk(Path(folder) / "objects"):
        async with storage(nursery, Path(folder)) as here:
            yield here


def _filler(here: Storage) -> Path:
    return here.folder / "objects" / ".smile" / FILLER


async def full_disk(nursery: Nursery, selection: Selection, tally: Tally) -> None:
    """Every operation on a full disk, and again once there is room."""
    began = time.monotonic()
    async with storage_on_small_disk(nursery) as here:
        for operation in OPERATIONS:
            change = await here.fresh(operation)
            reads = [await here.fresh(read) for read in READS]
            before = here.judged()
            fill(_filler(here))
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
            _filler(here).unlink()
            where = f"{operation}, disk full"
            await repeated(here, change, tally, where)
            compared(tally, where, (before, harmed, here.judged()))
    tally.seconds += time.monotonic() - began
