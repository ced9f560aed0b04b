"""One claimed job from its record to its end: fetch, check, train, publish.

The order of publication is version, alias, record, queue. Each step may be repeated without effect,
so a crash between any two is repaired by the next attempt, and a job that says SUCCEEDED is already
served by the alias it was to move.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import NAMESPACE_URL, uuid5

from services.trainer.metering import TrainingMeter
from services.trainer.queueing.queue import Claim, JobQueue
from services.trainer.storage import NewVersion
from services.trainer.training.run import Trained
from services.trainer.whole import spec_of
from services.trainer.worker.attempt import Attempt, Workshop
from services.trainer.worker.berths import Berths, Passenger
from services.trainer.worker.bookmark import Bookmark
from services.trainer.worker.failures import JobFailure, explained, worker_lost
from services.trainer.worker.holding import Holding, LetGo
from services.trainer.worker.patience import patiently
from services.trainer.worker.report import Report
from smile.errors import Aborted, FailedPrecondition, NotFound, SmileError, Unavailable
from smile.logs import get_logger
from smile.model import weights
from smile.names import DatasetName, VersionName, VplmName
from smile.resources import (
    JobError,
    JobState,
    Method,
    TrainingJob,
    TrainingRecord,
    TrainingStates,
    Vplm,
    VplmVersion,
)

DEATHS_MAX = 3
CURVE_EVERY_S = 30.0
JOB_FINISHED = "JOB_FINISHED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ends the job. `job` is the record to be stored; None if it is already."""

    state: JobState
    job: TrainingJob | None


