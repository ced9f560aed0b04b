"""What training costs tenants, and what they may still have. See `smile.client.metering`.

A worker counts the time that it holds a job, from one renewal of the lease to the next: time that
ends in a lost lease is not counted, so of each moment of a job one holder at most counts it. What a
worker that dies had not counted and reported is nobody's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from services.trainer.queueing.turns import Share
from smile.accounting import MICROSECONDS, NO_LIMIT, Limit, LimitUse, TenantLimits, day_exceeded
from smile.client.metering import NOT_TOLD_APART, Bookkeeper, Meter, MeterOptions
from smile.errors import NotFound, QuotaExceeded, SmileError
from smile.logs import get_logger
from smile.names import TenantId
from smile.resources import Method, When

LIMITS = (Limit.TRAINING_SECONDS_PER_DAY,)
PEAK_FACTOR_DEFAULT = 2.0
FULL_FACTOR_DEFAULT = 10.0
AGE_S_MAX = 15.0
TENANTS_REMEMBERED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a second costs: 1; of a `now` job outside the off-peak windows `peak_factor` times as
    much, of a whole model `full_factor` times as much, of both their product.

    Attributes:
        off_peak: Whether a window is open.
    """

    peak_factor: float
    off_peak: Callable[[], bool]
    full_factor: float = FULL_FACTOR_DEFAULT

    def of(self, when: When, method: Method = Method.PET) -> float:
        """Seconds charged for each one now."""
        factor = self.full_factor if method is Method.FULL else 1.0
        return factor * self.peak_factor if when is When.NOW and not self.off_peak() else factor


class TrainingMeter:
    """Counts the time of a worker's jobs. For use on the event loop only."""

    def __init__(self, books: Bookkeeper | None, tariff: Tariff, every_s: float = 10.0) -> None:
        self.meter = Meter(books, MeterOptions(LIMITS, every_s))
        self.tariff = tariff

    def stint(self, tenant: TenantId, when: When) -> Stint:
        """The time of one holder with one job, which begins now."""
        return Stint(self, tenant, when)

    def spent(self, tenant: TenantId) -> bool:
        """Whether a tenant has used up its day, as far as this worker knows."""
        try:
            self.meter.check(tenant)
        except QuotaExceeded:
            return True
        return False


class Stint:
    """What one holder's time with one job costs.

    Attributes:
        vplm: Id of the vPLM that is trained, once it is known.
        method: What of it is.
    """

    def __init__(self, meter: TrainingMeter, tenant: TenantId, when: When) -> None:
        self._meter = meter
        self._tenant = tenant
        self._when = when
        self._since = time.monotonic()
        self.vplm = NOT_TOLD_APART
        self.method = Method.PET

    @property
    def spent(self) -> bool:
        """Whether the tenant has used up its day."""
        return self._meter.spent(self._tenant)

    def held(self, until: float) -> None:
        """The job was held up to a moment of the monotonic clock."""
        elapsed_us = MICROSECONDS * max(until - self._since, 0.0)
        self._since = max(until, self._since)
        charged_us = elapsed_us * self._meter.tariff.of(self._when, self.method)
        meter = self._meter.meter
        account = meter.account(self._tenant)
        for tally in (account.total, meter.tally(account, self.vplm)):
            tally.training_us += elapsed_us
            tally.charged_us += charged_us
            if self.method is Method.FULL:
                tally.full_us += elapsed_us

    def waited(self, until: float) -> None:
        """The job waited in its holder's hands, which costs nothing."""
        self._since = max(until, self._since)

    def ended(self) -> None:
        """The job ended in this holder's hands."""
        self.held(time.monotonic())
        meter = self._meter.meter
        account = meter.account(self._tenant)
        account.total.jobs += 1
        meter.tally(account, self.vplm).jobs += 1


class LimitSource(Protocol):
    """Who knows limits: storage."""

    async def limits(self, tenant: TenantId) -> TenantLimits:
        """Raises `SmileError`."""
        ...


class Allowances:
    """What tenants may have of the trainer, as storage said a few seconds ago.

    While storage is away, what it said last holds, and the trainer's own settings of others.

    Args:
        source: Who knows; None: only the trainer's own settings count.
        meter: Of this worker, which may know earlier whose day is used up.
    """

    def __init__(
        self,
        source: LimitSource | None = None,
        meter: TrainingMeter | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._source = source
        self._meter = meter
        self._clock = clock
        self._now = now
        self._known: dict[TenantId, tuple[float, dict[Limit, LimitUse]]] = {}

    async def share(self, tenant: TenantId, share: Share) -> Share:
        """A tenant's share as the operator has set it; nothing runs of one whose day is used up."""
        uses = await self._uses(tenant)
        running, queued = uses.get(Limit.JOBS_RUNNING), uses.get(Limit.JOBS_QUEUED)
        if running is not None and running.allowed < NO_LIMIT:
            share = replace(share, running_max=running.allowed)
        if queued is not None and queued.allowed < NO_LIMIT:
            share = replace(share, queued_max=queued.allowed)
        spent = self._spent(uses) is not None or (
            self._meter is not None and self._meter.spent(tenant)
        )
        return replace(share, running_max=0) if spent else share

    async def check(self, tenant: TenantId, when: When) -> None:
        """Raises `QuotaExceeded` where a job that runs now would have to wait for the next day.

        One that waits for a window may wait for that, too.
        """
        if when is not When.NOW:
            return
        spent = self._spent(await self._uses(tenant))
        if spent is not None:
            raise day_exceeded(tenant, spent, self._now())

    def _spent(self, uses: dict[Limit, LimitUse]) -> LimitUse | None:
        use = uses.get(Limit.TRAINING_SECONDS_PER_DAY)
        if use is None or not use.reached:
            return None
        over = use.reset_time is not None and self._now() >= use.reset_time
        return None if over else use

    async def _uses(self, tenant: TenantId) -> dict[Limit, LimitUse]:
        if self._source is None:
            return {}
        known = self._known.get(tenant)
        if known is not None and self._clock() - known[0] <= AGE_S_MAX:
            return known[1]
        uses = known[1] if known is not None else {}
        try:
            limits = await self._source.limits(tenant)
            uses = {use.limit: use for use in limits.limits}
        except NotFound:
            uses = {}
        except SmileError as error:
            get_logger().warning("limits are not known now", tenant=tenant, why=error.message)
        if len(self._known) >= TENANTS_REMEMBERED_MAX:
            self._known.clear()
        self._known[tenant] = self._clock(), uses
        return uses
