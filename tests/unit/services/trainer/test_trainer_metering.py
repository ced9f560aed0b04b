"""What training costs: counted once whoever holds the job, charged by the hour, kept in limits."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from services.trainer.backbones import described
from services.trainer.jobs import Jobs
from services.trainer.metering import Allowances, Tariff, TrainingMeter
from services.trainer.queueing.queue import JobQueue, QueueSettings, QueueState
from services.trainer.queueing.turns import Share
from services.trainer.worker.holding import Holding, LetGo
from services.trainer.worker.report import Report
from services.trainer.worker.runner import Runner
from smile.accounting import Counts, Limit, LimitUse, TenantLimits, day_end
from smile.client.metering import UsageReport
from smile.errors import QuotaExceeded, Unavailable
from smile.model.sources import BackboneSource
from smile.names import JobName, TenantId, tenant_id
from smile.resources import JobState, TrainingJob, TrainingRecord, When
from smile.store.redis import Redis
from smile.testing import FakeClock
from tests.unit.services.trainer.fakes import FakeStorage
from tests.unit.services.trainer.test_runner import (
    DATASET,
    QUICK,
    VPLM,
    Stage,
    storage,  # noqa: F401 -- a fixture
    toy,  # noqa: F401 -- a fixture
)

pytestmark = pytest.mark.asyncio
ACME, GLOBEX = tenant_id("acme"), tenant_id("globex")
SECOND = 1_000_000


@dataclass
class Books:
    """Storage's accounts: what was reported, and limits."""

    counts: Counts = field(default_factory=Counts)
    limits_of: dict[TenantId, dict[Limit, int]] = field(default_factory=dict)
    used_s: int = 0  # of today's training seconds
    away: bool = False
    asked: int = 0

    async def report(self, report: UsageReport) -> dict[str, tuple[LimitUse, ...]]:
        for row in report.rows:
            self.counts = self.counts.most(row.counts)
        tenants = {*report.tenants, *(row.tenant for row in report.rows)}
        return {tenant: (await self.limits(TenantId(tenant))).limits for tenant in tenants}

    async def limits(self, tenant: TenantId) -> TenantLimits:
        self.asked += 1
        if self.away:
            raise Unavailable("storage is away")
        reset = day_end(datetime.now(UTC).date())
        uses = tuple(
            LimitUse(limit, allowed, self.used_s, reset)
            if limit is Limit.TRAINING_SECONDS_PER_DAY
            else LimitUse(limit, allowed)
            for limit, allowed in self.limits_of.get(tenant, {}).items()
        )
        return TenantLimits(f"tenants/{tenant}", uses)


def meter_of(books: Books | None, *, off_peak: bool = True) -> TrainingMeter:
    return TrainingMeter(books, Tariff(2.0, lambda: off_peak))


def total(meter: TrainingMeter, tenant: TenantId = ACME) -> Counts:
    return meter.meter.account(tenant).total.counts()


@pytest.mark.parametrize(
    ("when", "off_peak", "factor"),
    [
        (When.NOW, False, 2),
        (When.NOW, True, 1),
        (When.OFF_PEAK, False, 1),
        (When.OFF_PEAK, True, 1),
    ],
)
async def test_now_costs_more_at_peak_hours(when: When, off_peak: bool, factor: int) -> None:
    meter = meter_of(None, off_peak=off_peak)
    stint = meter.stint(ACME, when)
    began = time.monotonic()
    stint.held(began + 10)
    stint.held(began + 10)
    stint.held(began + 9)  # clocks that are read late count nothing twice
    counts = total(meter)
    assert 10 * SECOND - 1000 <= counts.training_us <= 10 * SECOND + SECOND
    assert abs(counts.charged_us - factor * counts.training_us) <= 1


async def test_a_job_that_ends_is_counted_for_its_vplm(
    redis: Redis,
    storage: FakeStorage,  # noqa: F811
    toy: Path,  # noqa: F811
) -> None:
    books = Books()
    stage = Stage(storage, redis, toy)
    meter = meter_of(books)
    stage.runner = Runner(stage.shop, stage.queue, stage.ending, meter=meter)
    began = time.monotonic()
    assert (await stage.run()).state is JobState.SUCCEEDED
    took_us = (time.monotonic() - began) * SECOND
    tally = meter.meter.account(ACME).vplms[str(VPLM).rpartition("/")[2]]
    assert tally.jobs == 1
    assert 0 < tally.training_us <= took_us
    await meter.meter.report()
    assert books.counts == tally.counts()


async def test_time_that_ends_in_a_lost_lease_is_nobodys(redis: Redis) -> None:
    """A holder that slept past its lease: of the time its heir worked, only the heir's counts."""
    queue = JobQueue(redis, QueueSettings(lease_s=0.2))
    job = TrainingJob(str(JobName(ACME, "j")), "v", "d")
    await queue.enqueue(TrainingRecord(job))
    claim = await queue.claim("sleeper")
    assert claim is not None
    meter = meter_of(None)
    holding = Holding(queue, claim, Report(1), asyncio.Event(), meter.stint(ACME, claim.when))
    await holding.tell()
    before = total(meter)
    async with asyncio.timeout(30):
        while (heir := await queue.claim("heir")) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    holding.report.phase("training")  # something to tell
    assert await holding.keep() is LetGo.LEASE_LOST
    assert total(meter) == before
    await holding.give_back()
    assert await holding.finish(JobState.SUCCEEDED, "") is False
    assert total(meter) == before
    heirs = meter_of(None)
    theirs = Holding(queue, heir, Report(2), asyncio.Event(), heirs.stint(ACME, heir.when))
    assert await theirs.finish(JobState.SUCCEEDED, "") is True
    assert (total(heirs).jobs, total(meter).jobs) == (1, 0)


