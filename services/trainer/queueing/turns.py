"""Whose turn it is: pure rules over what the queue holds.

Start-time fair queueing (Goyal, Vin and Cheng 1996), in turns: a tenant's turn costs it a stride
that is the smaller the greater its weight; the tenant that has paid least is served next. Whoever
comes, or comes back to being served, starts from where the others are: nobody saves up turns while
it has no job, its cap is reached, or the window is closed. Inside a tenant, priority decides, then
arrival.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from smile.errors import InvalidName
from smile.names import TenantId, tenant_id

STRIDE = 720_720  # of weight 1; all weights up to 16 divide it
WEIGHT_MAX = 1000
_SHARE = re.compile(r"(weight|running|queued):(\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Share:
    """What one tenant may have.

    Attributes:
        weight: Turns it gets for each turn of a tenant of weight 1.
        running_max: Its jobs that workers hold at a time.
        queued_max: Its jobs that wait.
    """

    weight: int = 1
    running_max: int = 1000
    queued_max: int = 100

    @property
    def stride(self) -> int:
        return STRIDE // self.weight


@dataclass(frozen=True, slots=True)
class Shares:
    """The share of every tenant: its own or the one of all others."""

    of_all: Share = field(default_factory=Share)
    own: Mapping[TenantId, Share] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, of_all: Share) -> Shares:
        """`acme=weight:3;running:2,bulk=queued:1000`. Raises ValueError naming what is wrong."""
        own: dict[TenantId, Share] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, terms = part.partition("=")
            try:
                own[tenant_id(name)] = _share(terms, of_all)
            except InvalidName as error:
                raise ValueError(error.message) from error
        return cls(of_all, own)

    def of(self, tenant: TenantId) -> Share:
        return self.own.get(tenant, self.of_all)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A tenant with jobs that wait.

    Attributes:
        paid: What its turns have cost it.
        joined: When it began to wait: a number that grows.
        running: Its jobs that workers hold.
        now: The first of its jobs that may run at any time, and how many there are.
        off_peak: The first of those that wait for a window, and how many there are.
        off_peak_first: Whether the latter goes before the former.
    """

    tenant: TenantId
    paid: int
    joined: int
    running: int = 0
    now: tuple[str, int] = ("", 0)
    off_peak: tuple[str, int] = ("", 0)
    off_peak_first: bool = False

    def jobs(self, open_: bool) -> int:
        return self.now[1] + (self.off_peak[1] if open_ else 0)

    def head(self, open_: bool) -> str:
        """Its next job; '' where none may run."""
        off_peak = self.off_peak[0] if open_ else ""
        first, second = (off_peak, self.now[0]) if self.off_peak_first else (self.now[0], off_peak)
        return first or second


@dataclass(frozen=True, slots=True)
class Table:
    """All tenants that wait, and how far the one served last had paid."""

    waiting: Sequence[Waiting]
    level: int

    def next(
        self, shares: Shares, *, open_: bool, barred: Collection[TenantId] = ()
    ) -> Waiting | None:
        """Whose turn it is among those that may run a job now."""
        eligible = [
            each
            for each in self.waiting
            if each.head(open_)
            and each.running < shares.of(each.tenant).running_max
            and each.tenant not in barred
        ]
        return min(eligible, key=self._tag, default=None)

    def jobs_ahead(self, tenant: TenantId, rank: int, shares: Shares, *, open_: bool) -> int:
        """Jobs served before the one that has `rank` others of its tenant before it, caps aside."""
        mine = next((each for each in self.waiting if each.tenant == tenant), None)
        if mine is None:
            return rank
        paid, joined = self._tag(mine)
        mark = paid + rank * shares.of(tenant).stride, joined
        others = (each for each in self.waiting if each.tenant != tenant)
        return rank + sum(self._before(each, mark, shares, open_) for each in others)

    def _before(self, other: Waiting, mark: tuple[int, int], shares: Shares, open_: bool) -> int:
        """Turns of another tenant that come before a mark."""
        paid, joined = self._tag(other)
        distance = mark[0] - paid
        if distance < 0:
            return 0
        turns, rest = divmod(distance, shares.of(other.tenant).stride)
        turns += rest > 0 or joined < mark[1]
        return min(turns, other.jobs(open_))

    def _tag(self, waiting: Waiting) -> tuple[int, int]:
        return max(waiting.paid, self.level), waiting.joined


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast jobs are done: seconds of a job (0: none was yet), workers, and those at work."""

    job_s: float = 0.0
    workers: int = 0
    busy: int = 0

    def wait_s(self, jobs_ahead: int) -> float | None:
        """Seconds until a job with so many ahead is begun; None where nobody can say."""
        if self.workers == 0 or self.job_s == 0.0:
            return None
        rounds = max(jobs_ahead + 1 + self.busy - self.workers, 0)
        return rounds * self.job_s / self.workers


def _share(terms: str, of_all: Share) -> Share:
    share = of_all
    for term in terms.split(";"):
        matched = _SHARE.fullmatch(term.strip())
        if matched is None:
            raise ValueError(f"a share is like 'weight:3;running:2;queued:500', got '{terms[:80]}'")
        name, value = matched[1], int(matched[2])
        if value < 1 or (name == "weight" and value > WEIGHT_MAX):
            raise ValueError(f"weights are 1 to {WEIGHT_MAX}, limits at least 1, got '{term}'")
        match name:
            case "weight":
                share = replace(share, weight=value)
            case "running":
                share = replace(share, running_max=value)
            case _:
                share = replace(share, queued_max=value)
    return share
