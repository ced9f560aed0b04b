"""Why jobs fail: a reason that programs know and a sentence that people can act on."""

from __future__ import annotations

import errno
from uuid import uuid4

from services.trainer.data.rows import PROBLEMS_SHOWN_MAX
from smile.errors import (
    DataCorrupted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    SmileError,
)
from smile.logs import get_logger
from smile.resources import DatasetReport, JobError

ALLOCATION_FAILED = ("can't allocate memory", "out of memory", "std::bad_alloc")


class JobFailure(Exception):
    """The job cannot succeed, and trying again would not help."""

    def __init__(self, reason: str, message: str, report: DatasetReport | None = None) -> None:
        super().__init__(message)
        self.error = JobError(reason, message, report)


def dataset_invalid(dataset: str, report: DatasetReport) -> JobFailure:
    """The failure of rows that cannot be trained on."""
    first = report.problems[0]
    where = f"row {first.row}: " if first.row else ""
    shown = min(report.problem_count, PROBLEMS_SHOWN_MAX)
    more = f" (the report has the first {shown})" if report.problem_count > shown else ""
    message = (
        f"{dataset} has {_count(report.problem_count, 'problem')} in "
        f"{_count(report.rows, 'row')}{more}; first, "
        f"{where}{first.message}"
    )
    return JobFailure("DATASET_INVALID", message, report)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def worker_lost(deaths: int) -> JobFailure:
    """The failure of a job whose workers die."""
    return JobFailure(
        "WORKER_LOST",
        f"{deaths} workers died or fell silent while they held this job, so it is not tried again; "
        "most often the machine ran out of memory: try a smaller batch_size or tokens_max, or "
        "fewer rows",
    )


def out_of_memory() -> JobFailure:
    """The failure of a job that does not fit the worker's memory."""
    return JobFailure(
        "OUT_OF_MEMORY",
        "the worker's memory does not hold this job: try a smaller batch_size or tokens_max, or "
        "fewer rows",
    )


def disk_full(what: str) -> JobFailure:
    """The failure of a job whose states a worker has no disk for."""
    return JobFailure(
        "DISK_FULL",
        f"{what}; the operator frees some, or sets SMILE_TRAINER_STATES_DISK_BYTES_MAX to less: "
        "what is not kept is computed again in every epoch",
    )


def no_room() -> JobFailure:
    """The failure of a job whose rows do not fit the worker's disk."""
    return JobFailure(
        "DISK_FULL",
        "the worker's disk is full; the operator frees some, or sets SMILE_TRAINER_FOLDER to a "
        "larger one: then train again",
    )


def loss_not_finite(what: str) -> JobFailure:
    """The failure of a job whose numbers overflowed."""
    return JobFailure(
        "LOSS_NOT_FINITE",
        f"{what}; try a learning_rate ten times smaller, a longer warm-up, or gradient_norm_max 1",
    )


def explained(error: BaseException, name: str) -> JobError:
    """The failure that `error` means for a job. What nobody foresaw gets an incident id, and its
    trace in the log."""
    if (failure := error if isinstance(error, JobFailure) else _exhausted(error)) is not None:
        return failure.error
    match error:
        case NotFound():
            resource = error.metadata.get("resource", error.message)
            return JobError(_gone(resource), f"{error.message}; it was deleted meanwhile")
        case QuotaExceeded() | FailedPrecondition() | InvalidArgument() | DataCorrupted():
            return JobError(error.reason, error.message)
    incident = uuid4().hex[:12]
    get_logger().error(
        "job failed for no known reason", job=name, incident=incident, exc_info=error
    )
    reason = error.reason if isinstance(error, SmileError) else "INTERNAL"
    return JobError(
        reason, f"an unforeseen fault; ask the platform's operator about incident {incident}"
    )


def _exhausted(error: BaseException) -> JobFailure | None:
    """The failure of a job that wants more than a worker has; None where that is not why."""
    match error:
        case MemoryError():
            return out_of_memory()
        case RuntimeError() if any(words in str(error) for words in ALLOCATION_FAILED):
            return out_of_memory()
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return no_room()
    return None


def _gone(resource: str) -> str:
    if "/datasets/" in resource:
        return "DATASET_DELETED"
    return "VERSION_DELETED" if "/versions/" in resource else "VPLM_DELETED"
