"""Exit codes: the one table from errors to what a shell sees."""

from __future__ import annotations

import enum

from smile import errors
from smile.client.training import JobFailed
from smile.errors import SmileError


class Exit(enum.IntEnum):
    """How `smile` ends."""

    OK = 0
    INTERNAL = 1  # a bug, or data that does not match its digest; also No to a question
    USAGE = 2  # the command line itself is wrong
    INVALID = 3  # an argument, text or file is wrong
    NOT_FOUND = 4
    DENIED = 5  # no key, a wrong or revoked key, or not for this key
    CONFLICT = 6  # exists already, changed meanwhile, or not in a state for this
    LIMIT = 7  # quota reached or queue full
    UNAVAILABLE = 8  # a service is away
    DEADLINE = 9  # the time ran out
    JOB_FAILED = 10
    INTERRUPTED = 130  # Ctrl-C


EXITS: dict[type[SmileError], Exit] = {
    SmileError: Exit.INTERNAL,
    errors.InvalidArgument: Exit.INVALID,
    errors.InvalidSpec: Exit.INVALID,
    errors.InvalidName: Exit.INVALID,
    errors.DeadlineRequired: Exit.INVALID,
    errors.TextEmpty: Exit.INVALID,
    errors.TextTooLong: Exit.INVALID,
    errors.TooManyTexts: Exit.INVALID,
    errors.DatasetInvalid: Exit.INVALID,
    errors.Unauthenticated: Exit.DENIED,
    errors.PermissionDenied: Exit.DENIED,
    errors.NotFound: Exit.NOT_FOUND,
    errors.AlreadyExists: Exit.CONFLICT,
    errors.Aborted: Exit.CONFLICT,
    errors.FailedPrecondition: Exit.CONFLICT,
    errors.QuotaExceeded: Exit.LIMIT,
    errors.Overloaded: Exit.LIMIT,
    errors.Unavailable: Exit.UNAVAILABLE,
    errors.DeadlineExceeded: Exit.DEADLINE,
    errors.Cancelled: Exit.INTERRUPTED,
    errors.DataCorrupted: Exit.INTERNAL,
    errors.Internal: Exit.INTERNAL,
    JobFailed: Exit.JOB_FAILED,
}


def exit_of(error: SmileError) -> Exit:
    """The exit code of the nearest class in the table."""
    return next(EXITS[cls] for cls in type(error).__mro__ if cls in EXITS)
