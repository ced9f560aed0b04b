"""Limits: the operator's or the default, against what was counted today."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from smile.accounting import DEFAULT_LIMITS, NO_LIMIT, Counts, Limit, LimitUse
from smile.errors import NotFound
from smile.limits import TENANT_BYTES_MAX
from smile.names import TenantId
from tests.unit.services.storage.accounting.ledgers import ACME, TODAY, Ledgers, row

pytestmark = pytest.mark.asyncio
MIDNIGHT = datetime(2031, 12, 25, tzinfo=UTC)


async def test_a_tenant_without_limits_of_its_own_has_the_defaults() -> None:
    ledgers = Ledgers(defaults={**DEFAULT_LIMITS, Limit.TEXTS_PER_DAY: 100})
    await ledgers.tenant()
    await ledgers.journal.add(TODAY, "a" * 32, [row(3, texts=60)])
    found = {use.limit: use for use in (await ledgers.standings.of(ACME)).limits}
    assert found[Limit.STORED_BYTES].allowed == TENANT_BYTES_MAX
    assert found[Limit.TEXTS_PER_DAY] == LimitUse(Limit.TEXTS_PER_DAY, 100, 60, MIDNIGHT)
    assert Limit.TOKENS_PER_DAY not in found  # no limit


async def test_limits_are_set_and_set_back() -> None:
    ledgers = Ledgers()
    await ledgers.tenant()
    await ledgers.standings.set(ACME, {Limit.STORED_BYTES: 5, Limit.REQUESTS_PER_DAY: 7})
    tenant = await ledgers.identity.tenant(ACME)
    assert (tenant.quota_bytes, tenant.limits) == (5, {Limit.REQUESTS_PER_DAY: 7})
    await ledgers.standings.set(ACME, {Limit.JOBS_RUNNING: 0, Limit.REQUESTS_PER_DAY: None})
    tenant = await ledgers.identity.tenant(ACME)
    assert (tenant.quota_bytes, tenant.limits) == (5, {Limit.JOBS_RUNNING: 0})
    await ledgers.standings.set(ACME, {Limit.STORED_BYTES: None})
    assert (await ledgers.identity.tenant(ACME)).quota_bytes == TENANT_BYTES_MAX
    with pytest.raises(NotFound):
        await ledgers.standings.set(TenantId("nobody"), {Limit.VPLMS: 1})


async def test_reporters_learn_of_those_that_have_a_limit_of_the_day() -> None:
    ledgers = Ledgers()
    await ledgers.tenant()
    await ledgers.tenant("globex")
    await ledgers.standings.set(ACME, {Limit.TRAINING_SECONDS_PER_DAY: 60})
    await ledgers.journal.add(TODAY, "a" * 32, [row(0, charged_us=59_000_001), row(1, "globex")])
    standings = await ledgers.standings.of_day(["acme", "globex", "gone"])
    (use,) = standings["acme"]
    assert list(standings) == ["acme"]
    assert (use.used, use.reached, use.share) == (60, True, 1.0)  # seconds begun count


async def test_a_changed_limit_is_gone_by_within_a_minute() -> None:
    here = Ledgers()
    there = here.replica()
    await here.tenant()
    assert await there.standings.of_day(["acme"]) == {}
    await here.standings.set(ACME, {Limit.REQUESTS_PER_DAY: 7})
    there.later(seconds=59)
    assert await there.standings.of_day(["acme"]) == {}
    there.later(seconds=2)
    assert (await there.standings.of_day(["acme"]))["acme"][0].allowed == 7


async def test_warnings_come_before_the_limit() -> None:
    def use(used: int | None, allowed: int = 100) -> LimitUse:
        return LimitUse(Limit.TEXTS_PER_DAY, allowed, used, MIDNIGHT)

    assert (use(None).warning, use(79).warning) == ("", "")
    assert use(80).warning == "80 of 100 texts per day are used until 2031-12-25 00:00 UTC"
    assert not use(99).reached and use(100).reached and use(0, 0).reached
    assert use(5, 0).share == 1.0
    assert Counts().used(Limit.TEXTS_PER_DAY) == 0
    assert NO_LIMIT == 2**60
