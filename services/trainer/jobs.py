"""Training jobs as their owners see them: submit, get, list, cancel; and nothing is forgotten.

A job is its durable record; the queue only says whose turn it is and how far a worker has come.
Submitting writes the record first, so whatever happens to the queue, `reconcile` finds it again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import uuid4

from services.trainer.backbones import Backbones
from services.trainer.checks import check_base, check_job, check_sweep
from services.trainer.metering import Allowances
from services.trainer.queueing.queue import Claim, JobQueue, QueueState, Sighting
from services.trainer.standins import StandIns
from services.trainer.storage import Storage
from services.trainer.whole import FullLimits, Needs
from services.trainer.whole_jobs import WholeJobs
from smile.errors import AlreadyExists, NotFound, QuotaExceeded, SmileError, Unavailable
from smile.limits import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from smile.logs import get_logger
from smile.model.sources import BackboneInfo
from smile.names import DatasetName, JobName, TenantId, VersionName, VplmName
from smile.resources import JobState, Method, Sweep, TrainingJob, TrainingRecord, VersionOrigin

ID_HEX_CHARS = 24
SWEEPS_MAX = 10  # of a tenant, that have not ended
SWEEP_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, newest first, and the token of the next page ('' on the last)."""

    jobs: tuple[TrainingJob, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class _Checked:
    """What is known of a job that can be done.

    Attributes:
        metric: Of a sweep: the one by which its trials are compared.
        needs: Of a whole model: what it takes.
    """

    metric: str
    needs: Needs | None


class Jobs:
    """The jobs of all tenants; names say whose."""

    def __init__(
        self,
        storage: Storage,
        queue: JobQueue,
        backbones: Backbones[BackboneInfo],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        allowances: Allowances | None = None,
        stand_ins: StandIns | None = None,
        full: FullLimits | None = None,
    ) -> None:
        self._whole = WholeJobs(storage, full or FullLimits())
        self._stand_ins = stand_ins or StandIns()
        self._allowances = allowances or Allowances()
        self._storage = storage
        self._queue = queue
        self._backbones = backbones
        self._clock = clock
        self._consumer = f"trainer-{uuid4().hex}"
        self.sweeps: set[JobName] = set()  # parents that have not ended, as far as is known here

    async def submit(
        self, tenant: TenantId, wanted: TrainingJob, request_id: str, *, validate_only: bool = False
    ) -> TrainingJob:
        """Accepts a job; it is durable and queued when this returns.

        Args:
            wanted: Its output fields are ignored.
            request_id: The same id gives the earlier job, whatever else `wanted` says.

        Raises:
            InvalidSpec, InvalidArgument: a hyper-parameter or a column is wrong.
            NotFound: the vPLM, a dataset or the base version is not the tenant's.
            FailedPrecondition: its backbone is not here, or not with such states; or a whole model
                is too large for the workers.
            QuotaExceeded: as many jobs of the tenant wait as may, or it has used up its day's
                training and the job would run now; or it trains as many whole models as it may, or
                has no room for one.
            Unavailable: storage or the queue is away; the same request again completes it.
        """
        name = JobName(tenant, job_id(tenant, request_id))
        record = await self._known(name)
        if record is None:
            wanted = await self._from_adapter(wanted)
            checked = await self._check(wanted)
            job = _fresh(wanted, name, self._clock(), checked.metric)
            if validate_only:
                return job
            if job.sweep is None:
                await self._allowances.check(tenant, wanted.when)
                await self._reserve(name, checked)
            else:
                self._check_sweeps(tenant)
            try:
                record = await self._create(job)
            finally:
                self._whole.arrived(name)
        await self._keep(record)
        return await self._seen(record)

    async def get(self, name: JobName) -> TrainingJob:
        """One job. Raises `NotFound`."""
        return await self._seen(await self._storage.record(name))

    async def page(self, tenant: TenantId, page_size: int, page_token: str) -> JobPage:
        """A tenant's jobs, newest first."""
        size = min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        page = await self._storage.records(tenant, size, page_token)
        jobs = [record.job for record in page.records]
        return JobPage(tuple(await self._seen_all(jobs)), page.next_page_token)

    async def cancel(self, name: JobName) -> TrainingJob:
        """Asks a job to stop: one that waits ends now, one that runs within a few steps, a sweep
        when all its trials have.

        Raises:
            NotFound: there is no such job.
            Unavailable: the queue or storage is away.
        """
        record = await self._storage.record(name)
        if record.job.state.done:
            return record.job
        if record.job.sweep is not None:
            return await self._stop(record, record.job.sweep)
        state, claim = await self._queue.cancel(name, self._consumer)
        if state is QueueState.UNKNOWN:  # the queue forgot it
            await self._queue.enqueue(record)
            state, claim = await self._queue.cancel(name, self._consumer)
        if claim is not None:
            record = await self._end_cancelled(name, claim)
        return await self._seen(record)

    async def reconcile(self) -> int:
        """Queues every unfinished record that the queue does not know; how many it did not. Sweeps
        are for `Sweeps`."""
        await self._queue.prune_consumers()
        found, token = 0, ""
        while True:
            page = await self._storage.pending_records(token)
            for record in page.records:
                if await self._keep(record):
                    get_logger().warning("job was not in the queue", job=record.job.name)
                    found += 1
            token = page.next_page_token
            if not token:
                return found

    async def keep_reconciling(self, every_s: float) -> None:
        """Reconciles at once and then for ever, as long as it is not cancelled."""
        while True:
            try:
                await self.reconcile()
            except Unavailable as error:
                get_logger().warning("cannot reconcile now", why=error.message)
                await asyncio.sleep(min(every_s, 2.0))
            except SmileError as error:
                get_logger().error("reconciling failed", why=error.message, reason=error.reason)
                await asyncio.sleep(every_s)
            else:
                await asyncio.sleep(every_s)

    async def _known(self, name: JobName) -> TrainingRecord | None:
        try:
            return await self._storage.record(name)
        except NotFound:
            return None

    async def _reserve(self, name: JobName, checked: _Checked) -> None:
        """Raises `QuotaExceeded` where there is no place for a job."""
        if checked.needs is None:
            return await self._queue.reserve(name, self._allowances.share)
        await self._whole.admit(name, checked.needs)
        try:
            await self._queue.reserve(name, self._allowances.share)
        except BaseException:
            self._whole.forget(name)
            raise

    async def _create(self, job: TrainingJob) -> TrainingRecord:
        try:
            return await self._storage.create_record(job)
        except AlreadyExists:  # the same request, at the same time
            return await self._storage.record(JobName.parse(job.name))

    async def _keep(self, record: TrainingRecord) -> bool:
        """Sees to it that a job which has not ended goes on; whether the queue did not know it."""
        if record.job.state.done:
            return False
        if record.job.sweep is None:
            if record.job.method is Method.FULL:
                self._whole.keep(JobName.parse(record.job.name))
            return await self._queue.enqueue(record)
        self.sweeps.add(JobName.parse(record.job.name))
        return False

    async def _stop(self, record: TrainingRecord, sweep: Sweep) -> TrainingJob:
        """Lets a sweep begin no more trials; who advances it stops those that run. Under a higher
        fence, so that nobody who read the record before writes over it."""
        self.sweeps.add(JobName.parse(record.job.name))
        if sweep.stopping:
            return record.job
        job = replace(record.job, sweep=replace(sweep, stopping=True))
        return (await self._storage.update_record(TrainingRecord(job, record.fence + 1))).job

    def _check_sweeps(self, tenant: TenantId) -> None:
        going = sum(name.tenant == tenant for name in self.sweeps)
        if going >= SWEEPS_MAX:
            raise QuotaExceeded(
                f"{tenant} has {going} sweeps that have not ended, at most {SWEEPS_MAX} may be",
                reason="TOO_MANY_SWEEPS",
                metadata={"limit": str(SWEEPS_MAX), "value": str(going)},
                retry_after=SWEEP_RETRY_S,
            )

    async def _from_adapter(self, wanted: TrainingJob) -> TrainingJob:
        """Of a vPLM that began as a public adapter, training goes on from that unless the job names
        another version.
        """
        if wanted.base_version or wanted.method is Method.FULL:
            return wanted
        try:
            first = await self._storage.version(VersionName(VplmName.parse(wanted.vplm), 1))
        except NotFound:
            return wanted
        begun = 1 if first.origin is VersionOrigin.ADAPTER else 0
        return replace(wanted, base_version=begun)

    async def _check(self, wanted: TrainingJob) -> _Checked:
        """Raises what `submit` raises of a job that cannot be done."""
        vplm_name = VplmName.parse(wanted.vplm)
        vplm = await self._storage.vplm(vplm_name)
        for dataset in filter(None, (wanted.dataset, wanted.validation_dataset)):
            await self._storage.dataset(DatasetName.parse(dataset))
        if wanted.base_version:
            name = VersionName(vplm_name, wanted.base_version)
            check_base(wanted.method, await self._storage.version(name))
        info = await asyncio.to_thread(self._backbones.of, vplm.spec, lambda found: found.digest)
        trials = (wanted.hyper_parameters,) if wanted.sweep is None else wanted.sweep.trials
        for states in {values.states for values in trials}:
            await asyncio.to_thread(self._stand_ins.check, vplm.spec, states)
        metric = ""
        if wanted.sweep is not None:
            metric = check_sweep(wanted, wanted.sweep, vplm.spec.head, info.shape)
        else:
            check_job(wanted, vplm.spec.head, info.shape)
        return _Checked(metric, self._whole.needs(wanted, vplm.spec, info.shape))

    async def _end_cancelled(self, name: JobName, claim: Claim) -> TrainingRecord:
        record = await self._storage.record(name)
        if not record.job.state.done:
            job = replace(record.job, state=JobState.CANCELLED, end_time=self._clock())
            record = await self._storage.update_record(TrainingRecord(job, claim.fence))
        await self._queue.finish(claim, record.job.state)
        return record

    async def _seen(self, record: TrainingRecord) -> TrainingJob:
        return (await self._seen_all([record.job]))[0]

    async def _seen_all(self, jobs: Sequence[TrainingJob]) -> list[TrainingJob]:
        """Jobs with what the queue knows of them now; as recorded while the queue is away."""
        live = [job for job in jobs if not job.state.done and job.sweep is None]
        try:
            sightings = await self._queue.look([JobName.parse(job.name) for job in live])
        except Unavailable:
            return list(jobs)
        seen = {job.name: _merged(job, s) for job, s in zip(live, sightings, strict=True)}
        return [seen.get(job.name, job) for job in jobs]


def job_id(tenant: TenantId, request_id: str) -> str:
    """The id of the job that a request makes: the same for the same request."""
    digest = hashlib.sha256(f"{tenant}/{request_id.lower()}".encode()).hexdigest()
    return f"j{digest[:ID_HEX_CHARS]}"


def _fresh(wanted: TrainingJob, name: JobName, now: datetime, metric: str) -> TrainingJob:
    """The job as it is first known. A sweep has begun then; it compares its trials by `metric`."""
    sweep = wanted.sweep
    if sweep is not None:
        sweep = Sweep(sweep.trials, sweep.concurrency_max, metric)
    return TrainingJob(
        name=str(name),
        vplm=wanted.vplm,
        dataset=wanted.dataset,
        validation_dataset=wanted.validation_dataset,
        columns=wanted.columns,
        hyper_parameters=wanted.hyper_parameters,
        base_version=wanted.base_version,
        promote_alias=wanted.promote_alias,
        when=wanted.when,
        priority=wanted.priority,
        state=JobState.QUEUED if sweep is None else JobState.RUNNING,
        create_time=now,
        start_time=None if sweep is None else now,
        sweep=sweep,
        parent_job=wanted.parent_job,
        method=wanted.method,
    )


def _merged(job: TrainingJob, sighting: Sighting) -> TrainingJob:
    """The queue may be ahead of the record, but only the record says how a job ended."""
    if sighting.state not in (QueueState.QUEUED, QueueState.RUNNING):
        return job
    return replace(
        job,
        state=JobState(sighting.state),
        attempt=max(job.attempt, sighting.attempt),
        progress=sighting.progress,
        queue_position=sighting.jobs_ahead,
        estimated_start_time=sighting.starts_at,
    )
