"""Who has rented what, and what that means for a request. Pure: no I/O, times are arguments.

Everything that a request or the scheduler asks takes constant time, however many processors are
rented; who has gone idle is found in a heap that is put right as it is looked at.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from services.processor.requests import ModuleKey, Target
from services.processor.scheduling.rates import RateLimit, RateLimiter
from smile.errors import NotFound, Overloaded, QuotaExceeded
from smile.names import ProcessorName, TenantId, VplmName
from smile.processors import ProcessorCounters, ProcessorTerms
from smile.resources import Exactness

TENANT_WEIGHT_MAX = 16.0
WEIGHT_UNRENTED = 1.0
RATE_LIMITED = "RATE_LIMITED"
RENTALS_FULL = "RENTALS_FULL"
FULL_RETRY_S = 60.0
KEYS_MAX = 4  # versions of one vPLM that are remembered as in use


@dataclass(frozen=True, slots=True)
class RentalLimits:
    """How much may be rented.

    Attributes:
        total_max: Processors of all tenants.
        tenant_max: Processors of one tenant.
        idle_s: After which a module leaves memory where the terms do not say.
    """

    total_max: int
    tenant_max: int
    idle_s: float


@dataclass(slots=True, eq=False)
class Rental:
    """One rented processor. Counters as `ProcessorCounters`.

    Attributes:
        last_used: When a request last asked, or when it was rented.
        keys: Modules that answered lately, the latest last; they leave memory with it.
        pinned: The module that is held on the device, if any.
        watched: Whether the heap of idle ones knows it.
    """

    vplm: VplmName
    terms: ProcessorTerms
    create_time: datetime
    last_used: float
    idle_s: float
    limit: RateLimit | None = None
    requests: int = 0
    texts: int = 0
    refused: int = 0
    errors: int = 0
    module_hits: int = 0
    module_loads: int = 0
    keys: dict[ModuleKey, None] = field(default_factory=dict)
    pinned: ModuleKey | None = None
    watched: bool = False

    @property
    def counters(self) -> ProcessorCounters:
        return ProcessorCounters(
            self.requests,
            self.texts,
            self.refused,
            self.errors,
            self.module_hits,
            self.module_loads,
        )

    def serves(self, target: Target) -> None:
        """A version of the vPLM is in use."""
        self.keys.pop(target.key, None)
        self.keys[target.key] = None
        if len(self.keys) > KEYS_MAX:
            del self.keys[next(iter(self.keys))]

    def found(self, *, waited: bool) -> None:
        """A request found its module, or waited for it."""
        self.module_loads += waited
        self.module_hits += not waited


class Rentals:
    """Rented processors by vPLM. For use on the event loop; `weight_of` and `requests_max_of` may
    be asked from any thread.
    """

    def __init__(self, limits: RentalLimits) -> None:
        self.limits = limits
        self._rentals: dict[VplmName, Rental] = {}
        self._pinned: dict[VplmName, Rental] = {}
        self._ids: dict[TenantId, list[str]] = {}  # in order
        self._weights: dict[TenantId, float] = {}
        self._rates: RateLimiter[VplmName] = RateLimiter()
        self._idle: list[tuple[float, int, Rental]] = []
        self._ties = itertools.count()

    def __len__(self) -> int:
        return len(self._rentals)

    def of(self, vplm: VplmName) -> Rental | None:
        """What was rented for a vPLM."""
        return self._rentals.get(vplm)

    def get(self, name: ProcessorName) -> Rental:
        """Raises `NotFound`."""
        if (rental := self._rentals.get(name.vplm_name)) is None:
            raise NotFound(f"{name} does not exist", metadata={"resource": str(name)})
        return rental

    def page(self, tenant: TenantId, after: str, size: int) -> tuple[list[Rental], bool]:
        """A tenant's rentals by id, those after `after`; and whether there are more."""
        ids = self._ids.get(tenant, [])
        start = bisect.bisect_right(ids, after)
        taken = ids[start : start + size]
        return [self._rentals[VplmName(tenant, one)] for one in taken], start + size < len(ids)

    def pinned(self) -> list[Rental]:
        """Rentals whose module is to stay on the device."""
        return list(self._pinned.values())

    def rent(self, vplm: VplmName, terms: ProcessorTerms, now: float, time: datetime) -> Rental:
        """Rent, or change the terms of what is rented; counters go on.

        Raises:
            QuotaExceeded: the tenant has as many as it may.
            Overloaded: all tenants together have.
        """
        rental = self._rentals.get(vplm)
        if rental is None:
            self._check_room(vplm.tenant)
            rental = Rental(vplm, terms, time, now, self._idle_s(terms), _limit(terms))
            self._rentals[vplm] = rental
            bisect.insort(self._ids.setdefault(vplm.tenant, []), vplm.vplm)
            self._add_weight(vplm.tenant, terms.weight)
        else:
            self._add_weight(vplm.tenant, terms.weight - rental.terms.weight)
            rental.terms, rental.idle_s, rental.limit = terms, self._idle_s(terms), _limit(terms)
            rental.last_used = now
        self._watch(rental)
        if terms.pinned:
            self._pinned[vplm] = rental
        else:
            self._pinned.pop(vplm, None)
        return rental

    def release(self, name: ProcessorName) -> Rental:
        """Forget what was rented. Raises `NotFound`."""
        rental = self.get(name)
        vplm = rental.vplm
        del self._rentals[vplm]
        self._pinned.pop(vplm, None)
        ids = self._ids[vplm.tenant]
        del ids[bisect.bisect_left(ids, vplm.vplm)]
        self._add_weight(vplm.tenant, -rental.terms.weight)
        if not ids:  # no rounding error stays
            del self._ids[vplm.tenant], self._weights[vplm.tenant]
        return rental

    def begin(self, rental: Rental, texts: int, now: float) -> None:
        """A request has come; `end` must follow, unless this raises.

        Raises:
            Overloaded: it comes faster than was rented.
        """
        rental.requests += 1
        rental.last_used = now
        self._watch(rental)
        try:
            self._check_rate(rental, texts, now)
        except Overloaded:
            rental.refused += 1
            raise

    @staticmethod
    def end(rental: Rental, texts: int, error: BaseException | None) -> None:
        """A request is over: so many texts answered, or why not."""
        if error is None:
            rental.texts += texts
        elif isinstance(error, Overloaded):
            rental.refused += 1
        else:
            rental.errors += 1

    def rented_weight(self, tenant: TenantId) -> float | None:
        """What a tenant's rentals weigh together; None where it has none."""
        return self._weights.get(tenant)

    def weight_of(self, tenant: TenantId) -> float:
        """A tenant's share of the device, against others'."""
        weight = self._weights.get(tenant)
        return WEIGHT_UNRENTED if weight is None else min(weight, TENANT_WEIGHT_MAX)

    def exactness(self, vplm: VplmName, asked: Exactness | None) -> Exactness | None:
        """How a request is to be answered that asks so, or does not say; None: rented terms do not
        say either.
        """
        if asked is not None:
            return asked
        rental = self.of(vplm)
        return None if rental is None else rental.terms.exactness

    def requests_max_of(self, vplm: VplmName) -> int | None:
        """Requests of a vPLM computed at a time; None: any."""
        rental = self._rentals.get(vplm)
        return rental.terms.concurrency_max or None if rental is not None else None

    def gone_idle(self, now: float) -> Iterator[Rental]:
        """Rentals nobody has asked for as long as their terms say, each told of once until it is
        used again."""
        while self._idle and self._idle[0][0] <= now:
            _, _, rental = heapq.heappop(self._idle)
            rental.watched = False
            if self._rentals.get(rental.vplm) is not rental:
                continue
            if rental.last_used + rental.idle_s > now:
                self._watch(rental)
            elif not rental.terms.pinned:
                yield rental

    def _watch(self, rental: Rental) -> None:
        if not rental.watched:
            rental.watched = True
            due = rental.last_used + rental.idle_s
            heapq.heappush(self._idle, (due, next(self._ties), rental))

    def _idle_s(self, terms: ProcessorTerms) -> float:
        return terms.idle_s or self.limits.idle_s

    def _add_weight(self, tenant: TenantId, weight: float) -> None:
        self._weights[tenant] = self._weights.get(tenant, 0.0) + weight

    def _check_room(self, tenant: TenantId) -> None:
        held, limit = len(self._ids.get(tenant, ())), self.limits.tenant_max
        if held >= limit:
            raise QuotaExceeded(
                f"a tenant may rent at most {limit} processors, and has {held}",
                metadata={"limit": str(limit), "value": str(held)},
            )
        if len(self._rentals) >= self.limits.total_max:
            raise Overloaded(
                f"all {self.limits.total_max} processors that may be rented are; come back later",
                reason=RENTALS_FULL,
                metadata={"limit": str(self.limits.total_max)},
                retry_after=FULL_RETRY_S,
            )

    def _check_rate(self, rental: Rental, texts: int, now: float) -> None:
        if (limit := rental.limit) is None:
            return
        wait_s = self._rates.take(rental.vplm, limit, now, texts)
        if wait_s > 0:
            raise Overloaded(
                f"{rental.vplm} is rented for {limit.per_s:g} texts per second and "
                f"{limit.burst:g} at once; come back in {wait_s:.3f} s",
                reason=RATE_LIMITED,
                metadata={"per_s": f"{limit.per_s:g}", "burst": f"{limit.burst:g}"},
                retry_after=wait_s,
            )


def _limit(terms: ProcessorTerms) -> RateLimit | None:
    if not terms.texts_per_s:
        return None
    return RateLimit(terms.texts_per_s, terms.burst_texts or max(terms.texts_per_s, 1.0))