async def test_a_job_yields_when_its_tenants_day_is_spent_and_goes_on_the_next(
    redis: Redis,
    storage: FakeStorage,  # noqa: F811
    toy: Path,  # noqa: F811
) -> None:
    stage = Stage(storage, redis, toy)
    stage.queue = JobQueue(redis, QueueSettings(lease_s=1.0))
    books = Books(limits_of={ACME: {Limit.TRAINING_SECONDS_PER_DAY: 60}})
    meter = meter_of(books)
    stage.runner = Runner(stage.shop, stage.queue, stage.ending, meter=meter)
    terms = Allowances(books, meter, clock=FakeClock()).share
    name = await stage.submit(hyper_parameters=replace(QUICK, epochs=60))
    claim = await stage.queue.claim("w1", terms)
    assert claim is not None
    working = asyncio.create_task(stage.runner.work(claim))
    async with asyncio.timeout(60):
        while (await stage.queue.look([name]))[0].progress.step < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        books.used_s = 60  # elsewhere
        meter.stint(ACME, When.NOW).held(time.monotonic())
        await meter.meter.report()
        await working
    (sighting,) = await stage.queue.look([name])
    assert sighting.state is QueueState.QUEUED
    assert await stage.queue.claim("w2", terms) is None
    books.used_s = 0
    await meter.meter.report()
    tomorrow = Allowances(books, meter).share
    heir = await stage.queue.claim("w2", tomorrow)
    assert heir is not None and heir.deaths == 0
    await stage.runner.work(heir)
    assert storage.kept[str(name)].job.state is JobState.SUCCEEDED


async def test_others_get_the_turns_of_a_tenant_that_may_not_run_more(redis: Redis) -> None:
    queue = JobQueue(redis, QueueSettings())
    for tenant, job in ((ACME, "a1"), (ACME, "a2"), (GLOBEX, "b1")):
        record = TrainingRecord(TrainingJob(str(JobName(tenant, job)), "v", "d"))
        await queue.enqueue(record)
    books = Books(limits_of={ACME: {Limit.JOBS_RUNNING: 1}})
    terms = Allowances(books).share
    claims = [await queue.claim(f"w{n}", terms) for n in range(3)]
    assert [claim.name.job for claim in claims if claim is not None] == ["a1", "b1"]
    first = claims[0]
    assert first is not None
    await queue.finish(first, JobState.SUCCEEDED)
    again = await queue.claim("w4", terms)
    assert again is not None and again.name.job == "a2"


async def test_what_may_be_queued_is_the_operators_to_say(redis: Redis) -> None:
    queue = JobQueue(redis, QueueSettings())
    terms = Allowances(Books(limits_of={ACME: {Limit.JOBS_QUEUED: 1}})).share
    await queue.reserve(JobName(ACME, "j1"), terms)
    with pytest.raises(QuotaExceeded, match="at most 1 training jobs") as refused:
        await queue.reserve(JobName(ACME, "j2"), terms)
    assert refused.value.reason == "JOBS_QUEUED_MAX"
    assert refused.value.retry_after is not None


async def test_limits_are_asked_for_now_and_then_and_hold_while_storage_is_away() -> None:
    clock = FakeClock()
    books = Books(limits_of={ACME: {Limit.TRAINING_SECONDS_PER_DAY: 60}}, used_s=60)
    allowances = Allowances(books, clock=clock)
    share = Share(running_max=5)
    for _ in range(10):
        assert (await allowances.share(ACME, share)).running_max == 0
    assert books.asked == 1
    with pytest.raises(QuotaExceeded) as refused:
        await allowances.check(ACME, When.NOW)
    assert refused.value.metadata["limit_name"] == "training_seconds_per_day"
    assert refused.value.retry_after is not None and refused.value.retry_after <= 86_400
    await allowances.check(ACME, When.OFF_PEAK)  # it may wait
    books.away = True
    clock.advance(100)
    assert (await allowances.share(ACME, share)).running_max == 0
    assert await allowances.share(GLOBEX, share) == share  # nobody is kept from work by an outage


async def test_a_job_for_now_is_refused_once_the_day_is_spent(
    redis: Redis,
    storage: FakeStorage,  # noqa: F811
    toy: Path,  # noqa: F811
) -> None:
    books = Books(limits_of={ACME: {Limit.TRAINING_SECONDS_PER_DAY: 60}}, used_s=61)
    queue = JobQueue(redis, QueueSettings())
    backbones = described((BackboneSource.parse(f"toy=dir:{toy}"),))
    jobs = Jobs(storage, queue, backbones, allowances=Allowances(books))
    wanted = TrainingJob("", VPLM, DATASET, hyper_parameters=QUICK)
    with pytest.raises(QuotaExceeded) as refused:
        await jobs.submit(ACME, wanted, str(uuid4()))
    assert refused.value.reason == "DAY_QUOTA_EXCEEDED"
    job = await jobs.submit(ACME, replace(wanted, when=When.OFF_PEAK), str(uuid4()))
    assert job.state is JobState.QUEUED
