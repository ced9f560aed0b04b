"""Counting what tenants use, in the service that does the work, and reporting it to storage.

Counting is adding to a few numbers in memory, on the event loop and nowhere else; reports go beside
it, now and then. A report holds what was counted of a day since this process started, so it may be
sent again or come late without counting twice; a process that dies takes what it had not reported
with it: an interval's worth at most. While storage is away counting goes on, for days.

Storage answers how much of its day each tenant has left that has a limit. From then on `check` is
local: a tenant can pass its limit by what is under way, and by what it does elsewhere within an
interval. No request passes it by its own size: it is refused if less is left than it asks for, and
who serves large ones asks storage first how a tenant stands that it knows nothing of (`meet`).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Protocol

from smile.accounting import (
    LATE_DAYS_MAX,
    Counts,
    Limit,
    LimitUse,
    UsageRow,
    day_end,
    day_exceeded,
)
from smile.errors import SmileError
from smile.logs import get_logger
from smile.names import TenantId

NOT_TOLD_APART = ""
EVERY_S_DEFAULT = 10.0
CLOSE_S_MAX = 3.0
MEET_S_MAX = 2.0
NOTHING = Counts()
ROWS_AT_ONCE = 200  # of a report are put together before others get their turn


@dataclass(frozen=True, slots=True)
class MeterOptions:
    """How to count.

    Attributes:
        limits: Those that `check` goes by.
        every_s: Between reports.
        vplms_max: vPLMs a day that are told apart; of more only the tenant's counts are kept.
    """

    limits: tuple[Limit, ...]
    every_s: float = EVERY_S_DEFAULT
    vplms_max: int = 10_000


@dataclass(frozen=True, slots=True)
class UsageReport:
    """What a reporter has counted of one day: rows that have grown since it was told last."""

    reporter: str
    day: date
    rows: Sequence[UsageRow]
    tenants: Sequence[str]  # whose standing is asked for besides


class Bookkeeper(Protocol):
    """Who takes reports: storage."""

    async def report(self, report: UsageReport) -> Mapping[str, tuple[LimitUse, ...]]:
        """How much of their day tenants have used that have a limit. Raises `SmileError`."""
        ...


@dataclass(slots=True, eq=False)
class Tally:
    """Numbers that only grow; as `Counts`, microseconds with fractions."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    compute_us: float = 0.0
    training_us: float = 0.0
    charged_us: float = 0.0
    jobs: int = 0
    full_us: float = 0.0
    told: bool = True  # by a report, as it is now

    def counts(self) -> Counts:
        return Counts(
            self.requests,
            self.texts,
            self.tokens,
            int(self.compute_us),
            int(self.training_us),
            int(self.charged_us),
            self.jobs,
            int(self.full_us),
        )


@dataclass(slots=True, eq=False)
class _Allowance:
    """A limit as storage told it last, and at how much counted here it is reached."""

    use: LimitUse
    stop: int


@dataclass(slots=True, eq=False)
class Account:
    """What one tenant used today, in all and by vPLM id."""

    tenant: str
    total: Tally = field(default_factory=Tally)
    vplms: dict[str, Tally] = field(default_factory=dict)
    allowances: tuple[_Allowance, ...] = ()
    met: bool = False  # storage has said how it stands, if it has a limit


@dataclass(slots=True, eq=False)
class _Day:
    day: date
    accounts: dict[str, Account] = field(default_factory=dict)
    untold: list[tuple[Account, str]] = field(default_factory=list)
    vplms: int = 0


