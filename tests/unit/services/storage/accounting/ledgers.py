"""Accounts over a memory store, on a day of the test's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from services.storage.accounting.closing import Closer
from services.storage.accounting.journal import Journal
from services.storage.accounting.reports import DayReports
from services.storage.accounting.standing import Standings
from services.storage.identity import Identity, KeySecret, NewTenant
from services.storage.usage import UsageReports
from smile.accounting import DEFAULT_LIMITS, Counts, Limits, UsageRow
from smile.names import TenantId
from smile.store.objects import ObjectStore, open_store
from smile.testing import FakeClock

TODAY = date(2031, 12, 24)
NOON = datetime(2031, 12, 24, 12, tzinfo=UTC)
ACME = TenantId("acme")


@dataclass
class Ledgers:
    """One replica of storage's accounts."""

    store: ObjectStore = field(default_factory=lambda: open_store("memory://"))
    now: datetime = NOON
    clock: FakeClock = field(default_factory=FakeClock)
    defaults: Limits = field(default_factory=lambda: DEFAULT_LIMITS)

    def __post_init__(self) -> None:
        self.identity = Identity(self.store, defaults=self.defaults)
        self.journal = Journal(self.store, now=lambda: self.now, clock=self.clock)
        self.standings = Standings(self.identity, self.journal, self.clock)
        self.reports = DayReports(self.store, self.journal)
        usage = UsageReports(self.store, self.identity)
        self.closer = Closer(self.store, self.journal, self.identity, usage.levels)

    def later(self, **gone: float) -> None:
        """Time passes, on both clocks."""
        step = timedelta(**gone)
        self.now += step
        self.clock.advance(step.total_seconds())

    def replica(self) -> Ledgers:
        """Another one over the same store, at the same time."""
        return Ledgers(self.store, self.now, FakeClock(), self.defaults)

    async def tenant(self, tenant: str = "acme") -> TenantId:
        new = NewTenant(TenantId(tenant), "", 0, f"request-{tenant}")
        await self.identity.create_tenant(new, KeySecret("k1", "0" * 64))
        return TenantId(tenant)


def row(requests: int, vplm: str = "topics", tenant: str = "acme", **more: int) -> UsageRow:
    return UsageRow(tenant, vplm, Counts(requests=requests, **more))
