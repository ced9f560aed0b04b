"""From the training thread to watchers: progress, events and the kept curve.

The thread writes as often as it steps; the event loop takes what has gathered at its own pace. The
lock is held for a few assignments only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Event, Lock

from services.trainer.queueing.events import JobEvent, MetricsEvent, StoredEvent
from services.trainer.training.loop_events import Encoding, EpochDone, LoopEvent, Planned, StepDone
from smile.resources import JobProgress, JobState, Metric

EVENT_METRICS_MAX = 1000  # of one event


class Stopped(Exception):
    """The job's holder asked the training thread to end."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What happened since it was last asked for."""

    progress: JobProgress
    events: tuple[StoredEvent, ...]


class Report:
    """What one attempt has to say."""

    def __init__(self, attempt: int) -> None:
        self.stop = Event()
        self.curve: list[Metric] = []
        self._attempt = attempt
        self._lock = Lock()
        self._progress = JobProgress()
        self._told = JobProgress()
        self._sent = 0  # of the curve

    @property
    def progress(self) -> JobProgress:
        """Where the attempt is."""
        return self._progress

    def phase(self, phase: str) -> None:
        """A new phase begins. Raises `Stopped`."""
        self._update(replace(self._progress, phase=phase), ())

    def go_on(self, curve: list[Metric], told: Metric | None) -> None:
        """An earlier attempt had come this far, and told it up to `told`, or nothing of it."""
        sent = 0
        if told is not None:
            last = (told.step, told.name)
            places = (at for at, m in enumerate(curve, start=1) if (m.step, m.name) == last)
            sent = next(places, len(curve))  # it had come further than what was kept
        with self._lock:
            self.curve, self._sent = curve, sent

    def hear(self, event: LoopEvent) -> None:
        """Takes an event of the training loop. Raises `Stopped`."""
        match event:
            case Encoding():
                progress = replace(self._progress, phase="encoding")
                self._update(progress, ())
            case Planned():
                progress = JobProgress(
                    "training", event.step, event.steps_total, event.epoch, event.epochs_total
                )
                self._update(progress, ())
            case StepDone(step, epoch, loss, rate):
                progress = replace(self._progress, step=step, epoch=epoch, loss=loss)
                metrics = (
                    Metric("train_loss", loss, step, epoch),
                    Metric("learning_rate", rate, step, epoch),
                )
                self._update(progress, metrics)
            case EpochDone(step, epoch, measured):
                rows = tuple(Metric(name, value, step, epoch) for name, value in measured.items())
                self._update(self._progress, rows)

    def gather(self) -> Gathered:
        """What is new, and marks it as told."""
        with self._lock:
            progress, new = self._progress, self.curve[self._sent :]
            self._sent = len(self.curve)
        events: list[StoredEvent] = [
            MetricsEvent(tuple(new[start : start + EVENT_METRICS_MAX]))
            for start in range(0, len(new), EVENT_METRICS_MAX)
        ]
        if progress != self._told:
            self._told = progress
            events.append(JobEvent(JobState.RUNNING, self._attempt, progress))
        return Gathered(progress, tuple(events))

    def untold(self, gathered: Gathered) -> None:
        """Takes back what could not be delivered, so that the next `gather` has it again."""
        count = sum(len(e.metrics) for e in gathered.events if isinstance(e, MetricsEvent))
        with self._lock:
            self._sent -= count
        self._told = JobProgress()

    def kept(self) -> list[Metric]:
        """The curve so far."""
        with self._lock:
            return list(self.curve)

    def _update(self, progress: JobProgress, metrics: tuple[Metric, ...]) -> None:
        with self._lock:
            self._progress = progress
            self.curve.extend(metrics)
        if self.stop.is_set():
            raise Stopped
