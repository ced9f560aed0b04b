"""Days: closed once they are over, again where counts came late, and read from either."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from pydantic import ValidationError

from services.storage import keys
from services.storage.accounting.documents import ReporterDay
from services.storage.quota import every_object
from smile.accounting import Counts, DayRange, TenantUsage, UsageDay
from smile.errors import InvalidArgument
from tests.unit.services.storage.accounting.ledgers import ACME, TODAY, Ledgers, row

ONE, TWO = "a" * 32, "b" * 32
DAY = timedelta(days=1)


async def stored(ledgers: Ledgers, prefix: str) -> list[str]:
    return [info.key async for info in every_object(ledgers.store, prefix)]


@pytest.mark.asyncio
async def test_a_day_is_closed_when_it_is_over() -> None:
    ledgers = Ledgers()
    await ledgers.tenant()
    await ledgers.store.put_if_absent("tenants/acme/datasets/d/u/data", b"x" * 100)
    await ledgers.journal.add(TODAY, ONE, [row(3), row(2, "other")])
    await ledgers.journal.add(TODAY, TWO, [row(4), row(1, tenant="globex")])
    await ledgers.closer.close_due()
    assert keys.usage_day(TODAY) not in await stored(ledgers, keys.USAGE_DAYS)
    ledgers.later(hours=12, minutes=9)  # reporters may still send the day's last counts
    await ledgers.closer.close_due()
    assert keys.usage_day(TODAY) not in await stored(ledgers, keys.USAGE_DAYS)
    ledgers.later(minutes=2)
    assert await ledgers.closer.close_due() == [TODAY]
    report = await ledgers.reports.of(ACME, DayRange(TODAY, TODAY))
    assert report.days == (UsageDay(TODAY, Counts(requests=9), 100, 0),)
    assert report.vplms == {"topics": Counts(requests=7), "other": Counts(requests=2)}
    assert await ledgers.replica().closer.close_due() == []


@pytest.mark.asyncio
async def test_counts_that_come_late_are_added_to_the_closed_day() -> None:
    ledgers = Ledgers()
    await ledgers.journal.add(TODAY, ONE, [row(3)])
    ledgers.later(days=1)
    await ledgers.closer.close_due()
    await ledgers.journal.add(TODAY, TWO, [row(4)])  # its storage was away
    assert await ledgers.closer.close_due() == [TODAY]
    (day,) = (await ledgers.reports.of(ACME, DayRange(TODAY, TODAY))).days
    assert day.counts.requests == 7


@pytest.mark.asyncio
async def test_what_was_reported_goes_and_the_days_stay() -> None:
    ledgers = Ledgers()
    for _ in range(30):
        await ledgers.journal.add(ledgers.journal.today, ONE, [row(2)])
        ledgers.later(days=1)
        await ledgers.closer.close_due()
    journals = await stored(ledgers, keys.JOURNAL)
    assert len(journals) <= 10  # those that may still grow
    days = await ledgers.reports.of(ACME, DayRange(TODAY, TODAY + 29 * DAY))
    assert [day.counts.requests for day in days.days] == [2] * 30
    writes = await stored(ledgers, keys.tenant_days(ACME))
    assert len(writes) == 30  # one small document for each tenant and day


@pytest.mark.asyncio
async def test_closing_is_taken_up_where_it_broke_off() -> None:
    """Tenants' documents are written before the one that says the day is closed."""
    ledgers = Ledgers()
    await ledgers.journal.add(TODAY, ONE, [row(3)])
    ledgers.later(days=1)
    await ledgers.closer.close_due()
    await ledgers.store.delete(keys.usage_day(TODAY))  # as it was before that was written
    await ledgers.journal.add(TODAY, ONE, [row(5)])
    assert TODAY in await ledgers.closer.close_due()
    (day,) = (await ledgers.reports.of(ACME, DayRange(TODAY, TODAY))).days
    assert day.counts.requests == 5


@pytest.mark.asyncio
async def test_today_is_read_from_what_was_reported_so_far() -> None:
    ledgers = Ledgers()
    await ledgers.journal.add(TODAY, ONE, [row(3)])
    ledgers.later(days=1)
    await ledgers.closer.close_due()
    await ledgers.journal.add(TODAY + DAY, ONE, [row(4), row(5, tenant="globex")])
    page = await ledgers.reports.page(DayRange(TODAY, TODAY + DAY), 1, "")
    assert page.tenants == (TenantUsage("tenants/acme", Counts(requests=7)),)
    assert [day.counts.requests for day in page.days] == [3, 9]
    more = await ledgers.reports.page(DayRange(TODAY, TODAY + DAY), 1, page.next_page_token)
    assert [usage.name for usage in more.tenants] == ["tenants/globex"]
    assert (more.days, more.next_page_token) == ((), "")


def test_ranges_of_days() -> None:
    assert DayRange.parse("", "", TODAY).days() == [TODAY]
    assert DayRange.parse("2031-12-20", "", TODAY).days()[-1] == TODAY
    assert DayRange.parse("2031-12-20", "2031-12-21", TODAY).days() == [
        TODAY - 4 * DAY,
        TODAY - 3 * DAY,
    ]
    for first, last in (("2031-12-25", ""), ("2030-01-01", ""), ("2031-02-30", "")):
        with pytest.raises(InvalidArgument) as refused:
            DayRange.parse(first, last, TODAY)
        assert refused.value.reason == "DAYS_INVALID"


@pytest.mark.asyncio
async def test_days_from_before_whole_models_were_told_apart_are_read() -> None:
    """Seven numbers a row, where there are eight now; six or nine are no row."""
    ledgers = Ledgers()
    await ledgers.journal.add(TODAY, ONE, [row(3)])
    (place,) = await stored(ledgers, "accounting/journal/")
    found = await ledgers.store.get(place)
    assert found is not None
    earlier = json.loads(found.data)
    numbers = earlier["rows"]["acme"]["topics"]
    assert len(numbers) == 8
    for length, read in ((7, True), (8, True), (6, False), (9, False)):
        earlier["rows"]["acme"]["topics"] = [3, 0, 0, 0, 5, 5, 1, 2, 9][:length]
        if read:
            kept = ReporterDay.model_validate(earlier)
            assert kept.total("acme") == Counts(3, 0, 0, 0, 5, 5, 1, 2 if length == 8 else 0)
        else:
            with pytest.raises(ValidationError):
                ReporterDay.model_validate(earlier)
