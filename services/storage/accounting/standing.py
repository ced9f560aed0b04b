"""What tenants may use, and how much of it they have used today."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from services.storage.accounting.journal import Journal
from services.storage.identity import Identity
from smile.accounting import NO_LIMIT, PER_DAY, Limit, Limits, LimitUse, TenantLimits, day_end
from smile.errors import NotFound
from smile.names import TenantId

LIMITS_AGE_S_MAX = 60.0
TENANTS_REMEMBERED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Known:
    limits: Limits
    at: float


class Standings:
    """Limits, remembered for a minute, against what the journal says."""

    def __init__(
        self,
        identity: Identity,
        journal: Journal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._journal = journal
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def limits(self, tenant: TenantId) -> Limits:
        """All limits of a tenant. Raises `NotFound`."""
        limits = self._identity.limits_of(await self._identity.tenant(tenant))
        if len(self._known) >= TENANTS_REMEMBERED_MAX:
            self._known.clear()
        self._known[tenant] = _Known(limits, self._clock())
        return limits

    async def set(self, tenant: TenantId, wanted: Mapping[Limit, int | None]) -> TenantLimits:
        """Set limits; None goes back to the default. Raises `NotFound`."""
        await self._identity.set_limits(tenant, wanted)
        return await self.of(tenant)

    async def of(self, tenant: TenantId) -> TenantLimits:
        """A tenant's limits, and how much of today's is used. Raises `NotFound`."""
        limits = await self.limits(tenant)
        return TenantLimits(f"tenants/{tenant}", await self._uses(tenant, limits))

    async def of_day(self, tenants: Iterable[str]) -> dict[str, tuple[LimitUse, ...]]:
        """How much of their day those tenants have used that have a limit of it."""
        found: dict[str, tuple[LimitUse, ...]] = {}
        for tenant in tenants:
            limits = await self._lately(tenant)
            daily = {
                limit: limits[limit] for limit in PER_DAY if limits.get(limit, NO_LIMIT) < NO_LIMIT
            }
            if daily:
                found[tenant] = await self._uses(tenant, daily)
        return found

    async def _lately(self, tenant: str) -> Limits:
        known = self._known.get(tenant)
        if known is not None and self._clock() - known.at <= LIMITS_AGE_S_MAX:
            return known.limits
        try:
            return await self.limits(TenantId(tenant))
        except NotFound:  # it is gone, and what it used is not
            return {}

    async def _uses(self, tenant: str, limits: Limits) -> tuple[LimitUse, ...]:
        day = self._journal.today
        counts = await self._journal.total(day, tenant)
        return tuple(
            LimitUse(limit, limits[limit], counts.used(limit), day_end(day))
            if limit in PER_DAY
            else LimitUse(limit, limits[limit])
            for limit in Limit
            if limits.get(limit, NO_LIMIT) < NO_LIMIT
        )