class Meter:
    """Counts for one process. For use on the event loop only.

    Args:
        books: Who takes reports; None keeps counts to oneself.
        now: The time in UTC.
    """

    def __init__(
        self,
        books: Bookkeeper | None,
        options: MeterOptions,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._books = books
        self._options = options
        self._now = now
        self._reporter = uuid.uuid4().hex
        self._today = _Day(now().date())
        self._past: list[_Day] = []
        self._reporting = asyncio.Lock()
        self._away = False

    @property
    def day(self) -> date:
        """The day that is counted now: the old one until a report has turned it."""
        return self._today.day

    def account(self, tenant: str) -> Account:
        """What a tenant used today."""
        found = self._today.accounts.get(tenant)
        if found is None:
            found = self._today.accounts[tenant] = Account(tenant)
        return found

    def tally(self, account: Account, vplm: str) -> Tally:
        """Of one vPLM of a tenant, to be added to now."""
        found = account.vplms.get(vplm)
        if found is None:
            if self._today.vplms >= self._options.vplms_max:
                vplm = NOT_TOLD_APART
                found = account.vplms.get(vplm)
            if found is None:
                self._today.vplms += 1
                found = account.vplms[vplm] = Tally()
        if found.told:
            found.told = False
            self._today.untold.append((account, vplm))
        return found

    def check(self, tenant: TenantId, more: Counts = NOTHING) -> None:
        """Raises `QuotaExceeded` where a tenant has used up a limit of its day, or has less left
        than it asks for.
        """
        account = self._today.accounts.get(tenant)
        if account is not None and account.allowances:
            self._check(account, more)

    def limited(self, tenant: TenantId) -> bool:
        """Whether `check` may refuse it anything."""
        account = self._today.accounts.get(tenant)
        return account is not None and bool(account.allowances)

    def knows(self, tenant: TenantId) -> bool:
        """Whether `check` goes by what storage says of a tenant, and not by nothing."""
        account = self._today.accounts.get(tenant)
        return self._books is None or (account is not None and account.met)

    async def meet(self, tenant: TenantId) -> None:
        """Ask storage how a tenant stands. Where it does not say, all goes on as if not asked."""
        if self._books is None:
            return
        account, day = self.account(tenant), self._today.day
        counted = account.total.counts()
        try:
            async with asyncio.timeout(MEET_S_MAX):
                standings = await self._books.report(
                    UsageReport(self._reporter, day, (), (tenant,))
                )
        except (SmileError, TimeoutError) as error:
            get_logger().warning("cannot ask how a tenant stands", why=str(error))
        else:
            _stand(account, standings.get(tenant, ()), self._options, counted)

    def _check(self, account: Account, more: Counts) -> None:
        for allowance in account.allowances:
            counted = account.total.counts().used(allowance.use.limit)
            asked = more.used(allowance.use.limit)
            if counted + max(asked, 1) > allowance.stop:
                now = self._now()
                use = allowance.use
                if use.reset_time is not None and now >= use.reset_time:
                    return  # a new day, not counted apart yet
                used = use.allowed + counted - allowance.stop
                told = LimitUse(use.limit, use.allowed, used, use.reset_time)
                raise day_exceeded(account.tenant, told, now, asked)

    async def run(self) -> None:
        """Reports now and then and at the end of each day, for ever."""
        while True:
            now = self._now()
            left_s = (day_end(now.date()) - now).total_seconds()
            await asyncio.sleep(min(self._options.every_s, max(left_s, 0.0) + 0.001))
            try:
                await self.report()
            except Exception:  # a fault of ours must not end the counting
                get_logger().exception("reporting usage failed")

    async def close(self) -> None:
        """Report what is left, if storage is there to take it."""
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await self.report()
        except TimeoutError:
            get_logger().warning("counts of the last interval may be lost")

    async def report(self) -> None:
        """Tell storage what it has not been told, and learn how tenants stand."""
        if self._books is None:
            return
        async with self._reporting:
            self._turn_day()
            try:
                for past in list(self._past):
                    await self._tell(past, self._books)
                    self._past.remove(past)
                await self._tell(self._today, self._books)
            except SmileError as error:
                if not self._away:
                    get_logger().warning("cannot report usage now", why=error.message)
                self._away = True
            else:
                self._away = False

    def _turn_day(self) -> None:
        """Begin a new day where the old one is over; limits start again."""
        day, before = self._now().date(), self._today
        if day <= before.day:
            return
        self._today = _Day(day)
        reset = day_end(day)
        for tenant, account in before.accounts.items():
            if account.allowances:
                begun = self.account(tenant)
                begun.met = True
                begun.allowances = tuple(
                    _Allowance(LimitUse(a.use.limit, a.use.allowed, 0, reset), a.use.allowed)
                    for a in account.allowances
                )
        if before.untold:
            self._past.append(before)
        for lost in [old for old in self._past if (day - old.day).days > LATE_DAYS_MAX]:
            get_logger().error("usage was never taken and is lost", day=str(lost.day))
            self._past.remove(lost)

    async def _tell(self, day: _Day, books: Bookkeeper) -> None:
        asked = [each.tenant for each in day.accounts.values() if each.allowances]
        if not day.untold and not asked:
            return
        taken, day.untold = day.untold, []
        rows: list[UsageRow] = []
        counted: dict[str, Counts] = {}
        for at, (account, vplm) in enumerate(taken):
            if at and at % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)  # others' turn
            tally = account.vplms[vplm]
            tally.told = True
            rows.append(UsageRow(account.tenant, vplm, tally.counts()))
            counted.setdefault(account.tenant, account.total.counts())
        for tenant in asked:
            counted.setdefault(tenant, day.accounts[tenant].total.counts())
        try:
            standings = await books.report(UsageReport(self._reporter, day.day, rows, asked))
        except BaseException:
            self._take_back(day, taken)
            raise
        for tenant, here in counted.items():
            _stand(day.accounts[tenant], standings.get(tenant, ()), self._options, here)

    @staticmethod
    def _take_back(day: _Day, taken: Sequence[tuple[Account, str]]) -> None:
        """Rows that were not told, so that the next report has them."""
        for account, vplm in taken:
            tally = account.vplms[vplm]
            if tally.told:
                tally.told = False
                day.untold.append((account, vplm))


def _stand(
    account: Account, uses: Sequence[LimitUse], options: MeterOptions, counted: Counts
) -> None:
    """Go by what storage said when so much was counted here.

    A row's first report may hold what was counted after `counted` was read: then the tenant is
    stopped that much earlier or later, until the next one.
    """
    account.met = True
    account.allowances = tuple(
        _Allowance(use, counted.used(use.limit) + max(use.allowed - (use.used or 0), 0))
        for use in uses
        if use.limit in options.limits
    )
