"""What tenants use and may use: limits, counts, days. Values only."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TypeAlias

from smile.errors import InvalidArgument, QuotaExceeded
from smile.limits import TENANT_BYTES_MAX, TENANT_VPLMS_MAX

NO_LIMIT = 1 << 60
DAYS_MAX = 366
LATE_DAYS_MAX = 7  # so long after a day its counts are taken
SHARE_WARNED = 0.8
DAY_QUOTA_EXCEEDED = "DAY_QUOTA_EXCEEDED"
MICROSECONDS = 1_000_000


class Limit(enum.StrEnum):
    """What is limited, of each tenant. Days are of UTC."""

    STORED_BYTES = "stored_bytes"
    VPLMS = "vplms"
    JOBS_QUEUED = "jobs_queued"
    JOBS_RUNNING = "jobs_running"
    REQUESTS_PER_DAY = "requests_per_day"
    TEXTS_PER_DAY = "texts_per_day"
    TOKENS_PER_DAY = "tokens_per_day"
    TRAINING_SECONDS_PER_DAY = "training_seconds_per_day"


PER_DAY = (
    Limit.REQUESTS_PER_DAY,
    Limit.TEXTS_PER_DAY,
    Limit.TOKENS_PER_DAY,
    Limit.TRAINING_SECONDS_PER_DAY,
)
Numbers: TypeAlias = tuple[int, ...]
Limits: TypeAlias = Mapping[Limit, int]  # one that is not in it is somebody else's to set
DEFAULT_LIMITS: Limits = {
    Limit.STORED_BYTES: TENANT_BYTES_MAX,
    Limit.VPLMS: TENANT_VPLMS_MAX,
    **dict.fromkeys(PER_DAY, NO_LIMIT),
}


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted; every number only grows in one reporter's life.

    Attributes:
        requests, texts, tokens: Answered.
        compute_us: Microseconds of compute: of each batch, the share of the texts in it.
        training_us: Microseconds that workers held jobs.
        charged_us: The same as charged: `now` jobs outside off-peak windows count several times,
            and those that train whole models.
        jobs: Ended.
        full_us: Of `training_us`, those of jobs that train whole models.
    """

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    compute_us: int = 0
    training_us: int = 0
    charged_us: int = 0
    jobs: int = 0
    full_us: int = 0

    @property
    def numbers(self) -> Numbers:
        """In the order of the fields; from before there were all of them, the first ones are
        `Counts`, too.
        """
        return (
            self.requests,
            self.texts,
            self.tokens,
            self.compute_us,
            self.training_us,
            self.charged_us,
            self.jobs,
            self.full_us,
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(int.__add__, self.numbers, other.numbers))

    def most(self, other: Counts) -> Counts:
        """Of each number the larger: what a grow-only counter is after both were seen."""
        return Counts(*map(max, self.numbers, other.numbers))

    def used(self, limit: Limit) -> int:
        """How much of a limit of a day this is; training seconds are rounded up."""
        match limit:
            case Limit.REQUESTS_PER_DAY:
                return self.requests
            case Limit.TEXTS_PER_DAY:
                return self.texts
            case Limit.TOKENS_PER_DAY:
                return self.tokens
            case Limit.TRAINING_SECONDS_PER_DAY:
                return -(-self.charged_us // MICROSECONDS)
        raise AssertionError(f"{limit} is not counted by day")

    def __bool__(self) -> bool:
        return any(self.numbers)


@dataclass(frozen=True, slots=True)
class LimitUse:
    """A limit and how much of it is used: None where that was not counted for this answer."""

    limit: Limit
    allowed: int
    used: int | None = None
    reset_time: datetime | None = None

    @property
    def share(self) -> float | None:
        """Of 1; more where a limit was lowered. None where it was not counted."""
        if self.used is None:
            return None
        return self.used / self.allowed if self.allowed else float(self.used > 0)

    @property
    def reached(self) -> bool:
        """Whether nothing is left of it."""
        return self.used is not None and self.used >= self.allowed

    @property
    def warning(self) -> str:
        """A sentence once most of it is used; '' before."""
        if self.share is None or (self.share < SHARE_WARNED and not self.reached):
            return ""
        until = f" until {self.reset_time:%Y-%m-%d %H:%M} UTC" if self.reset_time else ""
        return f"{self.used} of {self.allowed} {self.limit.replace('_', ' ')} are used{until}"


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may have. Limits it does not have are not among them."""

    name: str
    limits: tuple[LimitUse, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageDay:
    """What was counted on one day, and stored when it was closed; 0 before that."""

    day: date
    counts: Counts
    stored_bytes: int = 0
    vplm_count: int = 0


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What one tenant used on a range of days, and stored when the last of them was closed."""

    name: str
    counts: Counts
    stored_bytes: int = 0
    vplm_count: int = 0


@dataclass(frozen=True, slots=True)
class PlatformUsage:
    """What every tenant used on a range of days, by id, and all together by day, oldest first."""

    tenants: tuple[TenantUsage, ...]
    days: tuple[UsageDay, ...]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one reporter has counted of one vPLM; '' : those it does not tell apart."""

    tenant: str
    vplm: str
    counts: Counts


@dataclass(frozen=True, slots=True)
class DayRange:
    """Days from first to last, both included."""

    first: date
    last: date

    def __post_init__(self) -> None:
        count = (self.last - self.first).days + 1
        if not 1 <= count <= DAYS_MAX:
            raise InvalidArgument(
                f"a range of days has 1 to {DAYS_MAX}, {self.first} to {self.last} has {count}",
                reason="DAYS_INVALID",
                metadata={"limit": str(DAYS_MAX), "value": str(count)},
            )

    @classmethod
    def parse(cls, first: str, last: str, today: date) -> DayRange:
        """Days like `2031-12-24`; '' is today, and a first day alone goes up to today."""
        return cls(
            parse_day(first) if first else parse_day(last) if last else today,
            parse_day(last) if last else today,
        )

    def days(self) -> list[date]:
        """Each, oldest first."""
        count = (self.last - self.first).days + 1
        return [self.first + timedelta(days=more) for more in range(count)]


def parse_day(text: str) -> date:
    """A day like `2031-12-24`. Raises `InvalidArgument`."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise InvalidArgument(
            f"a day is like 2031-12-24, got '{text[:20]}'", reason="DAYS_INVALID"
        ) from error


def day_end(day: date) -> datetime:
    """The first moment after a day of UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)


def day_exceeded(tenant: str, use: LimitUse, now: datetime, asked: int = 0) -> QuotaExceeded:
    """The error of whoever has used up a limit of the day, or asks for more than is left of it,
    with the time to its end; without that where no day has so much.
    """
    reset = use.reset_time or day_end(now.date())
    wanted = f" and asks for {asked}" if asked else ""
    return QuotaExceeded(
        f"tenants/{tenant} may use {use.allowed} {use.limit.replace('_', ' ')} and has used "
        f"{use.used}{wanted}; the count starts again at {reset:%Y-%m-%d %H:%M} UTC",
        reason=DAY_QUOTA_EXCEEDED,
        metadata={
            "limit_name": use.limit,
            "limit": str(use.allowed),
            "value": str(use.used),
            "asked": str(asked),
            "reset_time": reset.isoformat(),
        },
        retry_after=max((reset - now).total_seconds(), 1.0) if asked <= use.allowed else None,
    )
