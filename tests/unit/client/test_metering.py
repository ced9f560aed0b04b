"""The meter: nothing is lost while storage is away, nothing counts twice, limits hold locally."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import pytest

from smile.accounting import DAY_QUOTA_EXCEEDED, Counts, Limit, LimitUse, day_end
from smile.client.metering import Meter, MeterOptions, UsageReport
from smile.errors import QuotaExceeded, Unavailable
from smile.names import TenantId

NOON = datetime(2031, 12, 24, 12, tzinfo=UTC)
ACME, GLOBEX = TenantId("acme"), TenantId("globex")
OPTIONS = MeterOptions((Limit.REQUESTS_PER_DAY, Limit.TEXTS_PER_DAY))


@dataclass
class Ledger:
    """Storage: a grow-only counter for each reporter and day, and limits."""

    rows: dict[tuple[str, date, str, str], Counts] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)  # requests a day
    away: bool = False
    loses_answers: bool = False
    reports: list[UsageReport] = field(default_factory=list)

    async def report(self, report: UsageReport) -> dict[str, tuple[LimitUse, ...]]:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("storage is away")
        self.reports.append(report)
        for row in report.rows:
            key = (report.reporter, report.day, row.tenant, row.vplm)
            self.rows[key] = self.rows.get(key, Counts()).most(row.counts)
        if self.loses_answers:
            raise Unavailable("the answer was lost")
        asked = {*report.tenants, *(row.tenant for row in report.rows)}
        return {
            tenant: (
                LimitUse(
                    Limit.REQUESTS_PER_DAY,
                    self.limits[tenant],
                    self.used(report.day, tenant),
                    day_end(report.day),
                ),
            )
            for tenant in asked & set(self.limits)
        }

    def used(self, day: date, tenant: str) -> int:
        return sum(c.requests for (_, d, t, _), c in self.rows.items() if (d, t) == (day, tenant))


@dataclass
class Clock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now


def count(meter: Meter, tenant: str = ACME, vplm: str = "topics", requests: int = 1) -> None:
    account = meter.account(tenant)
    account.total.requests += requests
    meter.tally(account, vplm).requests += requests


@pytest.mark.asyncio
async def test_only_what_has_grown_is_told_and_all_of_it_since_the_start() -> None:
    ledger = Ledger()
    meter = Meter(ledger, OPTIONS, Clock())
    count(meter, requests=3)
    count(meter, vplm="other")
    await meter.report()
    count(meter, requests=2)
    await meter.report()
    await meter.report()  # nothing new: storage is not asked
    told = [[(row.vplm, row.counts.requests) for row in each.rows] for each in ledger.reports]
    assert told == [[("topics", 3), ("other", 1)], [("topics", 5)]]
    assert ledger.used(NOON.date(), ACME) == 6


@pytest.mark.asyncio
async def test_nothing_is_lost_and_nothing_counts_twice_whatever_storage_does() -> None:
    rng = random.Random(3)
    ledger, clock = Ledger(), Clock()
    meters = [Meter(ledger, OPTIONS, clock) for _ in range(3)]
    wanted: dict[tuple[date, str], int] = {}
    for _ in range(400):
        ledger.away = rng.random() < 0.3
        ledger.loses_answers = rng.random() < 0.3
        meter = rng.choice(meters)
        tenant = rng.choice([ACME, GLOBEX])
        reporting = asyncio.create_task(meter.report())
        await asyncio.sleep(0)
        count(meter, tenant, rng.choice(["a", "b"]))  # while a report is under way
        wanted[meter.day, tenant] = wanted.get((meter.day, tenant), 0) + 1
        await reporting
        if rng.random() < 0.02:
            clock.now += timedelta(days=1)
    ledger.away = ledger.loses_answers = False
    for meter in meters:
        await meter.report()
    assert {key: ledger.used(*key) for key in wanted} == wanted
    assert len({day for day, _ in wanted}) > 3


@pytest.mark.asyncio
async def test_a_limit_is_kept_without_asking_for_every_request() -> None:
    ledger, clock = Ledger(limits={ACME: 10}), Clock()
    meter = Meter(ledger, OPTIONS, clock)
    count(meter)
    await meter.report()
    for _ in range(9):
        meter.check(ACME)
        count(meter)
    with pytest.raises(QuotaExceeded) as refused:
        meter.check(ACME)
    error = refused.value
    assert error.reason == DAY_QUOTA_EXCEEDED
    assert error.metadata["limit_name"] == "requests_per_day"
    assert (error.metadata["limit"], error.metadata["value"]) == ("10", "10")
    assert error.retry_after == 12 * 3600
    assert "10 requests per day and has used 10" in error.message
    meter.check(GLOBEX)
    assert len(ledger.reports) == 1


@pytest.mark.asyncio
async def test_what_asks_for_more_than_is_left_is_refused() -> None:
    ledger, clock = Ledger(limits={ACME: 10}), Clock()
    meter = Meter(ledger, OPTIONS, clock)
    assert not meter.knows(ACME)
    meter.check(ACME, Counts(requests=11))  # nothing is known of it
    await meter.meet(ACME)
    assert meter.knows(ACME) and meter.limited(ACME)
    assert ledger.reports[0].rows == () and ledger.rows == {}
    with pytest.raises(QuotaExceeded) as refused:
        meter.check(ACME, Counts(requests=11))
    assert refused.value.retry_after is None
    assert refused.value.metadata["asked"] == "11"
    count(meter, requests=7)
    meter.check(ACME, Counts(requests=3))
    with pytest.raises(QuotaExceeded) as refused:
        meter.check(ACME, Counts(requests=4))
    assert (refused.value.metadata["value"], refused.value.retry_after) == ("7", 12 * 3600)
    count(meter, requests=3)
    with pytest.raises(QuotaExceeded):
        meter.check(ACME)


@pytest.mark.asyncio
async def test_who_cannot_be_met_is_served_and_asked_about_again() -> None:
    ledger, clock = Ledger(limits={ACME: 1}, away=True), Clock()
    meter = Meter(ledger, OPTIONS, clock)
    await meter.meet(ACME)
    assert not meter.knows(ACME)
    meter.check(ACME, Counts(requests=5))
    ledger.away = False
    await meter.meet(GLOBEX)
    assert meter.knows(GLOBEX) and not meter.limited(GLOBEX)
    alone = Meter(None, OPTIONS, clock)
    await alone.meet(ACME)
    assert alone.knows(ACME)


@pytest.mark.asyncio
async def test_a_tenant_passes_its_limit_by_an_interval_of_others_at_most() -> None:
    ledger, clock = Ledger(limits={ACME: 100}), Clock()
    meters = [Meter(ledger, OPTIONS, clock) for _ in range(4)]
    answered = 0
    for _ in range(20):
        for meter in meters:
            for _ in range(3):  # an interval's worth at each
                try:
                    meter.check(ACME)
                except QuotaExceeded:
                    continue
                count(meter)
                answered += 1
        for meter in meters:
            await meter.report()
    assert 100 <= answered <= 100 + 4 * 3


@pytest.mark.asyncio
async def test_a_raised_limit_is_learnt_of_by_those_that_were_refused() -> None:
    ledger, clock = Ledger(limits={ACME: 1}), Clock()
    meter = Meter(ledger, OPTIONS, clock)
    count(meter)
    await meter.report()
    with pytest.raises(QuotaExceeded):
        meter.check(ACME)
    ledger.limits[ACME] = 5
    await meter.report()
    meter.check(ACME)
    del ledger.limits[ACME]
    await meter.report()
    count(meter, requests=100)
    meter.check(ACME)


@pytest.mark.asyncio
async def test_limits_start_again_with_the_day() -> None:
    ledger, clock = Ledger(limits={ACME: 2}), Clock()
    meter = Meter(ledger, OPTIONS, clock)
    count(meter, requests=2)
    await meter.report()
    ledger.away = True
    clock.now = NOON + timedelta(days=1)
    meter.check(ACME)  # even before the day was turned
    await meter.report()
    count(meter, requests=2)
    with pytest.raises(QuotaExceeded):  # and holds from its beginning
        meter.check(ACME)


@pytest.mark.asyncio
async def test_vplms_are_told_apart_up_to_a_number_and_their_tenants_always() -> None:
    ledger, clock = Ledger(), Clock()
    meter = Meter(ledger, MeterOptions(OPTIONS.limits, vplms_max=1000), clock)
    for tenant in range(100):
        for vplm in range(50):
            count(meter, f"t{tenant}", f"v{vplm}")
    await meter.report()
    assert len(ledger.rows) <= 1000 + 100
    assert all(ledger.used(NOON.date(), f"t{tenant}") == 50 for tenant in range(100))


@pytest.mark.asyncio
async def test_a_storage_that_hangs_does_not_keep_the_process_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass
    class Hanging(Ledger):
        hangs: bool = True

        async def report(self, report: UsageReport) -> dict[str, tuple[LimitUse, ...]]:
            if self.hangs:
                await asyncio.Event().wait()
            return await super().report(report)

    monkeypatch.setattr("smile.client.metering.CLOSE_S_MAX", 0.01)
    ledger = Hanging()
    meter = Meter(ledger, OPTIONS, Clock())
    count(meter)
    await meter.close()
    ledger.hangs = False
    await meter.report()  # what was not told is told later
    assert ledger.used(NOON.date(), ACME) == 1
