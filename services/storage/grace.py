"""How long what is deleted can be had back: by the clock that dates objects, never a process's.

A deletion is dated by the store's clock, and only the sweeper ends it, by the same one. Until the
sweeper has come it can be undone, whatever any replica's own clock says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.storage import keys
from services.storage.listing import store_time
from services.storage.quota import every_object
from services.storage.records import Deletion, now
from smile.errors import SmileError
from smile.logs import get_logger
from smile.names import TenantId
from smile.store.objects import ObjectInfo, ObjectStore

DELETE_GRACE = timedelta(days=7)
REQUEST_AGE_MAX = timedelta(hours=1)  # no request is under way for so long


@dataclass(frozen=True, slots=True)
class Left:
    """An object of the trash as a sweep finds it, and when that is by the store's clock."""

    tenant: TenantId
    info: ObjectInfo
    time: datetime

    def ended(self, deletion: Deletion) -> bool:
        """Whether what was deleted so goes now."""
        return deletion.purge_time is None or deletion.purge_time <= self.time

    @property
    def stale(self) -> bool:
        """Whether the request that wrote it is over, one way or another."""
        return self.time - self.info.modified > REQUEST_AGE_MAX


@dataclass(frozen=True, slots=True)
class Grace:
    """Dates deletions. `period` 0: nothing can be had back."""

    store: ObjectStore
    period: timedelta = DELETE_GRACE

    async def deletion(self, request_id: str, *, for_good: bool) -> Deletion:
        """A deletion made now. Raises `Unavailable` where the store does not tell the time."""
        if for_good or not self.period:
            return Deletion(request_id=request_id, time=now())
        time = await store_time(self.store)
        return Deletion(request_id=request_id, time=time, purge_time=time + self.period)


async def swept(
    store: ObjectStore,
    folder_of: Callable[[TenantId], str],
    remove: Callable[[Left], Awaitable[bool]],
) -> int:
    """Let `remove` look at all that tenants have in a folder of trash; how often it removed
    something. What it cannot do stays for the next time.
    """
    removed, time = 0, await store_time(store)
    for text in await store.list_folders(keys.TENANT_DATA):
        tenant = TenantId(text)
        async for info in every_object(store, folder_of(tenant)):
            try:
                removed += await remove(Left(tenant, info, time))
            except SmileError as error:
                get_logger().warning("left in the trash", key=info.key, why=error.message)
    return removed
