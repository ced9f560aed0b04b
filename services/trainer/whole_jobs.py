"""Who may train a whole model now: few jobs of a tenant, and only where there is room."""

from __future__ import annotations

from collections import defaultdict

from services.trainer.storage import Storage
from services.trainer.whole import (
    FullLimits,
    Needs,
    check_fits,
    check_stored,
    jobs_exceeded,
    spec_of,
)
from smile.errors import NotFound
from smile.model.specs import BackboneShape, ModuleSpec
from smile.names import JobName, TenantId
from smile.resources import Method, TrainingJob


class WholeJobs:
    """Jobs of method full that have not ended, as far as is known here, and what such take."""

    def __init__(self, storage: Storage, limits: FullLimits) -> None:
        self._storage = storage
        self._limits = limits
        self._going: defaultdict[TenantId, set[JobName]] = defaultdict(set)
        self._arriving: set[JobName] = set()  # admitted, and not yet durable

    def needs(self, job: TrainingJob, spec: ModuleSpec, shape: BackboneShape) -> Needs | None:
        """What a job takes, or each trial of it at most; None where it is of another method.

        Raises:
            FailedPrecondition: no worker can do it.
        """
        if job.method is not Method.FULL:
            return None
        trials = (job.hyper_parameters,) if job.sweep is None else job.sweep.trials
        found = [Needs.of(spec_of(job, spec), shape, values) for values in trials]
        for needs in found:
            check_fits(needs, self._limits)
        return max(found, key=lambda needs: needs.checkpoint_bytes)

    def keep(self, name: JobName) -> None:
        """There is this job, and it has not ended."""
        self._going[name.tenant].add(name)

    def forget(self, name: JobName) -> None:
        """It was not to be."""
        self._going[name.tenant].discard(name)
        self._arriving.discard(name)

    def arrived(self, name: JobName) -> None:
        """It is durable now, or whoever submitted it was told that it may not be."""
        self._arriving.discard(name)

    async def admit(self, name: JobName, needs: Needs) -> None:
        """Counts one more job, which `arrived` is to follow.

        Raises:
            QuotaExceeded: as many of its tenant have not ended as may, or what it stores has no
                room.
        """
        tenant = name.tenant
        for other in self._going[tenant] - {name} - self._arriving:
            if await self._ended(other):
                self.forget(other)
        going = len(self._going[tenant] - {name})
        if going >= self._limits.jobs_max:
            raise jobs_exceeded(tenant, going, self._limits)
        self.keep(name)
        self._arriving.add(name)
        try:
            stored = await self._storage.stored_bytes(tenant)
            check_stored(tenant, needs, stored.used, stored.allowed)
        except BaseException:
            self.forget(name)
            raise

    async def _ended(self, name: JobName) -> bool:
        try:
            return (await self._storage.record(name)).job.state.done
        except NotFound:
            return True
