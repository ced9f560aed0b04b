"""What reporters have counted, one document for each and each day, and what that makes of a tenant.

A report costs one write, however many tenants are in it. Documents of the days under way are
remembered; those that others write are read again every few seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from services.storage import keys
from services.storage.accounting.documents import ReporterDay, added
from services.storage.documents import Documents, Stored
from services.storage.quota import every_object
from smile.accounting import LATE_DAYS_MAX, Counts, UsageRow
from smile.errors import Aborted, DataCorrupted, InvalidArgument
from smile.logs import get_logger
from smile.store.objects import ObjectInfo, ObjectStore

REFRESH_S = 5.0
YOUNG = timedelta(minutes=2)  # changed so lately, an object may change again within its time stamp
DAYS_REMEMBERED = 2
READS_AT_ONCE = 16


@dataclass(slots=True)
class _Held:
    """A reporter's document as last seen."""

    stored: Stored[ReporterDay]
    info: ObjectInfo | None = None  # None: written here
    totals: dict[str, Counts] = field(default_factory=dict)  # by tenant, as far as asked for


@dataclass(slots=True)
class _Day:
    held: dict[str, _Held] = field(default_factory=dict)
    read_at: float = float("-inf")
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class Journal:
    """Reports as they came in.

    Args:
        now: The time in UTC.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._documents = Documents(store)
        self._now = now
        self._clock = clock
        self._days: dict[date, _Day] = {}

    @property
    def now(self) -> datetime:
        return self._now()

    @property
    def today(self) -> date:
        return self._now().date()

    async def add(self, day: date, reporter: str, rows: Sequence[UsageRow]) -> None:
        """Make what a reporter has counted durable; rows only grow.

        Raises:
            InvalidArgument: the day is too long past, or has not begun.
        """
        self._check_day(day)
        if not rows:
            return
        place = keys.reporter(day, reporter)
        held = self._days[day].held.get(reporter) if day in self._days else None
        stored = None if held is None else await self._swapped(place, held.stored, rows)
        if stored is None:

            def grow(found: Stored[ReporterDay] | None) -> ReporterDay:
                return (found.document if found else ReporterDay()).grown(rows)

            stored = await self._documents.edit(place, ReporterDay, grow)
            held = None
        self._remember(day, reporter, stored, held, rows)

    async def total(self, day: date, tenant: str) -> Counts:
        """What all reporters have counted of a tenant, a few seconds ago or later."""
        return added(_total(held, tenant) for held in (await self._fresh(day)).held.values())

    async def reported(self, day: date) -> list[ReporterDay]:
        """What each reporter has counted, a few seconds ago or later."""
        if day >= self.today - timedelta(days=1):
            held = (await self._fresh(day)).held.values()
            return [each.stored.document for each in held]
        return [stored.document for _, stored in await self._read_all(day)]

    async def closed(self, day: date) -> tuple[list[ReporterDay], str]:
        """All that was reported of a day, and its SHA-256."""
        found = sorted(await self._read_all(day), key=lambda pair: pair[0])
        told = "\n".join(f"{reporter} {stored.etag}" for reporter, stored in found)
        digest = hashlib.sha256(told.encode()).hexdigest()
        return [stored.document for _, stored in found], digest

    async def days(self) -> list[date]:
        """Days of which there are reports, oldest first."""
        return [date.fromisoformat(name) for name in await self._store.list_folders(keys.JOURNAL)]

    async def forget(self, day: date) -> None:
        """Remove what was reported of a day."""
        self._days.pop(day, None)
        async for info in every_object(self._store, keys.journal(day)):
            await self._store.delete(info.key)

    def _check_day(self, day: date) -> None:
        today = self.today
        if not today - timedelta(days=LATE_DAYS_MAX) <= day <= today + timedelta(days=1):
            raise InvalidArgument(
                f"counts are taken of the last {LATE_DAYS_MAX} days, got {day} on {today}",
                reason="DAYS_INVALID",
                metadata={"limit": str(LATE_DAYS_MAX), "value": day.isoformat()},
            )

    async def _swapped(
        self, place: str, stored: Stored[ReporterDay], rows: Sequence[UsageRow]
    ) -> Stored[ReporterDay] | None:
        """The grown document; None where what is remembered is not what is there."""
        wanted = stored.document.grown(rows)
        try:
            return Stored(wanted, await self._documents.swap(place, wanted, stored.etag))
        except Aborted:
            return None

    def _remember(
        self,
        day: date,
        reporter: str,
        stored: Stored[ReporterDay],
        held: _Held | None,
        rows: Sequence[UsageRow],
    ) -> None:
        if day < self.today - timedelta(days=1):
            return
        totals = {} if held is None else dict(held.totals)
        for row in rows:
            totals.pop(row.tenant, None)
        self._day(day).held[reporter] = _Held(stored, None, totals)

    def _day(self, day: date) -> _Day:
        found = self._days.setdefault(day, _Day())
        for other in sorted(self._days)[:-DAYS_REMEMBERED]:
            if other != day:
                del self._days[other]
        return found

    async def _fresh(self, day: date) -> _Day:
        found = self._day(day)
        async with found.reading:
            if self._clock() - found.read_at > REFRESH_S:
                at = self._clock()
                await self._refresh(day, found)
                found.read_at = at
        return found

    async def _refresh(self, day: date, found: _Day) -> None:
        prefix = keys.journal(day)
        settled = self.now - YOUNG
        infos = [info async for info in every_object(self._store, prefix)]
        for start in range(0, len(infos), READS_AT_ONCE):
            wanted = [
                info
                for info in infos[start : start + READS_AT_ONCE]
                if info.modified > settled or not _same(found.held.get(_reporter(info.key)), info)
            ]
            before = dict(found.held)
            read = await asyncio.gather(*map(self._read, wanted))
            for info, stored in zip(wanted, read, strict=True):
                held = found.held.get(reporter := _reporter(info.key))
                if held is not before.get(reporter):
                    continue  # reported meanwhile: that is newer
                if stored is not None and (held is None or held.stored.etag != stored.etag):
                    found.held[reporter] = _Held(stored, info)
                elif held is not None:
                    held.info = info

    async def _read_all(self, day: date) -> list[tuple[str, Stored[ReporterDay]]]:
        infos = [info async for info in every_object(self._store, keys.journal(day))]
        found: list[tuple[str, Stored[ReporterDay]]] = []
        for start in range(0, len(infos), READS_AT_ONCE):
            batch = infos[start : start + READS_AT_ONCE]
            read = await asyncio.gather(*map(self._read, batch))
            found += [
                (_reporter(info.key), stored)
                for info, stored in zip(batch, read, strict=True)
                if stored is not None
            ]
        return found

    async def _read(self, info: ObjectInfo) -> Stored[ReporterDay] | None:
        try:
            return await self._documents.read(info.key, ReporterDay)
        except DataCorrupted as error:  # one bad document must not hide the others
            get_logger().error("left a corrupted report out", place=info.key, why=error.message)
            return None


def _reporter(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")


def _same(held: _Held | None, info: ObjectInfo) -> bool:
    return held is not None and held.info == info


def _total(held: _Held, tenant: str) -> Counts:
    if (known := held.totals.get(tenant)) is None:
        known = held.totals[tenant] = held.stored.document.total(tenant)
    return known
