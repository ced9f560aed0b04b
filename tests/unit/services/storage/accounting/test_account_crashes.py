"""The process ends, or the store fails, at every single operation: no acknowledged count is lost,
none counts twice, and closed days never shrink."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import cast

import pytest

from smile.accounting import Counts, DayRange
from smile.errors import Unavailable
from smile.store.objects import ObjectStore
from tests.unit.services.storage.accounting.ledgers import ACME, TODAY, Ledgers, row
from tests.unit.services.storage.world import FaultyStore, InjectedCrash

pytestmark = pytest.mark.asyncio
OPERATIONS_MAX = 80
ONE, TWO = "a" * 32, "b" * 32
Act = Callable[[Ledgers], Awaitable[object]]


def ledgers_over(store: FaultyStore, days: float = 0.0) -> Ledgers:
    """A process that has just started, so many days on."""
    made = Ledgers(cast(ObjectStore, store))
    made.later(days=days)
    return made


async def used(ledgers: Ledgers) -> tuple[int, int]:
    """Requests of the day: the tenant's, and everybody's."""
    days = DayRange(TODAY, TODAY)
    (mine,) = (await ledgers.reports.of(ACME, days)).days
    (all_of_day,) = (await ledgers.reports.page(days, 10, "")).days
    return mine.counts.requests, all_of_day.counts.requests


async def at_every_operation(
    prepare: Act, act: Act, check: Callable[[FaultyStore, bool], Awaitable[None]]
) -> None:
    """Break `act`; `check` is told whether it came to its end."""
    faults = 0
    for after_effect in (False, True):
        for fail_at in range(OPERATIONS_MAX):
            for error in (InjectedCrash(), Unavailable("the store is away")):
                store = FaultyStore()
                await prepare(ledgers_over(store))
                store.arm(fail_at, after_effect=after_effect, error=error)
                done = False
                with contextlib.suppress(InjectedCrash, Unavailable):
                    await act(ledgers_over(store))
                    done = True
                store.disarm()
                faults += store.fired
                await check(store, done)
            if not store.fired:
                break
        else:
            pytest.fail(f"more than {OPERATIONS_MAX} operations")
    assert faults >= 4


async def test_reports() -> None:
    async def prepare(ledgers: Ledgers) -> None:
        await ledgers.journal.add(TODAY, ONE, [row(3)])
        await ledgers.journal.add(TODAY, TWO, [row(10)])

    async def act(ledgers: Ledgers) -> None:
        await ledgers.journal.add(TODAY, ONE, [row(5), row(1, "other")])

    async def check(store: FaultyStore, done: bool) -> None:
        seen, _ = await used(ledgers_over(store))
        assert seen == 16 if done else seen in (13, 16)
        restarted = ledgers_over(store)
        await act(restarted)
        assert await used(restarted) == (16, 16)
        assert await restarted.journal.total(TODAY, ACME) == Counts(requests=16)

    await at_every_operation(prepare, act, check)


async def _reported(ledgers: Ledgers) -> None:
    await ledgers.tenant()
    await ledgers.store.put_if_absent("tenants/acme/datasets/d/u/data", b"x" * 100)
    await ledgers.journal.add(TODAY, ONE, [row(3), row(2, "other")])
    await ledgers.journal.add(TODAY, TWO, [row(4), row(1, tenant="globex")])


async def test_closing() -> None:
    async def act(ledgers: Ledgers) -> None:
        ledgers.later(days=1)
        await ledgers.closer.close_due()

    async def check(store: FaultyStore, done: bool) -> None:
        assert await used(ledgers_over(store, 1)) == (9, 10)  # closed or not
        await act(ledgers_over(store))
        restarted = ledgers_over(store, 1)
        assert await used(restarted) == (9, 10)
        await restarted.journal.add(TODAY, TWO, [row(6)])  # late
        await restarted.closer.close_due()
        assert await used(restarted) == (11, 12)

    await at_every_operation(_reported, act, check)


async def test_forgetting_what_was_reported() -> None:
    """Whatever part of the reports is gone, the closed day stays what it was."""

    async def prepare(ledgers: Ledgers) -> None:
        await _reported(ledgers)
        ledgers.later(days=1)
        await ledgers.closer.close_due()

    async def act(ledgers: Ledgers) -> None:
        ledgers.later(days=11)
        await ledgers.closer.close_due()

    async def check(store: FaultyStore, done: bool) -> None:
        assert await used(ledgers_over(store, 11)) == (9, 10)
        await act(ledgers_over(store))
        restarted = ledgers_over(store, 11)
        assert await used(restarted) == (9, 10)
        assert TODAY not in await restarted.journal.days()

    await at_every_operation(prepare, act, check)


async def test_counts_that_came_just_before_a_long_outage_are_closed_at_last() -> None:
    ledgers = Ledgers()
    await _reported(ledgers)
    ledgers.later(days=1)
    await ledgers.closer.close_due()
    await ledgers.journal.add(TODAY, TWO, [row(6)])
    ledgers.now += timedelta(days=30)
    await ledgers.closer.close_due()
    assert await used(ledgers) == (11, 12)
    assert TODAY not in await ledgers.journal.days()
