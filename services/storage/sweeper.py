"""Removes, beside the server, what broken-off requests left and what nothing points to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from services.storage.maintenance.collect import GRACE, Collector
from smile.errors import SmileError
from smile.logs import get_logger
from smile.maintenance import MaintenanceSummary
from smile.store.objects import ObjectStore

Chore = Callable[[], Awaitable[int]]


class Sweeper:
    """Walks all tenants. Safe beside running requests: what is young stays.

    Args:
        grace: How long something lies unreferenced before it goes, and then in quarantine.
        chores: What else is to be done at each sweep; each tells how many objects it removed.
    """

    def __init__(
        self, store: ObjectStore, grace: timedelta = GRACE, chores: Sequence[Chore] = ()
    ) -> None:
        self._store = store
        self._grace = grace
        self._chores = chores

    async def run(self, every_s: float) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                removed = await self.sweep()
            except SmileError as error:
                get_logger().warning("could not sweep", why=error.message)
            else:
                get_logger().info("swept", objects=removed)

    async def sweep(self) -> int:
        """Sweep once; the objects put aside, brought back or removed."""
        removed = 0
        for chore in self._chores:
            removed += await chore()
        async for event in Collector(self._store, self._grace, thorough=False).collect():
            if isinstance(event, MaintenanceSummary):
                removed += event.changed
        return removed
