"""What watchers of a job see, and its form in the queue's event stream: compact JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TypeAlias

from smile.resources import JobProgress, JobState, Metric


@dataclass(frozen=True, slots=True)
class JobEvent:
    """The job changed: a state, or where it is in a phase."""

    state: JobState
    attempt: int
    progress: JobProgress = field(default_factory=JobProgress)


@dataclass(frozen=True, slots=True)
class MetricsEvent:
    """Values measured at one or more steps, in the order of steps."""

    metrics: tuple[Metric, ...]


StoredEvent: TypeAlias = JobEvent | MetricsEvent


def encode_event(event: StoredEvent) -> str:
    """The event as text."""
    if isinstance(event, MetricsEvent):
        rows = [[m.name, _finite(m.value), m.step, m.epoch] for m in event.metrics]
        return json.dumps({"metrics": rows}, separators=(",", ":"))
    progress = [getattr(event.progress, name) for name in JobProgress.__slots__]
    body = {"state": event.state, "attempt": event.attempt, "progress": progress}
    return json.dumps(body, separators=(",", ":"))


def decode_event(text: str) -> StoredEvent:
    """The event that `encode_event` made `text` of."""
    body = json.loads(text)
    if "metrics" in body:
        return MetricsEvent(
            tuple(
                Metric(name, math.nan if value is None else value, step, epoch)
                for name, value, step, epoch in body["metrics"]
            )
        )
    return JobEvent(JobState(body["state"]), body["attempt"], JobProgress(*body["progress"]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
