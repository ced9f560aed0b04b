"""The one table between errors and statuses: complete, and true in both directions."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from smile import errors
from smile.errors import SmileError
from smile.rpc.status import (
    CLASSES,
    CODES,
    DETAILS_KEY,
    DOMAIN,
    STATUS_BYTES_MAX,
    calling,
    code_of,
    from_rpc_error,
    from_status,
    to_status,
    to_trailer,
)


def tree(cls: type[SmileError] = SmileError) -> Iterator[type[SmileError]]:
    """Every class of `smile.errors`; tests elsewhere may have made others."""
    if cls.__module__ == errors.__name__:
        yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


def as_rpc_error(error: SmileError) -> grpc.aio.AioRpcError:
    """What a client gets when a server aborts with `error`."""
    return grpc.aio.AioRpcError(
        code_of(error),
        grpc.aio.Metadata(),
        grpc.aio.Metadata(to_trailer(to_status(error))),
        to_status(error).message,
    )


def test_the_table_has_every_class() -> None:
    assert set(CODES) == set(tree())


def test_reasons_are_unique() -> None:
    leaves = [cls for cls in tree() if cls is not SmileError]
    assert len({cls.reason for cls in leaves}) == len(leaves)


def test_every_code_but_ok_means_something() -> None:
    assert set(CLASSES) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    for code, cls in CLASSES.items():
        same_code = CODES[cls] == code
        assert same_code or code.name in {"UNKNOWN", "OUT_OF_RANGE", "UNIMPLEMENTED"}


@pytest.mark.parametrize("cls", [cls for cls in tree() if cls is not SmileError])
def test_every_class_comes_back_as_itself(cls: type[SmileError]) -> None:
    for reason in (None, "MORE_SPECIFIC"):
        error = cls(
            "limit 3, got 4",
            reason=reason,
            metadata={"limit": "3", "value": "4"},
            retry_after=1.25,
            violations=[("texts[3]", "is empty"), ("", "too many")],
        )
        back = from_rpc_error(as_rpc_error(error))
        assert type(back) is cls
        assert back.message == error.message
        assert back.reason == (reason or cls.reason)
        assert back.metadata == error.metadata
        assert back.retry_after == error.retry_after
        assert back.violations == error.violations


TEXT = st.text(max_size=60)


@given(
    message=TEXT,
    metadata=st.dictionaries(st.text(min_size=1, max_size=20), TEXT, max_size=4),
    retry_after=st.none() | st.floats(0, 1e6),
    violations=st.lists(st.tuples(TEXT, TEXT), max_size=4),
)
def test_errors_of_any_text_round_trip(
    message: str,
    metadata: dict[str, str],
    retry_after: float | None,
    violations: list[tuple[str, str]],
) -> None:
    error = errors.QuotaExceeded(
        message, metadata=metadata, retry_after=retry_after, violations=violations
    )
    back = from_status(status_pb2.Status.FromString(to_status(error).SerializeToString()))
    assert type(back) is errors.QuotaExceeded
    assert (back.message, back.metadata) == (message, metadata)
    assert back.violations == tuple(violations)
    assert back.retry_after == (
        None if retry_after is None else pytest.approx(retry_after, abs=1e-9)
    )


@given(
    message=st.text(max_size=5_000) | st.just("\ud800 lone surrogate"),
    values=st.lists(st.text(max_size=3_000), max_size=30),
)
def test_a_status_always_fits_in_trailers(message: str, values: list[str]) -> None:
    error = errors.DatasetInvalid(
        message,
        metadata={f"key-{number}": value for number, value in enumerate(values)},
        violations=[(value, value) for value in values] * 20,
    )
    status = to_status(error)
    assert status.ByteSize() <= STATUS_BYTES_MAX + 200
    assert type(from_status(status)) is errors.DatasetInvalid


def test_violations_that_do_not_fit_are_counted() -> None:
    violations = [(f"rows[{number}]", "x" * 100) for number in range(500)]
    back = from_status(to_status(errors.DatasetInvalid("bad", violations=violations)))
    shown = len(back.violations) - 1
    assert back.violations[:shown] == tuple(violations[:shown])
    assert back.violations[-1] == ("", f"and {500 - shown} more violations")


def test_subclasses_made_elsewhere_go_as_their_nearest_kin() -> None:
    class Local(errors.NotFound):
        """A class the table has not."""

    back = from_rpc_error(as_rpc_error(Local("gone")))
    assert type(back) is errors.NotFound
    assert code_of(Local("gone")) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]])
def test_statuses_without_our_details_are_understood(code: grpc.StatusCode) -> None:
    back = from_rpc_error(
        grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "connection refused")
    )
    assert type(back) is CLASSES[code]
    assert back.message == "connection refused"
    silent = grpc.aio.AioRpcError(code)
    assert code.name in from_rpc_error(silent).message


def test_details_of_others_and_contradictions_are_not_believed() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="gone")
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason="KEY_INVALID", domain="example.com", metadata={"a": "b"})
    )
    assert type(from_status(status)) is errors.NotFound
    assert from_status(status).metadata == {}
    del status.details[:]
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="KEY_INVALID", domain=DOMAIN))
    assert type(from_status(status)) is errors.NotFound, "the code decides between classes"


def test_bytes_that_are_no_status_fall_back_to_the_code() -> None:
    broken = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND,
        grpc.aio.Metadata(),
        grpc.aio.Metadata((DETAILS_KEY, b"\xff\xff")),
        "gone",
    )
    assert type(from_rpc_error(broken)) is errors.NotFound


def test_calling_maps_grpc_errors_and_nothing_else() -> None:
    with pytest.raises(errors.Unavailable), calling():
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, details="away")
    with pytest.raises(KeyError), calling():
        raise KeyError("mine")