class Runner:
    """Works on claimed jobs, one at a time.

    Args:
        ending: Set when this process shall end: the job in hand is given back.
        meter: Counts the time of jobs; None counts none.
        berths: Of this process, where others work beside it.
    """

    def __init__(
        self,
        shop: Workshop,
        queue: JobQueue,
        ending: asyncio.Event,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        meter: TrainingMeter | None = None,
        berths: Berths | None = None,
    ) -> None:
        self._meter = meter
        self.berths = berths or Berths()
        self._shop = shop
        self._storage = shop.storage
        self._queue = queue
        self._ending = ending
        self._clock = clock
        self._bookmark: Bookmark | None = None  # of the attempt in hand

    async def work(self, claim: Claim) -> None:
        """Brings a claimed job to its end, or lets go of it."""
        log = get_logger().bind(job=str(claim.name), fence=claim.fence, attempt=claim.attempt)
        log.info("claimed", deaths=claim.deaths)
        stint = self._meter.stint(claim.name.tenant, claim.when) if self._meter else None
        holding = Holding(self._queue, claim, Report(claim.attempt), self._ending, stint)
        self._bookmark = None
        keeping = asyncio.create_task(holding.keep())
        attempt = asyncio.create_task(self._attempt(holding))
        await asyncio.wait({keeping, attempt}, return_when=asyncio.FIRST_COMPLETED)
        if not attempt.done():
            reason = keeping.result()
            log.info("letting go", reason=reason)
            attempt.cancel()
            await asyncio.wait({attempt})
            if attempt.cancelled():
                await self._let_go(holding, reason)
        keeping.cancel()
        await asyncio.wait({keeping})
        if not attempt.cancelled():
            log.info("attempt ended", outcome=attempt.result())

    async def _attempt(self, holding: Holding) -> str:
        """The whole attempt; how it ended, for the log."""
        claim = holding.claim
        try:
            outcome = await self._outcome(holding)
            await self._end(holding, outcome)
        except NotFound:  # the record: its tenant is gone
            await self._finish(holding, JobState.FAILED)
            return "record gone"
        except Aborted:
            return "a later holder is at it"
        except FailedPrecondition as error:
            if error.reason != JOB_FINISHED:
                raise
            record = await patiently(lambda: self._storage.record(claim.name))
            outcome = Outcome(record.job.state, None)
            await self._end(holding, outcome)
        return outcome.state

    async def _outcome(self, holding: Holding) -> Outcome:
        claim = holding.claim
        job = (await patiently(lambda: self._storage.record(claim.name))).job
        if holding.stint is not None:
            holding.stint.vplm = VplmName.parse(job.vplm).vplm
            holding.stint.method = job.method
        if job.state.done:  # the holder before died between the record and the queue
            return Outcome(job.state, None)
        if claim.cancelled:
            return self._ended(job, JobState.CANCELLED)
        job = replace(
            job,
            state=JobState.RUNNING,
            attempt=claim.attempt,
            start_time=job.start_time or self._clock(),
        )
        await patiently(lambda: self._storage.update_record(TrainingRecord(job, claim.fence)))
        try:
            if claim.deaths >= DEATHS_MAX:
                raise worker_lost(claim.deaths)
            return await self._succeed(holding, job)
        except Aborted:
            raise
        except Exception as error:
            error_told = explained(error, job.name)
            return self._ended(job, JobState.FAILED, holding.report, error_told)

    async def _succeed(self, holding: Holding, job: TrainingJob) -> Outcome:
        name = VplmName.parse(job.vplm)
        holding.report.phase("loading")
        vplm = await patiently(lambda: self._storage.vplm(name))
        version = await self._published_before(holding.claim, job)
        if version is None:
            saving = asyncio.create_task(self._keep_saving_curve(holding))
            try:
                trained = await self._train(holding, job, vplm)
            finally:
                saving.cancel()
                await asyncio.wait({saving})
            holding.settled = True
            version = await self._publish(holding, vplm, job, trained)
        holding.settled = True
        if job.promote_alias:
            await self._promote(job, version)
        succeeded = replace(
            job, version=version.name, metrics=dict(version.metrics), summary=version.training
        )
        return self._ended(succeeded, JobState.SUCCEEDED, holding.report)

    async def _train(self, holding: Holding, job: TrainingJob, vplm: Vplm) -> Trained:
        if self.berths.count == 1:
            return await self._attempted(holding, job, vplm)
        passenger = await self._passenger(holding.claim, job, vplm)
        holding.waiting = True
        holding.report.phase("waiting")
        async with self.berths.taken(passenger):
            holding.begin()
            return await self._attempted(holding, job, vplm)

    async def _passenger(self, claim: Claim, job: TrainingJob, vplm: Vplm) -> Passenger:
        """Small jobs share, but for those that died before: by whose fault, nobody knows."""
        names = filter(None, (job.dataset, job.validation_dataset))
        size = sum([await self._size(DatasetName.parse(name)) for name in names])
        modest = job.method is Method.PET and job.hyper_parameters.states is TrainingStates.EXACT
        shares = modest and claim.deaths == 0 and size <= self._shop.shared_bytes_max
        return Passenger(vplm.spec.backbone, shares)

    async def _size(self, name: DatasetName) -> int:
        return (await patiently(lambda: self._storage.dataset(name))).size_bytes

    async def _attempted(self, holding: Holding, job: TrainingJob, vplm: Vplm) -> Trained:
        every_s = self._shop.checkpoint_s
        bookmark = Bookmark(self._storage, self._queue, holding.claim, holding.report, every_s)
        self._bookmark = bookmark
        try:
            return await Attempt(self._shop, job, holding.report, bookmark).train(vplm)
        finally:
            bookmark.close()

    async def _published_before(self, claim: Claim, job: TrainingJob) -> VplmVersion | None:
        """The version an earlier attempt stored before it died."""
        if claim.attempt <= 1:
            return None
        versions = await patiently(lambda: self._storage.versions(VplmName.parse(job.vplm)))
        return next((version for version in versions if version.training_job == job.name), None)

    async def _publish(
        self, holding: Holding, vplm: Vplm, job: TrainingJob, trained: Trained
    ) -> VplmVersion:
        holding.report.phase("publishing")
        name = VplmName.parse(vplm.name)
        spec = spec_of(job, vplm.spec)
        data = weights.encode(trained.tensors, spec)
        new = NewVersion(
            vplm=name,
            data=data,
            digest=weights.sha256_hex(data),
            training_job=job.name,
            metrics=dict(trained.metrics),
            summary=trained.summary,
            request_id=str(uuid5(NAMESPACE_URL, job.name)),
            spec=spec,
        )
        await patiently(lambda: self._put_curve(holding))
        now = await patiently(lambda: self._storage.vplm(name))
        if now.uid != vplm.uid:
            raise JobFailure(
                "VPLM_DELETED", f"{name} was deleted while it was trained, and made anew"
            )
        return await patiently(lambda: self._storage.put_version(new))

    async def _promote(self, job: TrainingJob, version: VplmVersion) -> None:
        name = VersionName.parse(version.name)
        request_id = str(uuid5(NAMESPACE_URL, f"{job.name}/alias"))
        await patiently(lambda: self._storage.set_alias(name, job.promote_alias, request_id))

    def _ended(
        self,
        job: TrainingJob,
        state: JobState,
        report: Report | None = None,
        error: JobError | None = None,
    ) -> Outcome:
        progress = job.progress if report is None else report.progress
        ended = replace(job, state=state, end_time=self._clock(), progress=progress, error=error)
        return Outcome(state, ended)

    async def _end(self, holding: Holding, outcome: Outcome) -> None:
        """Stores the end, then tells the queue. Raises Aborted if a later holder is at it."""
        holding.settled = True
        job, claim = outcome.job, holding.claim
        if job is not None:
            if job.state in (JobState.FAILED, JobState.CANCELLED) and holding.report.kept():
                await self._save_curve(holding)
            await patiently(lambda: self._storage.update_record(TrainingRecord(job, claim.fence)))
        dead = job.error.reason if job is not None and job.error is not None else ""
        await self._finish(holding, outcome.state, dead if claim.deaths >= DEATHS_MAX else "")

    async def _finish(self, holding: Holding, state: JobState, dead_reason: str = "") -> None:
        """The record has ended; if this is lost, the next holder finds that and says it again."""
        if not await patiently(lambda: holding.finish(state, dead_reason)):
            get_logger().warning("the lease was lost at the end", job=str(holding.claim.name))

    async def _let_go(self, holding: Holding, reason: LetGo) -> None:
        claim = holding.claim
        match reason:
            case LetGo.LEASE_LOST:
                return
            case LetGo.SHUTDOWN | LetGo.WINDOW_CLOSED | LetGo.DAY_SPENT:
                if self._bookmark is not None:
                    await self._bookmark.keep()
                await holding.tell()
                with contextlib.suppress(Unavailable):  # then the lease runs out
                    await holding.give_back()
            case LetGo.CANCELLED:
                job = (await patiently(lambda: self._storage.record(claim.name))).job
                outcome = Outcome(job.state, None)
                if not job.state.done:
                    outcome = self._ended(job, JobState.CANCELLED, holding.report)
                with contextlib.suppress(Aborted):
                    await self._end(holding, outcome)

    async def _keep_saving_curve(self, holding: Holding) -> None:
        """Long jobs outlive the queue's memory of events; the curve so far is kept beside."""
        while True:
            await asyncio.sleep(CURVE_EVERY_S)
            await self._save_curve(holding)

    async def _put_curve(self, holding: Holding) -> None:
        claim = holding.claim
        await self._storage.put_curve(claim.name, claim.fence, holding.report.kept())

    async def _save_curve(self, holding: Holding) -> None:
        try:
            await self._put_curve(holding)
        except SmileError as error:
            get_logger().warning(
                "cannot save the curve", job=str(holding.claim.name), why=error.message
            )
