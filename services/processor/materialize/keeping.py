"""Looks after the rows at hand while the processor serves: in the background, one round at a time.

Each round takes in a newer snapshot where one lies in place of the one that is open, learns from
what traffic asked, tells other processors, and takes in what they tell. Whatever goes wrong is
logged and tried again; answers do not depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from services.processor.materialize.learning import LiveRows
from services.processor.materialize.options import StandInPlace
from services.processor.materialize.sharing import Shared, Sharing
from smile.errors import SmileError
from smile.logs import get_logger
from smile.representations.manifest import FILES, MANIFEST_FILE
from smile.representations.update import Learned
from smile.store.redis import Redis

T = TypeVar("T")
FIRST_ROUND_S = 0.5  # while backbones are loaded, to look for one again
Stamp: TypeAlias = tuple[tuple[int, int, int], ...]


@dataclass(slots=True)
class Kept:
    """One backbone's rows.

    Attributes:
        table: Where a snapshot lies.
        said: What was logged last.
        refused: The snapshot that could not be used: it is not read again before it changes.
        untold: Whether others may lack what was learned here.
    """

    rows: LiveRows
    table: Path | None
    sharing: Sharing | None
    said: str = ""
    refused: Stamp = ()
    untold: bool = False


class Keeper:
    """Looks after all backbones' rows.

    Args:
        rows_of: Rows by backbone, as soon as there are any.
        places: Where a backbone's snapshot lies.
        rounds_s: From one round to the next.
        redis: Where rows are shared; None: nowhere.
    """

    def __init__(
        self,
        rows_of: Callable[[], Mapping[str, LiveRows]],
        places: Mapping[str, StandInPlace],
        *,
        rounds_s: float,
        redis: Callable[[], Redis] | None = None,
    ) -> None:
        self._rows_of = rows_of
        self._places = places
        self._rounds_s = rounds_s
        self._connect = redis
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._kept: dict[str, Kept] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.round()
            await asyncio.sleep(self._rounds_s if self._kept else FIRST_ROUND_S)

    async def round(self) -> None:
        """One round for all backbones' rows."""
        for backbone, rows in self._rows_of().items():
            kept = self._kept.get(backbone)
            if kept is None:
                kept = self._kept[backbone] = self._new(backbone, rows)
            for step in (self._renew_domains, self._renew, self._learn, self._take_in):
                try:
                    await step(kept)
                except Exception as error:
                    _say(backbone, kept, error)

    async def close(self) -> None:
        """End the thread, and connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for kept in self._kept.values():
            if kept.sharing is not None:
                await kept.sharing.close()

    def _new(self, backbone: str, rows: LiveRows) -> Kept:
        place = self._places.get(backbone)
        sharing = None
        if self._connect is not None:
            sharing = Sharing(self._connect(), rows.encoder, rows.format)
        return Kept(rows, place.table if place else None, sharing)

    async def _renew(self, kept: Kept) -> None:
        folder = kept.table
        if folder is None or not await self._beside(partial(kept.rows.newer, folder)):
            return
        stamp = await self._beside(partial(_stamp, folder))
        if stamp == kept.refused:
            return
        try:
            await self._beside(partial(kept.rows.open, folder))
        except SmileError:
            kept.refused = stamp
            raise

    async def _renew_domains(self, kept: Kept) -> None:
        await self._beside(kept.rows.domains.renew)

    async def _learn(self, kept: Kept) -> None:
        learned: Learned = await self._beside(kept.rows.round)
        if kept.sharing is None or not kept.rows.learning:
            return
        kept.sharing.use(kept.rows.format)
        again, kept.untold = kept.untold, kept.untold or len(learned.keys) > 0
        if again or await kept.sharing.empty():  # Redis was away, or wiped
            await kept.sharing.tell(await self._beside(partial(_all_of, kept.rows)))
        elif len(learned.keys):
            await kept.sharing.tell(Shared.of(learned.keys, learned.counts, learned.rows))
        kept.untold = False

    async def _take_in(self, kept: Kept) -> None:
        if kept.sharing is None or not kept.rows.learning:
            return
        for one in await kept.sharing.heard():
            await self._beside(partial(kept.rows.accept, one.weighed, one.rows))

    async def _beside(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, act)


def _say(backbone: str, kept: Kept, error: Exception) -> None:
    """Once, until it is another."""
    why = error.message if isinstance(error, SmileError) else repr(error)
    if why != kept.said:
        kept.said = why
        get_logger().warning("rows were not looked after", backbone=backbone, why=why)


def _stamp(folder: Path) -> Stamp:
    """Another where a file of the snapshot is another."""
    found = [(folder / name).stat() for name in (MANIFEST_FILE, *FILES) if (folder / name).exists()]
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def _all_of(rows: LiveRows) -> Shared:
    return Shared.of(*rows.learned())
