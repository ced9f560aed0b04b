"""Events are one JSON object each, and keys never get into them."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from contextvars import copy_context
from io import StringIO
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from smile.logs import (
    REDACTED,
    LogFormat,
    LogLevel,
    configure,
    get_logger,
    redact,
    redacted_text,
    set_about,
    write_call,
    written,
)
from smile.names import TenantId
from smile.rpc.keys import KeyKind, new_key, new_tenant_key

PARTS = [new_tenant_key(TenantId("acme")), new_key(KeyKind.OPERATOR), new_key(KeyKind.SERVICE)]


@pytest.fixture
def stream() -> Iterator[StringIO]:
    handlers = logging.getLogger().handlers[:]
    level = logging.getLogger().level
    out = StringIO()
    configure("storage", LogLevel.INFO, LogFormat.JSON, stream=out)
    yield out
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def only(stream: StringIO) -> dict[str, Any]:
    (line,) = stream.getvalue().splitlines()
    event: dict[str, Any] = json.loads(line)
    return event


def test_an_event_is_one_json_object_with_its_context(stream: StringIO) -> None:
    def stored() -> None:
        set_about({"request_id": "r-1", "tenant": "acme"})
        get_logger().info("stored\nwell", bytes=3, nested={"a": [1, None, True, 2.5]})

    copy_context().run(stored)
    event = only(stream)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "stored\nwell",
        "level": "info",
        "service": "storage",
        "request_id": "r-1",
        "tenant": "acme",
        "bytes": 3,
        "nested": {"a": [1, None, True, 2.5]},
    }


def test_levels_below_are_left_out(stream: StringIO) -> None:
    get_logger().debug("quiet")
    assert stream.getvalue() == ""


def test_the_standard_librarys_loggers_go_the_same_way(stream: StringIO) -> None:
    try:
        raise ValueError(f"planted {PARTS[0].text}")
    except ValueError:
        logging.getLogger("grpc").exception("it %s", "broke")
    event = only(stream)
    assert (event["event"], event["level"], event["logger"]) == ("it broke", "error", "grpc")
    assert "ValueError: planted" in event["exception"]
    assert PARTS[0].secret not in stream.getvalue()


@pytest.mark.parametrize("parts", PARTS)
def test_planted_keys_do_not_come_out(stream: StringIO, parts: Any) -> None:
    log = get_logger()
    key = parts.text
    log.info(f"called with {key}", header=f"Bearer {key}", items=[key, {"deep": (key,)}], raw=parts)
    log.info("by name", authorization=key, service_key="anything", password="pw-1", api_key="pw-2")
    log.info("bare", value=parts.secret, data=key.encode(), cut=key[:40])
    log.info("as a key", **{"mapping": {key: 1}})
    try:
        raise RuntimeError(key)
    except RuntimeError:
        log.exception("failed", cause=RuntimeError(key))
    written = stream.getvalue()
    assert len(written.splitlines()) == 5
    for secret in (key, parts.secret, parts.secret[:20], "anything", "pw-1", "pw-2"):
        assert secret not in written
    assert written.count(REDACTED) >= 12


def test_what_is_no_key_is_kept() -> None:
    digest = "0" * 64
    for text in (digest, "smile.v1.StorageService", "smile_acme", "tenants/acme/vplms/x",
                 "8f14e45f-ceea-467f-a9f4-1b3c5d7e9f10", "operator_key_sha256"):  # fmt: skip
        assert redacted_text(text) == text
    assert redact(None, "info", {"secret_sha256": digest})["secret_sha256"] == digest


@given(before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_key_inside_any_text_is_found(before: str, after: str) -> None:
    secret = secrets.token_urlsafe(32)
    assert secret not in redacted_text(f"{before} smileop_{secret} {after}")


def test_console_lines_are_for_people_and_as_clean() -> None:
    out = StringIO()
    configure("demo", LogLevel.INFO, LogFormat.CONSOLE, stream=out)
    try:
        try:
            raise RuntimeError(PARTS[1].text)
        except RuntimeError:
            get_logger().exception("failed", key=PARTS[1].text)
    finally:
        structlog.reset_defaults()
    assert "failed" in out.getvalue()
    assert "RuntimeError" in out.getvalue()
    assert PARTS[1].secret not in out.getvalue()


def test_access_lines_hold_the_same_fields_and_no_key(stream: StringIO) -> None:
    key = PARTS[1].text
    about = {"request_id": key, "method": "/smile.v1.ProcessorService/Infer", "tenant": "acme"}
    assert written(LogLevel.INFO)
    assert not written(LogLevel.DEBUG)
    write_call(LogLevel.INFO, about, {"code": "OK", "duration_ms": 1.5})
    event = only(stream)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "call",
        "level": "info",
        "service": "storage",
        "request_id": REDACTED,
        "method": "/smile.v1.ProcessorService/Infer",
        "tenant": "acme",
        "code": "OK",
        "duration_ms": 1.5,
    }
