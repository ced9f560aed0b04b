"""Enum tables, times and durations: what every other part of the codec needs."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from smile import resources as r
from smile.errors import InvalidArgument, InvalidSpec
from smile.model.specs import DType, PetKind, Pooling, Projection, Task
from smile.processors import ProcessorState
from smile.v1 import processor_pb2, resources_pb2, trainer_pb2, training_summary_pb2

E = TypeVar("E", bound=enum.StrEnum)


class EnumTable(Generic[E]):
    """A two-way table between a domain enum and the protobuf enum whose values carry `prefix`."""

    def __init__(self, domain: type[E], prefix: str, pb: Any, default: E | None = None) -> None:
        self._default = default
        self._to = {member: int(pb.Value(f"{prefix}_{member.name}")) for member in domain}
        self._from = {number: member for member, number in self._to.items()}

    def to_pb(self, value: E) -> Any:
        return self._to[value]

    def from_pb(self, number: int) -> E:
        if number == 0 and self._default is not None:
            return self._default
        if number not in self._from:
            raise InvalidSpec(f"an enum value is unset or unknown: {number}")
        return self._from[number]


_pb = resources_pb2
KINDS = EnumTable(PetKind, "PET_KIND", _pb.PetKind)
TASKS = EnumTable(Task, "TASK", _pb.Task)
POOLINGS = EnumTable(Pooling, "POOLING", _pb.Pooling, Pooling.MEAN)
PROJECTIONS = EnumTable(Projection, "PROJECTION", _pb.Projection)
PRECISIONS = EnumTable(DType, "PRECISION", _pb.Precision, DType.FLOAT16)
ORIGINS = EnumTable(r.VersionOrigin, "VERSION_ORIGIN", _pb.VersionOrigin)
FORMATS = EnumTable(r.DatasetFormat, "DATASET_FORMAT", _pb.DatasetFormat)
OPTIMIZERS = EnumTable(r.Optimizer, "OPTIMIZER", trainer_pb2.Optimizer, r.Optimizer.ADAMW)
SCHEDULES = EnumTable(
    r.Schedule, "LEARNING_RATE_SCHEDULE", trainer_pb2.LearningRateSchedule, r.Schedule.LINEAR
)
CLASS_WEIGHTINGS = EnumTable(
    r.ClassWeighting, "CLASS_WEIGHTING", trainer_pb2.ClassWeighting, r.ClassWeighting.UNIFORM
)
SELECTIONS = EnumTable(r.Selection, "SELECTION", trainer_pb2.Selection, r.Selection.TASK)
TRAINING_STATES = EnumTable(
    r.TrainingStates,
    "TRAINING_STATES",
    training_summary_pb2.TrainingStates,
    r.TrainingStates.EXACT,
)
METHODS = EnumTable(r.Method, "METHOD", trainer_pb2.Method, r.Method.PET)
WHENS = EnumTable(r.When, "WHEN", trainer_pb2.When, r.When.NOW)
EXACTNESSES = EnumTable(r.Exactness, "EXACTNESS", resources_pb2.Exactness, r.Exactness.EXACT)
PROCESSOR_STATES = EnumTable(ProcessorState, "PROCESSOR_STATE", processor_pb2.ProcessorState)
STATES = EnumTable(r.JobState, "STATE", trainer_pb2.TrainingJob.State, r.JobState.QUEUED)


def exactness_to_pb(exactness: r.Exactness | None) -> resources_pb2.Exactness.ValueType:
    """None: whoever it is left to decides."""
    if exactness is None:
        return resources_pb2.EXACTNESS_UNSPECIFIED
    number: resources_pb2.Exactness.ValueType = EXACTNESSES.to_pb(exactness)
    return number


def exactness_from_pb(number: resources_pb2.Exactness.ValueType) -> r.Exactness | None:
    """See `exactness_to_pb`."""
    return EXACTNESSES.from_pb(number) if number else None


def time_to_pb(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def time_from_pb(message: Any, field: str) -> datetime | None:
    """Raises `InvalidArgument` for numbers that are no time."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    try:
        value: datetime = stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(
            f"{field} is a time of the years 1 to 9999 with 0 to 999999999 nanoseconds, got "
            f"{stamp.seconds} s and {stamp.nanos} ns",
            reason="TIME_INVALID",
        ) from error
    return value


def duration_to_pb(seconds: float) -> Duration:
    """In whole microseconds; less than none counts as none."""
    duration = Duration()
    fill_duration(duration, seconds)
    return duration


def fill_duration(duration: Duration, seconds: float) -> None:
    """The same in place, which marks it as set."""
    micros = round(seconds * 1e6) if seconds > 0 else 0
    if micros < 1_000_000:
        duration.nanos = micros * 1_000
    else:
        duration.seconds, micros = divmod(micros, 1_000_000)
        duration.nanos = micros * 1_000


def duration_from_pb(duration: Duration) -> float:
    nanos: int = duration.seconds * 1_000_000_000 + duration.nanos
    return nanos / 1_000_000_000  # of integers: rounded once
