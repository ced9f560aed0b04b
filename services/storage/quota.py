"""How much a tenant stores, against how much it may.

What is stored is counted by listing, so it is exact; the count is remembered for a few seconds and
what this process adds meanwhile is added to it; for longer where not half of what a tenant may
have is taken. Uploads in progress hold their declared size, so several at once cannot exceed the
quota together. Nothing is refused on a remembered count alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.storage import keys
from smile.errors import QuotaExceeded
from smile.names import TenantId
from smile.store.objects import LIST_KEYS_MAX, ObjectInfo, ObjectStore

COUNT_AGE_S_MAX = 5.0
SPARE_AGE_S_MAX = 60.0  # while half of what a tenant may have is free
TENANTS_REMEMBERED_MAX = 10_000


@dataclass(slots=True)
class _Count:
    size: int
    at: float


async def every_object(store: ObjectStore, prefix: str) -> AsyncIterator[ObjectInfo]:
    """All objects under a folder, in order."""
    after: str | None = None
    while page := await store.list_objects(prefix, after=after, limit=LIST_KEYS_MAX):
        for info in page:
            yield info
        if len(page) < LIST_KEYS_MAX:
            return
        after = page[-1].key


class Ledger:
    """Counts and reserves stored bytes, per tenant."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._counts: dict[TenantId, _Count] = {}
        self._reserved: Counter[TenantId] = Counter()

    @asynccontextmanager
    async def reserved(
        self, tenant: TenantId, size_bytes: int, quota_bytes: int
    ) -> AsyncIterator[None]:
        """Hold `size_bytes` of the tenant's quota while they are stored inside.

        Raises:
            QuotaExceeded: they do not fit beside what is stored and what others are storing now.
        """
        await self._check(tenant, size_bytes, quota_bytes)
        self._reserved[tenant] += size_bytes
        try:
            yield
            if (count := self._counts.get(tenant)) is not None:
                count.size += size_bytes
        finally:
            self._reserved[tenant] -= size_bytes
            if self._reserved[tenant] <= 0:
                del self._reserved[tenant]

    def forget(self, tenant: TenantId) -> None:
        """Count anew next time: something was deleted."""
        self._counts.pop(tenant, None)

    async def _check(self, tenant: TenantId, size_bytes: int, quota_bytes: int) -> None:
        if size_bytes > quota_bytes:
            raise _exceeded(size_bytes, 0, quota_bytes)
        count = self._counts.get(tenant)
        if count is not None:
            spare = self._fits(tenant, count, size_bytes, quota_bytes // 2)
            fresh = self._clock() - count.at <= (SPARE_AGE_S_MAX if spare else COUNT_AGE_S_MAX)
            if fresh and self._fits(tenant, count, size_bytes, quota_bytes):
                return
        count = await self._counted(tenant)
        if not self._fits(tenant, count, size_bytes, quota_bytes):
            used = count.size + self._reserved[tenant]
            raise _exceeded(size_bytes, used, quota_bytes)

    def _fits(self, tenant: TenantId, count: _Count, size_bytes: int, quota_bytes: int) -> bool:
        return count.size + self._reserved[tenant] + size_bytes <= quota_bytes

    async def _counted(self, tenant: TenantId) -> _Count:
        at = self._clock()
        total = 0
        async for info in every_object(self._store, keys.owned(tenant)):
            total += info.size
        if len(self._counts) >= TENANTS_REMEMBERED_MAX:
            self._counts.clear()
        self._counts[tenant] = count = _Count(total, at)
        return count


class Places:
    """How many things of a kind a tenant has, remembered while not half of what it may have is
    taken: for so long nobody need list them to make one more.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[TenantId, _Count] = {}

    def take(self, tenant: TenantId, places_max: int) -> bool:
        """Whether one more of `places_max` has room by what is remembered, which counts it."""
        count = self._counts.get(tenant)
        if count is None or self._clock() - count.at > SPARE_AGE_S_MAX:
            return False
        count.size += 1
        return 2 * count.size <= places_max

    def counted(self, tenant: TenantId, places: int) -> None:
        """There are so many now, one that is being made not included."""
        if len(self._counts) >= TENANTS_REMEMBERED_MAX:
            self._counts.clear()
        self._counts[tenant] = _Count(places + 1, self._clock())


def _exceeded(size_bytes: int, used_bytes: int, quota_bytes: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"the tenant may store {quota_bytes} bytes and {used_bytes} are taken, this needs "
        f"{size_bytes} more",
        metadata={
            "limit_name": "quota_bytes",
            "limit": str(quota_bytes),
            "used": str(used_bytes),
            "value": str(size_bytes),
        },
    )
