"""Following a job: its whole story, then what happens, then its end.

The story is in the queue's event stream while that lasts, and in the kept curve and the record for
ever. A resume token is `{entry}.{step}`: the last entry of the stream that was sent ('-' while
replaying a curve) and the last step seen, by which a curve can go on where a lost stream ended.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from services.trainer.queueing.events import JobEvent, MetricsEvent, StoredEvent
from services.trainer.queueing.queue import JobQueue
from services.trainer.storage import Storage
from smile.errors import InvalidArgument, Unavailable
from smile.names import JobName
from smile.resources import JobState, Metric, TrainingEvent, TrainingJob

SWEEP_LOOK_S = 1.0
WAIT_S = 5.0  # how often a silent job's record is looked at
CURVE_METRICS_MAX = 1000  # of one replayed event
END = "end"
START = "0"
_TOKEN = re.compile(r"(?P<entry>-|[0-9]{1,20}-[0-9]{1,20})\.(?P<step>[0-9]{1,12})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """How far a watcher has come."""

    entry: str = START
    step: int = 0

    @classmethod
    def parse(cls, token: str) -> Place:
        """Raises InvalidArgument (RESUME_TOKEN_INVALID)."""
        if not token:
            return cls()
        matched = _TOKEN.fullmatch(token)
        if matched is None:
            raise InvalidArgument(
                "the resume token is not one that watching a job gave",
                reason="RESUME_TOKEN_INVALID",
            )
        entry = matched["entry"]
        return cls(START if entry == "-" else entry, int(matched["step"]))

    @property
    def token(self) -> str:
        return f"{'-' if self.entry == START else self.entry}.{self.step}"


class Watcher:
    """Tells the stories of jobs."""

    def __init__(self, storage: Storage, queue: JobQueue, *, wait_s: float = WAIT_S) -> None:
        self._storage = storage
        self._queue = queue
        self._wait_s = wait_s

    async def watch(self, name: JobName, resume_token: str) -> AsyncIterator[TrainingEvent]:
        """Events after the token (all of them without one), up to the job's end.

        Raises:
            NotFound: there is no such job.
            InvalidArgument: the token is malformed.
            Unavailable: storage, or for a job that has not ended the queue, is away.
        """
        job = (await self._storage.record(name)).job
        if resume_token == END:
            return
        place = Place.parse(resume_token)
        if job.sweep is not None:
            async for event in self._sweep(name, place):
                yield event
            return
        replayed = 0
        if not await self._goes_on(name, job, place):
            async for event in self._replay(name, place):
                place = replace(place, step=max(place.step, event.metrics[-1].step))
                yield event
            replayed = place.step
        async for event in self._follow(job, place, replayed):
            yield event
        ended = (await self._storage.record(name)).job
        yield TrainingEvent(END, ended.end_time, ended)

    async def _sweep(self, name: JobName, place: Place) -> AsyncIterator[TrainingEvent]:
        """A sweep whenever its record has changed, until it ends; its steps are trials ended."""
        seen: TrainingJob | None = None
        while True:
            job = (await self._storage.record(name)).job
            if job.state.done:
                yield TrainingEvent(END, job.end_time, job)
                return
            known = seen is None and job.progress.step == place.step > 0
            if job != seen and not known:
                yield TrainingEvent(Place(START, job.progress.step).token, datetime.now(UTC), job)
            seen = job
            await asyncio.sleep(min(self._wait_s, SWEEP_LOOK_S))

    async def _goes_on(self, name: JobName, job: TrainingJob, place: Place) -> bool:
        """Whether the stream has all that follows `place`."""
        try:
            if place.entry == START:
                return place.step == 0 and await self._queue.has_first_event(name)
            return await self._queue.has_event(name, place.entry)
        except Unavailable:
            if job.state.done:
                return False
            raise

    async def _replay(self, name: JobName, place: Place) -> AsyncIterator[TrainingEvent]:
        """The kept curve after a step, cut between steps."""
        rows: list[Metric] = []
        async for metric in self._storage.curve(name):
            if metric.step <= place.step:
                continue
            if len(rows) >= CURVE_METRICS_MAX and metric.step != rows[-1].step:
                yield _measured(Place(START, rows[-1].step), rows)
                rows = []
            rows.append(metric)
        if rows:
            yield _measured(Place(START, rows[-1].step), rows)

    async def _follow(
        self, job: TrainingJob, place: Place, replayed: int
    ) -> AsyncIterator[TrainingEvent]:
        """The stream from a place until the job ends; steps up to `replayed` were seen already."""
        name = JobName.parse(job.name)
        while True:
            done = (await self._storage.record(name)).job.state.done
            try:
                page = await self._queue.events(
                    name, after=place.entry, wait_s=0 if done else self._wait_s
                )
            except Unavailable:
                if done:
                    return
                raise
            for entry, event in page:
                place = Place(entry, max(place.step, _last_step(event)))
                if isinstance(event, JobEvent) and event.state.done:
                    return
                if shown := await self._shown(job, place, event, replayed):
                    yield shown
            if done and not page:
                return

    async def _shown(
        self, job: TrainingJob, place: Place, event: StoredEvent, replayed: int
    ) -> TrainingEvent | None:
        time = datetime.fromtimestamp(int(place.entry.partition("-")[0]) / 1000, UTC)
        if isinstance(event, MetricsEvent):
            new = [metric for metric in event.metrics if metric.step > replayed]
            return replace(_measured(place, new), time=time) if new else None
        seen = replace(
            job,
            estimated_start_time=None,
            state=event.state,
            attempt=event.attempt,
            progress=event.progress,
            version="",  # the record may be from after the end
            metrics={},
            summary=None,
            error=None,
            end_time=None,
        )
        if event.state is JobState.QUEUED:
            (sighting,) = await self._queue.look([JobName.parse(job.name)])
            seen = replace(
                seen,
                queue_position=sighting.jobs_ahead,
                estimated_start_time=sighting.starts_at,
            )
        return TrainingEvent(place.token, time, seen)


def _measured(place: Place, metrics: list[Metric]) -> TrainingEvent:
    return TrainingEvent(place.token, metrics=tuple(metrics))


def _last_step(event: StoredEvent) -> int:
    return event.metrics[-1].step if isinstance(event, MetricsEvent) and event.metrics else 0
