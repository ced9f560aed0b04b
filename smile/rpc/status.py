"""The only table between SMILE's errors and gRPC statuses, in both directions.

On the wire an error is a `google.rpc.Status` with `ErrorInfo` (reason, domain, metadata),
`BadRequest` where fields were wrong and `RetryInfo` where coming back later helps. Statuses travel
in HTTP/2 trailers, which clients bound at 8 KiB, so everything here is cut to fit instead of
failing to arrive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from smile import errors
from smile.errors import SmileError

DOMAIN = "smile.dev"
DETAILS_KEY = "grpc-status-details-bin"
MESSAGE_BYTES_MAX = 1_000
DETAIL_BYTES_MAX = 400
STATUS_BYTES_MAX = 5_000
# ErrorInfo metadata: the class's own reason, where the error has a more specific one.
_CLASS_KEY = "smile-class"

CODES: dict[type[SmileError], grpc.StatusCode] = {
    SmileError: grpc.StatusCode.INTERNAL,
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidSpec: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidName: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DeadlineRequired: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TextEmpty: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TextTooLong: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooManyTexts: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DatasetInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.DataCorrupted: grpc.StatusCode.DATA_LOSS,
    errors.Internal: grpc.StatusCode.INTERNAL,
}

# What a status without our ErrorInfo means: it was made by gRPC itself, a proxy or another server.
CLASSES: dict[grpc.StatusCode, type[SmileError]] = {
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNKNOWN: errors.Internal,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.ABORTED: errors.Aborted,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgument,
    grpc.StatusCode.UNIMPLEMENTED: errors.FailedPrecondition,
    grpc.StatusCode.INTERNAL: errors.Internal,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DATA_LOSS: errors.DataCorrupted,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
}
_NEAREST: dict[type[SmileError], type[SmileError]] = {}  # in the table, by class; as they come up
_BY_VALUE: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_BY_REASON: dict[str, type[SmileError]] = {
    cls.reason: cls for cls in CODES if cls is not SmileError
}
# What grpc.aio puts in place of the server's status where a stream is refused while the client is
# writing to it (grpc/grpc issue 36066). Asking again, under the same request id, gives the answer.
_ANSWER_LOST = "Internal error from Core"
_OVERSIZED = re.compile(r"larger than max \((\d+) vs\.? (\d+)\)")


def code_of(error: SmileError) -> grpc.StatusCode:
    """The code of the nearest class in the table, for subclasses made elsewhere."""
    return CODES[_listed(type(error))]


def to_status(error: SmileError) -> status_pb2.Status:
    """`error` as a `google.rpc.Status` of at most about `STATUS_BYTES_MAX` bytes."""
    status = status_pb2.Status(
        code=code_of(error).value[0], message=_cut(error.message, MESSAGE_BYTES_MAX)
    )
    left = STATUS_BYTES_MAX - status.ByteSize()
    for detail in _details(error, left):
        status.details.add().Pack(detail)
    return status


def to_trailer(status: status_pb2.Status) -> tuple[str, bytes]:
    """The trailing metadata that carries an error besides its code and message."""
    return DETAILS_KEY, status.SerializeToString()


def from_rpc_error(error: grpc.aio.AioRpcError) -> SmileError:
    """The error that the other side raised, as the most specific class known here."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            with suppress(DecodeError):  # a proxy's bytes, say: the code still tells something
                return from_status(status_pb2.Status.FromString(value))
    details = error.details() or ""
    if oversized := _OVERSIZED.search(details):
        return errors.InvalidArgument(
            f"a message is at most {oversized[2]} bytes, got {oversized[1]}",
            reason="MESSAGE_TOO_LARGE",
            metadata={"limit": oversized[2], "value": oversized[1]},
        )
    code = error.code()
    if code is grpc.StatusCode.INTERNAL and details == _ANSWER_LOST:
        return errors.Unavailable(
            "the call ended while it was being sent, and the answer was lost", reason="ANSWER_LOST"
        )
    return CLASSES[code](details or f"the call ended with {code.name}")


@contextmanager
def calling() -> Iterator[None]:
    """Turn gRPC's errors inside into `smile.errors`. Serves `await` and `async for` alike."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def from_status(status: status_pb2.Status) -> SmileError:
    """`status` as an error; details that are not ours are left out."""
    info = error_details_pb2.ErrorInfo()
    violations: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            violations = tuple(_violations(detail))
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry_after = _retry_after(detail)
    metadata = dict(info.metadata) if info.domain == DOMAIN else {}
    reason = info.reason if info.domain == DOMAIN else None
    cls = _class(status.code, metadata.pop(_CLASS_KEY, reason))
    return cls(
        status.message,
        reason=reason,
        metadata=metadata,
        retry_after=retry_after,
        violations=violations,
    )


def _class(code: int, class_reason: str | None) -> type[SmileError]:
    by_code = _BY_VALUE.get(code, grpc.StatusCode.UNKNOWN)
    cls = _BY_REASON.get(class_reason or "")
    if cls is not None and CODES[cls] == by_code:
        return cls
    return CLASSES.get(by_code, errors.Internal)


def _listed(cls: type[SmileError]) -> type[SmileError]:
    if (known := _NEAREST.get(cls)) is not None:
        return known
    found = next(base for base in cls.__mro__ if issubclass(base, SmileError) and base in CODES)
    return _NEAREST.setdefault(cls, found)


def _details(
    error: SmileError, bytes_left: int
) -> Iterator[
    error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo
]:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    class_reason = _listed(type(error)).reason
    if class_reason != error.reason:
        info.metadata[_CLASS_KEY] = class_reason
    for key, value in error.metadata.items():
        shown = _cut(value, DETAIL_BYTES_MAX)
        if info.ByteSize() + len(key) + 3 * len(shown) < bytes_left // 2:
            info.metadata[key] = shown
    yield info
    if error.retry_after is not None:
        seconds, nanos = divmod(round(max(error.retry_after, 0.0) * 1e9), 1_000_000_000)
        delay = duration_pb2.Duration(seconds=seconds, nanos=nanos)
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    if error.violations:
        yield _bad_request(error.violations, bytes_left - info.ByteSize() - 300)


def _bad_request(
    violations: tuple[tuple[str, str], ...], bytes_left: int
) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    for number, (field, description) in enumerate(violations):
        request.field_violations.add(
            field=_cut(field, DETAIL_BYTES_MAX), description=_cut(description, DETAIL_BYTES_MAX)
        )
        if request.ByteSize() > bytes_left:
            del request.field_violations[-1]
            request.field_violations.add(
                description=f"and {len(violations) - number} more violations"
            )
            break
    return request


def _violations(detail: any_pb2.Any) -> Iterator[tuple[str, str]]:
    request = error_details_pb2.BadRequest()
    detail.Unpack(request)
    for violation in request.field_violations:
        yield violation.field, violation.description


def _retry_after(detail: any_pb2.Any) -> float:
    info = error_details_pb2.RetryInfo()
    detail.Unpack(info)
    nanoseconds: int = info.retry_delay.ToNanoseconds()
    return nanoseconds / 1e9


def _cut(text: str, bytes_max: int) -> str:
    """`text` without lone surrogates and in at most `bytes_max` bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    if len(data) <= bytes_max:
        return data.decode("utf-8")
    return data[: bytes_max - 3].decode("utf-8", "ignore") + "..."
