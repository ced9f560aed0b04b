"""Training jobs: what the trainer answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Unpack

from smile import codec
from smile.client import options as o
from smile.client.calls import (
    PAGE_ROWS,
    READ_TIMEOUT_S,
    WRITE_TIMEOUT_S,
    Calls,
    asking,
    every,
    new_request_id,
)
from smile.client.retry import Backoff
from smile.client.trials import Trial
from smile.errors import Cancelled, DeadlineExceeded, SmileError, Unavailable
from smile.names import VplmName
from smile.resources import (
    ColumnMapping,
    DatasetReport,
    JobState,
    Sweep,
    TrainingEvent,
    TrainingJob,
)
from smile.v1 import trainer_pb2

WATCH_TIMEOUT_S = 3600.0  # of one stream; a watch goes on with the next
AWAY_S_MAX = 60.0  # how long a watch waits for a trainer that does not answer
VALIDATE_TIMEOUT_S = 120.0
_LOST = (Unavailable, DeadlineExceeded, Cancelled)
_BACKOFF = Backoff(first_s=0.2, wait_s_max=3.0)


class JobFailed(SmileError):
    """A training job ended without a new version.

    `job` is the job as it ended; `reason` its own error's, or `JOB_CANCELLED`.
    """

    reason = "JOB_FAILED"

    def __init__(self, job: TrainingJob) -> None:
        if job.error is not None:
            message, reason = job.error.message, job.error.reason
        else:
            message, reason = "it ended without a reason", "JOB_CANCELLED"
        told = f"was {job.state}" if job.state is JobState.CANCELLED else f"failed: {message}"
        super().__init__(f"{job.name} {told}", reason=reason, metadata={"job": job.name})
        self.job = job

    @property
    def report(self) -> DatasetReport | None:
        """What was wrong with the dataset, row by row, where that was why."""
        return self.job.error.dataset_report if self.job.error else None


class _Patience:
    """How long a watch goes on without an answer: `AWAY_S_MAX`, where streams that lived that long
    count as answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._away_since: float | None = None
        self._failures = 0

    def stream_begins(self) -> None:
        self._began = self._clock()

    def answered(self) -> None:
        self._away_since, self._failures = None, 0

    def wait_s(self, lost: SmileError) -> float:
        """Seconds to wait before the next try. Raises `lost` where patience is at its end."""
        now = self._clock()
        if now - self._began >= AWAY_S_MAX:
            self.answered()
        self._failures += 1
        if self._away_since is None:
            self._away_since = now
        elif now - self._away_since > AWAY_S_MAX:
            raise lost
        return _BACKOFF.wait_s(self._failures, lost)


