"""What was used by day: from closed days where they are, else from what was reported so far."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from services.storage import keys
from services.storage.accounting.documents import DayTotals, TenantDay, added, folded
from services.storage.accounting.journal import Journal
from services.storage.documents import Documents
from smile import pages
from smile.accounting import Counts, DayRange, TenantUsage, UsageDay
from smile.names import TenantId
from smile.store.objects import ObjectStore

READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class TenantReport:
    """What a tenant used: by day, oldest first, and by vPLM id over all days ('' : not told
    apart)."""

    days: tuple[UsageDay, ...]
    vplms: Mapping[str, Counts]


@dataclass(frozen=True, slots=True)
class PlatformReport:
    """What tenants used: a page of them by id, all together by day, and the next page's token."""

    tenants: tuple[TenantUsage, ...]
    days: tuple[UsageDay, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class _AllOfDay:
    """One day of all tenants."""

    day: date
    counts: Mapping[str, Counts]
    stored: Mapping[str, tuple[int, int]]


class DayReports:
    """Reads what was used."""

    def __init__(self, store: ObjectStore, journal: Journal) -> None:
        self._documents = Documents(store)
        self._journal = journal

    def range(self, first: str, last: str) -> DayRange:
        """Days as callers write them; '' is today. Raises `InvalidArgument`."""
        return DayRange.parse(first, last, self._journal.today)

    async def of(self, tenant: TenantId, days: DayRange) -> TenantReport:
        """What one tenant used."""
        wanted = days.days()
        read: list[TenantDay] = []
        for start in range(0, len(wanted), READS_AT_ONCE):
            batch = wanted[start : start + READS_AT_ONCE]
            read += await asyncio.gather(*(self._tenant_day(tenant, day) for day in batch))
        found: list[UsageDay] = []
        vplms: dict[str, Counts] = {}
        for day, document in zip(wanted, read, strict=True):
            rows = {vplm: Counts(*kept) for vplm, kept in document.rows.items()}
            total = added(rows.values())
            found.append(UsageDay(day, total, document.stored_bytes, document.vplm_count))
            for vplm, counts in rows.items():
                vplms[vplm] = vplms.get(vplm, Counts()) + counts
        return TenantReport(tuple(found), vplms)

    async def page(self, days: DayRange, size: int, token: str) -> PlatformReport:
        """What every tenant used, those that used and stored nothing left out."""
        listing = f"usage of all from {days.first} to {days.last}"
        after = pages.place_of(token, listing)
        wanted = days.days()
        found: list[_AllOfDay] = []
        for start in range(0, len(wanted), READS_AT_ONCE):
            batch = wanted[start : start + READS_AT_ONCE]
            found += await asyncio.gather(*(self._all_of_day(day) for day in batch))
        names = sorted({tenant for day in found for tenant in (*day.counts, *day.stored)})
        later = [tenant for tenant in names if tenant > after]
        shown = later[:size]
        return PlatformReport(
            tuple(_tenant(tenant, found) for tenant in shown),
            () if token else tuple(map(_all, found)),
            pages.token_for(listing, shown[-1]) if len(later) > size else "",
        )

    async def _tenant_day(self, tenant: TenantId, day: date) -> TenantDay:
        """One day of a tenant: as it was closed, or as far as it was reported."""
        if day < self._journal.today:
            closed = await self._documents.read(keys.tenant_day(tenant, day), TenantDay)
            if closed is not None:
                return closed.document
            if await self._documents.read(keys.usage_day(day), DayTotals) is not None:
                return TenantDay()
        rows: dict[str, Counts] = {}
        for report in await self._journal.reported(day):
            for vplm, kept in report.rows.get(tenant, {}).items():
                rows[vplm] = rows.get(vplm, Counts()) + Counts(*kept)
        found = {vplm: counts.numbers for vplm, counts in rows.items()}
        return TenantDay(rows=found)

    async def _all_of_day(self, day: date) -> _AllOfDay:
        if day < self._journal.today:
            closed = await self._documents.read(keys.usage_day(day), DayTotals)
            if closed is not None:
                kept = closed.document
                counts = {tenant: Counts(*row) for tenant, row in kept.counts.items()}
                return _AllOfDay(day, counts, kept.stored)
        rows = folded(await self._journal.reported(day))
        return _AllOfDay(day, {tenant: added(mine.values()) for tenant, mine in rows.items()}, {})


def _tenant(tenant: str, days: Sequence[_AllOfDay]) -> TenantUsage:
    counts = added(day.counts[tenant] for day in days if tenant in day.counts)
    stored = next((d.stored.get(tenant, (0, 0)) for d in reversed(days) if d.stored), (0, 0))
    return TenantUsage(f"tenants/{tenant}", counts, *stored)


def _all(day: _AllOfDay) -> UsageDay:
    stored = day.stored.values()
    return UsageDay(
        day.day,
        added(day.counts.values()),
        sum(size for size, _ in stored),
        sum(vplms for _, vplms in stored),
    )
