"""Every error SMILE raises on purpose.

SmileError
├── InvalidArgument          the request itself is wrong; sending it again cannot help
│   ├── InvalidSpec          a PET module, head or hyper-parameter is out of range
│   ├── InvalidName          a resource name or id is malformed
│   ├── DeadlineRequired     the call carries no deadline
│   ├── TextEmpty · TextTooLong · TooManyTexts
│   └── DatasetInvalid       rows or columns that cannot be trained on (report attached)
├── Unauthenticated          no key, a wrong key or a revoked key
├── PermissionDenied         the key is good, and not for this method
├── NotFound                 absent or another tenant's: the two look the same
├── AlreadyExists            the name is taken by a different request
├── Aborted                  a concurrent change won; read again and retry
├── FailedPrecondition       the system is not in a state for this; the message says which
├── QuotaExceeded            a limit of the tenant; names limit and value
├── Overloaded               refused early, with a time to come back
├── Unavailable              a dependency is away; safe to retry
├── DeadlineExceeded         the time ran out before the work was done
├── Cancelled                the caller went away
├── DataCorrupted            bytes that fail their digest or their schema
└── Internal                 our bug

Each class has a stable `reason` (what programs switch on); its message names the limit and the
value (what people read). `smile.rpc.status` holds the only table from these classes to gRPC codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class SmileError(Exception):
    """Root of the tree.

    Args:
        message: One sentence for people: what was wrong, the limit and the value.
        reason: A more specific stable reason than the class's own, in UPPER_SNAKE_CASE.
        metadata: Machine-readable facts (limit, value, resource), all strings.
        retry_after: Seconds to wait before trying again, where trying again can help.
        violations: `(field, description)` pairs for requests with several faults.
    """

    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.violations = tuple(violations)


class InvalidArgument(SmileError):
    """The request itself is wrong; sending it again cannot help."""

    reason = "INVALID_ARGUMENT"


class InvalidSpec(InvalidArgument):
    """A PET module, head or hyper-parameter is out of range."""

    reason = "INVALID_SPEC"


class InvalidName(InvalidArgument):
    """A resource name or id is malformed."""

    reason = "INVALID_NAME"


class DeadlineRequired(InvalidArgument):
    """The call carries no deadline."""

    reason = "DEADLINE_REQUIRED"


class TextEmpty(InvalidArgument):
    """A text has no characters."""

    reason = "TEXT_EMPTY"


class TextTooLong(InvalidArgument):
    """A text has more tokens than the backbone takes and truncation was not asked for."""

    reason = "TEXT_TOO_LONG"


class TooManyTexts(InvalidArgument):
    """More texts in one request than the limit."""

    reason = "TOO_MANY_TEXTS"


class DatasetInvalid(InvalidArgument):
    """Rows or columns that cannot be trained on."""

    reason = "DATASET_INVALID"


class Unauthenticated(SmileError):
    """No key, a wrong key or a revoked key; which of them is not told."""

    reason = "KEY_INVALID"


class PermissionDenied(SmileError):
    """The key is good, and not for this method."""

    reason = "ROLE_NOT_ALLOWED"


class NotFound(SmileError):
    """Absent, or another tenant's: the two look the same."""

    reason = "NOT_FOUND"


class AlreadyExists(SmileError):
    """The name is taken by a different request."""

    reason = "ALREADY_EXISTS"


class Aborted(SmileError):
    """A concurrent change won; read again and retry."""

    reason = "CONCURRENT_CHANGE"


class FailedPrecondition(SmileError):
    """The system is not in a state for this."""

    reason = "FAILED_PRECONDITION"


class QuotaExceeded(SmileError):
    """A limit of the tenant is reached."""

    reason = "QUOTA_EXCEEDED"


class Overloaded(SmileError):
    """Refused early because the queue is full; come back after `retry_after` seconds."""

    reason = "QUEUE_FULL"


class Unavailable(SmileError):
    """A dependency is away; safe to retry."""

    reason = "DEPENDENCY_UNAVAILABLE"


class DeadlineExceeded(SmileError):
    """The time ran out before the work was done."""

    reason = "DEADLINE_EXCEEDED"


class Cancelled(SmileError):
    """The caller went away."""

    reason = "CANCELLED"


class DataCorrupted(SmileError):
    """Bytes that fail their digest or their schema."""

    reason = "DATA_CORRUPTED"


class Internal(SmileError):
    """A bug of SMILE. The message never carries the cause, which may hold another tenant's data."""

    reason = "INTERNAL"
