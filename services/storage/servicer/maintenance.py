"""`MaintenanceService`: operators' care of what is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import TypeAlias

import grpc

from services.storage.maintenance.collect import GRACE, Collector
from services.storage.maintenance.rebuild import Rebuilder
from services.storage.maintenance.verify import Extent, Verifier
from smile.codec.maintenance import maintenance_event_to_pb, store_to_pb
from smile.maintenance import MaintenanceEvent, StoreReport
from smile.store.objects import ObjectStore
from smile.v1 import maintenance_pb2, maintenance_pb2_grpc

FULL_NAME = "smile.v1.MaintenanceService"

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class MaintenanceServicer(maintenance_pb2_grpc.MaintenanceServiceServicer):
    """Decodes, has the work done, encodes.

    Args:
        report: What is known of the store now.
        grace: The default of collections.
    """

    def __init__(
        self,
        store: ObjectStore,
        report: Callable[[], StoreReport],
        grace: timedelta = GRACE,
    ) -> None:
        self._store = store
        self._report = report
        self._grace = grace

    async def GetStore(
        self, request: maintenance_pb2.GetStoreRequest, context: Context
    ) -> maintenance_pb2.Store:
        return store_to_pb(self._report())

    async def VerifyStore(
        self, request: maintenance_pb2.VerifyStoreRequest, context: Context
    ) -> AsyncIterator[maintenance_pb2.MaintenanceEvent]:
        extent = Extent(request.tenant_id, records_only=request.records_only)
        async for event in _encoded(Verifier(self._store, extent).verify()):
            yield event

    async def CollectGarbage(
        self, request: maintenance_pb2.CollectGarbageRequest, context: Context
    ) -> AsyncIterator[maintenance_pb2.MaintenanceEvent]:
        grace = request.grace.ToTimedelta() if request.HasField("grace") else self._grace
        collector = Collector(self._store, grace, dry_run=request.dry_run)
        async for event in _encoded(collector.collect()):
            yield event

    async def RebuildIndexes(
        self, request: maintenance_pb2.RebuildIndexesRequest, context: Context
    ) -> AsyncIterator[maintenance_pb2.MaintenanceEvent]:
        rebuilder = Rebuilder(self._store, dry_run=request.dry_run)
        async for event in _encoded(rebuilder.rebuild()):
            yield event


async def _encoded(
    events: AsyncIterator[MaintenanceEvent],
) -> AsyncIterator[maintenance_pb2.MaintenanceEvent]:
    async for event in events:
        yield maintenance_event_to_pb(event)
