"""Closes days that are over: adds up what was reported, and says what was stored.

One document for each tenant, then the one of all tenants, which says what it was made of: where
counts came late, the day is closed again. What was reported is kept until no more can come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import date, timedelta
from typing import TypeAlias

from services.storage import keys
from services.storage.accounting.documents import (
    DayTotals,
    TenantDay,
    added,
    folded,
)
from services.storage.accounting.journal import Journal
from services.storage.documents import Documents, Stored
from services.storage.identity import Identity
from smile.accounting import LATE_DAYS_MAX, Counts, day_end
from smile.errors import SmileError
from smile.logs import get_logger
from smile.names import TenantId
from smile.store.objects import ObjectStore

CLOSE_AFTER = timedelta(minutes=10)  # reporters have sent the day's last counts by then
KEPT_DAYS = LATE_DAYS_MAX + 2

Level: TypeAlias = tuple[int, int]  # bytes and vPLMs stored


class Closer:
    """Closes days. Several replicas may: they write the same."""

    def __init__(
        self,
        store: ObjectStore,
        journal: Journal,
        identity: Identity,
        stored: Callable[[TenantId], Awaitable[Level]],
    ) -> None:
        self._documents = Documents(store)
        self._journal = journal
        self._identity = identity
        self._stored = stored

    async def run(self, every_s: float) -> None:
        """Closes what is due, for ever."""
        while True:
            try:
                await self.close_due()
            except SmileError as error:
                get_logger().warning("cannot close days now", why=error.message)
            await asyncio.sleep(every_s)

    async def close_due(self) -> list[date]:
        """Close days that are over, and those of which counts came late; which were written."""
        written: list[date] = []
        today = self._journal.today
        days = set(await self._journal.days())
        days.add(today - timedelta(days=1))  # tenants store things also while nobody counts
        for day in sorted(days):
            if self._journal.now < day_end(day) + CLOSE_AFTER:
                continue
            if await self._close(day):
                written.append(day)
            if day < today - timedelta(days=KEPT_DAYS):
                await self._journal.forget(day)
        return written

    async def _close(self, day: date) -> bool:
        """Whether it had to be. Sums only grow: where some of what was reported is gone already,
        what had been added up stays."""
        reports, digest = await self._journal.closed(day)
        stored = await self._documents.read(keys.usage_day(day), DayTotals)
        earlier = stored.document if stored else None
        if earlier is not None and (earlier.journal == digest or not reports):
            return False
        levels = earlier.stored if earlier else await self._levels()
        counts = folded(reports)
        totals = dict(earlier.counts) if earlier else {}
        for tenant in sorted({*counts, *levels}):
            rows = counts.get(tenant, {})
            level = levels.get(tenant, (0, 0))
            total = await self._close_tenant(keys.tenant_day(TenantId(tenant), day), rows, level)
            if total:
                totals[tenant] = total.numbers
        document = DayTotals(journal=digest, counts=totals, stored=levels)
        await self._documents.edit(keys.usage_day(day), DayTotals, lambda _: document)
        return True

    async def _close_tenant(self, place: str, rows: Mapping[str, Counts], level: Level) -> Counts:
        """The tenant's total."""

        def write(found: Stored[TenantDay] | None) -> TenantDay | None:
            earlier = found.document.rows if found else {}
            merged = {vplm: Counts(*kept) for vplm, kept in earlier.items()}
            for vplm, counts in rows.items():
                merged[vplm] = counts.most(merged.get(vplm, Counts()))
            document = TenantDay(
                rows={vplm: counts.numbers for vplm, counts in merged.items()},
                stored_bytes=level[0],
                vplm_count=level[1],
            )
            return None if found is not None and found.document == document else document

        stored = await self._documents.edit(place, TenantDay, write)
        return added(Counts(*kept) for kept in stored.document.rows.values())

    async def _levels(self) -> dict[str, Level]:
        """What every tenant stores now; those that store nothing are left out."""
        found: dict[str, Level] = {}
        for tenant in await self._identity.tenant_ids():
            level = await self._stored(tenant)
            if any(level):
                found[tenant] = level
        return found