class TrainingCalls(Calls):
    """Starting, following and stopping training jobs."""

    async def validate_dataset(
        self,
        dataset: str,
        vplm: str,
        *,
        columns: ColumnMapping | None = None,
        timeout: float | None = None,
    ) -> DatasetReport:
        """Reads a dataset as a job for this vPLM would and reports every problem by row."""
        with asking():
            request = trainer_pb2.ValidateDatasetRequest(
                dataset=str(self._scope.dataset(dataset)),
                vplm=str(self._scope.vplm(vplm)),
                columns=codec.columns_to_pb(columns or ColumnMapping()),
            )
            report = await self._connection.trainer.ValidateDataset(
                request, timeout=timeout or VALIDATE_TIMEOUT_S
            )
        return codec.report_from_pb(report)

    async def train(
        self, vplm: str, dataset: str, **options: Unpack[o.TrainOptions]
    ) -> TrainingJob:
        """Queues a job that trains a vPLM on a dataset; it is durable when this returns.

        Keywords: `TrainOptions`, which are columns, base version and the hyper-parameters.

        Raises:
            InvalidSpec: a hyper-parameter is unknown or out of range.
            NotFound: there is no such vPLM, dataset or base version.
            QuotaExceeded: too many jobs of yours are queued.
        """
        o.known(options, o.TrainOptions)
        return await self._create(self._wanted(vplm, dataset, options), options)

    async def sweep(
        self,
        vplm: str,
        dataset: str,
        trials: Sequence[Trial],
        *,
        concurrency_max: int = 2,
        **options: Unpack[o.TrainOptions],
    ) -> TrainingJob:
        """Queues a sweep: a training for each of `trials`, as many at a time as `concurrency_max`.

        The job it gives is their parent: it can be watched and cancelled as any other, trains
        nothing itself, and ends with the best trial's version, to which `promote_alias` moves.

        Args:
            trials: Hyper-parameters by name, in place of those in `options`; `smile.grid` makes all
                combinations. All must select by the same metric, on validation rows.

        Raises:
            InvalidSpec: a hyper-parameter of a trial is unknown or out of range.
            NotFound: there is no such vPLM, dataset or base version.
            QuotaExceeded: too many sweeps of yours have not ended.
        """
        o.known(options, o.TrainOptions)
        job = self._wanted(vplm, dataset, options)
        values = tuple(o.trial(options, trial) for trial in trials)
        return await self._create(replace(job, sweep=Sweep(values, concurrency_max)), options)

    def _wanted(self, vplm: str, dataset: str, options: o.TrainOptions) -> TrainingJob:
        validation = options.get("validation_dataset", "")
        return o.job(
            str(self._scope.vplm(vplm)),
            str(self._scope.dataset(dataset)),
            str(self._scope.dataset(validation)) if validation else "",
            options,
        )

    async def _create(self, job: TrainingJob, options: o.TrainOptions) -> TrainingJob:
        with asking():
            request = trainer_pb2.CreateTrainingJobRequest(
                parent=str(self._scope.parent(VplmName.parse(job.vplm).tenant)),
                training_job=codec.job_to_pb(job),
                validate_only=options.get("validate_only", False),
                request_id=options.get("request_id") or new_request_id(),
            )
            created = await self._connection.trainer.CreateTrainingJob(
                request, timeout=options.get("timeout", WRITE_TIMEOUT_S)
            )
        return codec.job_from_pb(created)

    async def job(self, job: str | TrainingJob, *, timeout: float | None = None) -> TrainingJob:
        """One training job. Raises `NotFound`."""
        with asking():
            request = trainer_pb2.GetTrainingJobRequest(name=self._job_name(job))
            found = await self._connection.trainer.GetTrainingJob(
                request, timeout=timeout or READ_TIMEOUT_S
            )
        return codec.job_from_pb(found)

    async def jobs(
        self, *, page_size: int = PAGE_ROWS, timeout: float | None = None
    ) -> AsyncGenerator[TrainingJob, None]:
        """One's training jobs, newest first, read page by page; `timeout` is for a page."""
        parent = str(self._scope.parent())

        async def page(token: str) -> tuple[list[TrainingJob], str]:
            with asking():
                response = await self._connection.trainer.ListTrainingJobs(
                    trainer_pb2.ListTrainingJobsRequest(
                        parent=parent, page_size=page_size, page_token=token
                    ),
                    timeout=timeout or READ_TIMEOUT_S,
                )
            return [codec.job_from_pb(j) for j in response.training_jobs], response.next_page_token

        async for job in every(page):
            yield job

    async def cancel(self, job: str | TrainingJob, *, timeout: float | None = None) -> TrainingJob:
        """Asks a job to stop; a running one stops within a few steps. After its end, nothing."""
        with asking():
            request = trainer_pb2.CancelTrainingJobRequest(
                name=self._job_name(job), request_id=new_request_id()
            )
            stopped = await self._connection.trainer.CancelTrainingJob(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return codec.job_from_pb(stopped)

    async def watch(
        self, job: str | TrainingJob, *, resume_token: str = ""
    ) -> AsyncGenerator[TrainingEvent, None]:
        """The events of a job, from its start or from after `resume_token`, until it ends.

        A lost connection is taken up again where it was; after 60 s without an answer the last
        error is raised.
        """
        name = self._job_name(job)
        patience = _Patience(asyncio.get_running_loop().time)
        while True:
            patience.stream_begins()
            try:
                async with aclosing(self._events(name, resume_token)) as events:
                    async for event in events:
                        resume_token = event.resume_token
                        patience.answered()
                        yield event
                        if event.job is not None and event.job.state.done:
                            return
                if (await self.job(name)).state.done:
                    return
                lost: SmileError = Unavailable(f"the trainer ended the watch of {name} too early")
            except _LOST as error:
                lost = error
            await asyncio.sleep(patience.wait_s(lost))

    async def wait(
        self,
        job: str | TrainingJob,
        *,
        on_event: Callable[[TrainingEvent], None] | None = None,
        timeout: float | None = None,
    ) -> TrainingJob:
        """The job once it has ended well; `on_event` hears every event until then.

        Raises:
            JobFailed: it failed or was cancelled.
            DeadlineExceeded: it has not ended after `timeout` seconds (default: no limit). The job
                goes on.
        """
        try:
            async with asyncio.timeout(timeout):
                async with aclosing(self.watch(job)) as events:
                    async for event in events:
                        if on_event is not None:
                            on_event(event)
                ended = await self.job(job)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{self._job_name(job)} has not ended after {timeout} s"
            ) from error
        if ended.state is not JobState.SUCCEEDED:
            raise JobFailed(ended)
        return ended

    async def _events(self, name: str, resume_token: str) -> AsyncGenerator[TrainingEvent, None]:
        request = trainer_pb2.WatchTrainingJobRequest(name=name, resume_token=resume_token)
        call = self._connection.trainer.WatchTrainingJob(request, timeout=WATCH_TIMEOUT_S)
        try:
            with asking():
                async for response in call:
                    yield codec.event_from_pb(response)
        finally:
            call.cancel()

    def _job_name(self, job: str | TrainingJob) -> str:
        return job.name if isinstance(job, TrainingJob) else str(self._scope.job(job))
