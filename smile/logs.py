"""Logs: one JSON object (or one console line) per event, on standard error.

Fields every event of a request carries: service, request_id, tenant, method; its access line adds
code and duration_ms. Request bodies are never logged, and the last processor blanks out anything
that looks like a key, tracebacks included. Access lines, of which every call has one, are rendered
at once instead of passing through all processors: they hold nothing that was not checked before.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

REDACTED = "[redacted]"
_SECRET_TEXT = re.compile(
    r"(?<![A-Za-z0-9])smile(?:op|svc)?_[A-Za-z0-9_-]{12,}"  # our keys, whole or cut short
    r"|(?i:bearer)\s+[^\s'\"]+"
    r"|(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"  # a bare secret: 32 bytes in base64url
    r"|(?<=://)[^\s/@'\"]*:[^\s/@'\"]+(?=@)"  # user and password of a URL
)
_SECRET_FIELDS = re.compile(
    r"(?i)authorization|password|passwd|secret(?!_?sha)|(?:api|service|operator)_?key$"
)
_DEPTH_MAX = 6
_about: ContextVar[Mapping[str, str] | None] = ContextVar("smile_log_about", default=None)
_ENCODER = json.JSONEncoder()
SECRET_CHARS_MIN = 6  # of the shortest text that may hold one: `://:x@`


class LogFormat(StrEnum):
    """How events are written."""

    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """The least severe events that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """The level as the standard library counts it."""
        return _NUMBERS[self]


_NUMBERS = {level: logging.getLevelNamesMapping()[level.value.upper()] for level in LogLevel}


@dataclass(frozen=True, slots=True)
class _Lines:
    """Where access lines go, and from which level on."""

    service: str
    level: LogLevel
    render: Callable[[EventDict], str]
    out: TextIO

    def write(self, level: LogLevel, event: EventDict) -> None:
        now = datetime.now(UTC).isoformat()
        event.update(level=level.value, timestamp=f"{now[:-6]}Z", service=self.service)
        self.out.write(f"{self.render(event)}\n")
        self.out.flush()


_lines: _Lines | None = None


def configure(
    service: str, level: LogLevel, format: LogFormat, *, stream: TextIO | None = None
) -> None:
    """Set up logging of this process, the standard library's included; the last call counts."""
    global _lines  # noqa: PLW0603 -- as structlog's own configuration
    out = sys.stderr if stream is None else stream
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if format is LogFormat.JSON
        else structlog.dev.ConsoleRenderer(
            colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )

    def add_service(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    structlog.configure(
        processors=[
            _add_about,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_service,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            redact,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level.number),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    whole = (
        _ENCODER.encode if format is LogFormat.JSON else lambda event: str(render(None, "", event))
    )
    _lines = _Lines(service, level, whole, out)
    root = logging.getLogger()
    root.handlers[:] = [
        kept for kept in root.handlers if type(kept) not in (_Bridge, logging.StreamHandler)
    ]
    root.addHandler(_Bridge())
    root.setLevel(max(level.number, logging.INFO))


def get_logger() -> FilteringBoundLogger:
    """The logger of this process; it may be taken before `configure`."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def set_about(fields: Mapping[str, str]) -> None:
    """From now on events of this task, and of what it starts, carry `fields`, as they are then."""
    _about.set(fields)


def written(level: LogLevel) -> bool:
    """Whether access lines of this level are written: not before `configure`."""
    return _lines is not None and _NUMBERS[level] >= _NUMBERS[_lines.level]


def write_call(
    level: LogLevel, about: Mapping[str, str], fields: Mapping[str, str | float]
) -> None:
    """The access line of a call. Only the request's id may be of the caller's making."""
    if _lines is not None:
        request_id = redacted_text(about["request_id"])
        _lines.write(level, {"event": "call", **about, "request_id": request_id, **fields})


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Blank out keys and secrets in every field, at any depth, in names and in values."""
    return {_name(key): _field(key, value, 0) for key, value in event.items()}


def redacted_text(text: str) -> str:
    """`text` with everything that looks like a key blanked out."""
    return _SECRET_TEXT.sub(REDACTED, text)


def _add_about(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {**(_about.get() or {}), **event}


@lru_cache(maxsize=1_024)  # fields have few names, and every event has them
def _name(key: str) -> str:
    return str(_clean(key, 0))


@lru_cache(maxsize=1_024)
def _secret(key: str) -> bool:
    return _SECRET_FIELDS.search(key) is not None


def _field(key: object, value: object, depth: int) -> object:
    if isinstance(key, str) and _secret(key):
        return REDACTED
    return _clean(value, depth)


def _clean(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if len(value) < SECRET_CHARS_MIN else redacted_text(value)
    if depth < _DEPTH_MAX:
        if isinstance(value, Mapping):
            return {
                str(_clean(key, depth)): _field(key, item, depth + 1) for key, item in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [_clean(item, depth + 1) for item in value]
    return redacted_text(repr(value))


class _Bridge(logging.Handler):
    """Sends records of the standard library's loggers through the same processors."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger().log(
            record.levelno,
            record.getMessage(),
            logger=record.name,
            exc_info=record.exc_info or None,
        )
