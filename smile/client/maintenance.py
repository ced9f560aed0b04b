"""For operators: what the object store can do, whether what it holds is sound, and its care."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from smile.client.calls import READ_TIMEOUT_S, Calls, asking
from smile.codec.maintenance import maintenance_event_from_pb, store_from_pb
from smile.codec.tables import duration_to_pb
from smile.maintenance import MaintenanceEvent, StoreReport
from smile.v1 import maintenance_pb2, trainer_pb2

MAINTENANCE_TIMEOUT_S = 6 * 3600.0
REQUEUE_TIMEOUT_S = 600.0


class MaintenanceCalls(Calls):
    """The store as a whole. All of it is for the operator's key."""

    async def store(self, *, timeout: float | None = None) -> StoreReport:
        """What the object store was found to be able to do, and how records are signed."""
        with asking():
            found = await self._connection.maintenance.GetStore(
                maintenance_pb2.GetStoreRequest(), timeout=timeout or READ_TIMEOUT_S
            )
        return store_from_pb(found)

    async def verify_store(
        self, tenant: str = "", *, records_only: bool = False, timeout: float | None = None
    ) -> AsyncGenerator[MaintenanceEvent, None]:
        """Reads everything that is stored, or a tenant's, and checks it; a summary comes last.

        With `records_only`, bytes of modules, datasets, curves and checkpoints are looked for, and
        not read.
        """
        request = maintenance_pb2.VerifyStoreRequest(tenant_id=tenant, records_only=records_only)
        with asking():
            async for event in self._connection.maintenance.VerifyStore(
                request, timeout=timeout or MAINTENANCE_TIMEOUT_S
            ):
                yield maintenance_event_from_pb(event)

    async def collect_garbage(
        self, *, dry_run: bool = False, grace_s: float = 0, timeout: float | None = None
    ) -> AsyncGenerator[MaintenanceEvent, None]:
        """Puts aside what nothing points to; a summary comes last. `dry_run` only tells.

        Args:
            grace_s: How long something must have lain so, at least an hour; 0: as storage is set.
        """
        request = maintenance_pb2.CollectGarbageRequest(
            dry_run=dry_run, grace=duration_to_pb(grace_s) if grace_s else None
        )
        with asking():
            async for event in self._connection.maintenance.CollectGarbage(
                request, timeout=timeout or MAINTENANCE_TIMEOUT_S
            ):
                yield maintenance_event_from_pb(event)

    async def rebuild_indexes(
        self, *, dry_run: bool = False, timeout: float | None = None
    ) -> AsyncGenerator[MaintenanceEvent, None]:
        """Makes indexes anew from records, lost records of vPLMs from their versions, and signs
        records again; a summary comes last. What Redis lost, `requeue_jobs` puts back.
        """
        request = maintenance_pb2.RebuildIndexesRequest(dry_run=dry_run)
        with asking():
            async for event in self._connection.maintenance.RebuildIndexes(
                request, timeout=timeout or MAINTENANCE_TIMEOUT_S
            ):
                yield maintenance_event_from_pb(event)

    async def requeue_jobs(self, *, timeout: float | None = None) -> int:
        """Queues again whatever job has not ended and is unknown to the trainer's queue, as after a
        loss of Redis; how many these were. The trainer does so by itself, too, every so often.
        """
        with asking():
            answer = await self._connection.trainer.RequeueTrainingJobs(
                trainer_pb2.RequeueTrainingJobsRequest(), timeout=timeout or REQUEUE_TIMEOUT_S
            )
        return int(answer.jobs)
