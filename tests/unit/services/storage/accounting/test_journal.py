"""Reports: nothing counts twice, nothing acknowledged is lost, writes are few."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import cast

import pytest

from services.storage import keys
from services.storage.accounting.documents import ReporterDay
from services.storage.quota import every_object
from smile.accounting import Counts
from smile.errors import InvalidArgument
from smile.store.objects import Object, ObjectStore
from tests.unit.services.storage.accounting.ledgers import ACME, TODAY, Ledgers, row

pytestmark = pytest.mark.asyncio


async def test_a_report_that_is_repeated_or_overtaken_changes_nothing() -> None:
    ledgers = Ledgers()
    first, second = [row(3, texts=5)], [row(7, texts=9), row(1, "other")]
    for report in (first, second, first, second, first):
        await ledgers.journal.add(TODAY, "a" * 32, report)
    assert await ledgers.journal.total(TODAY, ACME) == Counts(requests=8, texts=9)


async def test_reporters_add_up_whichever_replica_they_tell() -> None:
    here = Ledgers()
    there = here.replica()
    await here.journal.add(TODAY, "a" * 32, [row(3)])
    await there.journal.add(TODAY, "b" * 32, [row(4)])
    await there.journal.add(TODAY, "a" * 32, [row(5)])  # the same reporter, another replica
    here.later(seconds=10)
    assert (await here.journal.total(TODAY, ACME)).requests == 9
    await here.journal.add(TODAY, "a" * 32, [row(4, tokens=2)])  # what it remembered is not so now
    assert await here.journal.total(TODAY, ACME) == Counts(requests=9, tokens=2)


async def test_reports_at_the_same_time_lose_nothing() -> None:
    here = Ledgers()
    replicas = [here, here.replica(), here.replica()]
    reports = [(replica, n) for replica in replicas for n in range(1, 9)]
    random.Random(7).shuffle(reports)
    await asyncio.gather(
        *(
            replica.journal.add(TODAY, "a" * 32, [row(n, "one"), row(2 * n, "two")])
            for replica, n in reports
        )
    )
    assert (await here.replica().journal.total(TODAY, ACME)).requests == 24


async def test_a_report_is_one_write_however_many_tenants_are_in_it() -> None:
    store = CountingStore(Ledgers().store)
    ledgers = Ledgers(cast(ObjectStore, store))
    rows = [row(1, f"v{v}", f"t{t}") for t in range(100) for v in range(20)]
    await ledgers.journal.add(TODAY, "a" * 32, rows)
    store.reads = 0
    for n in range(2, 7):
        changed = [row(n, "v3", f"t{t}") for t in range(100)]
        await ledgers.journal.add(TODAY, "a" * 32, changed)
    assert (store.writes, store.reads) == (6, 0)
    assert (await ledgers.journal.total(TODAY, "t7")).requests == 25


async def test_days_too_long_past_or_not_begun_are_refused() -> None:
    ledgers = Ledgers()
    for day in (TODAY - timedelta(days=8), TODAY + timedelta(days=2)):
        with pytest.raises(InvalidArgument, match="last 7 days") as refused:
            await ledgers.journal.add(day, "a" * 32, [row(1)])
        assert refused.value.reason == "DAYS_INVALID"
    await ledgers.journal.add(TODAY - timedelta(days=7), "a" * 32, [row(1)])


async def test_one_corrupted_report_does_not_hide_the_others() -> None:
    ledgers = Ledgers()
    await ledgers.journal.add(TODAY, "a" * 32, [row(3)])
    await ledgers.store.put_if_absent(keys.reporter(TODAY, "b" * 32), b"{")
    assert (await ledgers.replica().journal.total(TODAY, ACME)).requests == 3


async def test_a_document_is_small() -> None:
    """10,000 vPLMs of 1,000 tenants, by far more than most processors see in a day."""
    ledgers = Ledgers()
    numbers = {"texts": 12_345, "tokens": 1_234_567, "compute_us": 98_765_432}
    rows = [row(12_345, f"vplm-{v}", f"tenant-{v % 1000}", **numbers) for v in range(10_000)]
    await ledgers.journal.add(TODAY, "a" * 32, rows)
    sizes = [info.size async for info in every_object(ledgers.store, keys.JOURNAL)]
    assert len(sizes) == 1 and sizes[0] < 700_000
    found = await ledgers.store.get(keys.reporter(TODAY, "a" * 32))
    assert found is not None
    assert len(ReporterDay.model_validate_json(found.data).rows) == 1000


class CountingStore:
    """A store that counts what accounts do with it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.reads = self.writes = 0

    async def get(self, key: str) -> Object | None:
        self.reads += 1
        return await self._store.get(key)

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        self.writes += 1
        return await self._store.compare_and_swap(key, data, etag)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)
