"""Sweeps: a parent job that trains nothing, and its trials, which are jobs like any other.

What a sweep has come to is in its durable record alone. To advance it is to look at that record and
at its trials', begin as many more as may run at a time, and write down what has changed; a trial's
name follows from the parent's and its number. So any trainer may advance any sweep at any time,
twice or at once with another, and a crash in between costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import NAMESPACE_URL, uuid5

from services.trainer.jobs import Jobs
from services.trainer.storage import Storage
from services.trainer.training.selection import LOSS
from smile.errors import Aborted, NotFound, Overloaded, QuotaExceeded, SmileError, Unavailable
from smile.logs import get_logger
from smile.names import JobName, VersionName
from smile.resources import (
    JobError,
    JobProgress,
    JobState,
    Sweep,
    TrainingJob,
    TrainingRecord,
    TrialOutcome,
)

PHASE = "trials"
_LATER = (QuotaExceeded, Overloaded, Unavailable)  # refused for now, not for good


class Sweeps:
    """Advances the sweeps that `Jobs` knows of."""

    def __init__(
        self,
        jobs: Jobs,
        storage: Storage,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._jobs = jobs
        self._storage = storage
        self._clock = clock

    async def keep_going(self, every_s: float) -> None:
        """Advance all sweeps again and again, until cancelled."""
        while True:
            for name in sorted(self._jobs.sweeps, key=str):
                try:
                    await self.advance(name)
                except (Unavailable, Aborted) as error:
                    get_logger().info("a sweep waits", job=str(name), why=error.message)
                except SmileError as error:
                    get_logger().error("a sweep cannot go on", job=str(name), why=error.message)
                except Exception:
                    get_logger().exception("advancing a sweep failed", job=str(name))
            await asyncio.sleep(every_s)

    async def advance(self, name: JobName) -> TrainingJob:
        """Bring a sweep as far as it can be now; the parent as it then is.

        Raises:
            NotFound: there is no such job.
            Aborted: it was asked to stop meanwhile; advance it again.
            Unavailable: storage or the queue is away.
        """
        record = await self._storage.record(name)
        job, sweep = record.job, record.job.sweep
        if sweep is None or job.state.done:
            self._jobs.sweeps.discard(name)
            return job
        trials = [
            (await self._storage.record(JobName.parse(one.job))).job for one in sweep.outcomes
        ]
        if sweep.stopping:
            for trial in trials:
                if not trial.state.done:
                    await self._jobs.cancel(JobName.parse(trial.name))
            error = job.error
        else:
            error = await self._begin(job, sweep, trials)
        outcomes = tuple(_outcome(trial, sweep.metric) for trial in trials)
        now = replace(
            sweep,
            outcomes=outcomes,
            best=_best(outcomes, sweep.metric),
            stopping=sweep.stopping or error is not None,
        )
        ended = sum(one.state.done for one in outcomes)
        progress = JobProgress(phase=PHASE, step=ended, steps_total=len(sweep.trials))
        job = replace(job, sweep=now, error=error, progress=progress)
        if ended == len(trials) and (now.stopping or ended == len(sweep.trials)):
            job = await self._end(job, now, trials)
        if job != record.job:
            await self._storage.update_record(TrainingRecord(job, record.fence))
        if job.state.done:
            self._jobs.sweeps.discard(name)
        return job

    async def _begin(
        self, job: TrainingJob, sweep: Sweep, trials: list[TrainingJob]
    ) -> JobError | None:
        """Submit as many more as may run; why that is refused for good, if it is."""
        name = JobName.parse(job.name)
        running = sum(not trial.state.done for trial in trials)
        while running < sweep.concurrency_max and len(trials) < len(sweep.trials):
            number = len(trials) + 1
            wanted = replace(
                job,
                sweep=None,
                hyper_parameters=sweep.trials[number - 1],
                promote_alias="",
                parent_job=job.name,
            )
            try:
                trials.append(await self._jobs.submit(name.tenant, wanted, f"{name}/{number}"))
            except _LATER as error:
                get_logger().info("a trial waits", job=job.name, trial=number, why=error.message)
                break
            except SmileError as error:
                return JobError(error.reason, f"trial {number}: {error.message}")
            running += 1
        return None

    async def _end(self, job: TrainingJob, sweep: Sweep, trials: list[TrainingJob]) -> TrainingJob:
        """The parent of trials that have all ended, as the best of them left it."""
        ended = replace(job, end_time=self._clock())
        if sweep.stopping:
            state = JobState.CANCELLED if job.error is None else JobState.FAILED
            return replace(ended, state=state)
        if not sweep.best:
            first = trials[0].error or JobError("TRIALS_CANCELLED", "they were cancelled")
            message = f"none of {len(trials)} trials succeeded; the first: {first.message}"
            return replace(ended, state=JobState.FAILED, error=JobError(first.reason, message))
        best = trials[sweep.best - 1]
        if job.promote_alias:
            request_id = str(uuid5(NAMESPACE_URL, f"{job.name}/alias"))
            try:
                version = VersionName.parse(best.version)
                await self._storage.set_alias(version, job.promote_alias, request_id)
            except NotFound as error:
                told = JobError("VPLM_DELETED", error.message)
                return replace(ended, state=JobState.FAILED, error=told)
        return replace(
            ended,
            state=JobState.SUCCEEDED,
            version=best.version,
            metrics=best.metrics,
            summary=best.summary,
        )


def _outcome(trial: TrainingJob, metric: str) -> TrialOutcome:
    value = trial.metrics.get(metric) if trial.state is JobState.SUCCEEDED else None
    return TrialOutcome(trial.name, trial.state, value, trial.version)


def _best(outcomes: tuple[TrialOutcome, ...], metric: str) -> int:
    """The number of the best trial, the first among equals; 0 where none has a value."""
    sign = -1.0 if metric == LOSS else 1.0
    valued = [(sign * one.value, -n) for n, one in enumerate(outcomes, 1) if one.value is not None]
    return -max(valued)[1] if valued else 0
