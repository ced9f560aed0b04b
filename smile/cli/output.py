"""What commands show: tables and sentences for people, JSON for programs."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from typing import TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smile.client.training import JobFailed
from smile.errors import SmileError
from smile.resources import Vplm

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

PIPED_WIDTH = 1_000  # characters a line where there is no screen to fit
COUNTS = ("epoch", "steps", "rows")  # metrics that count, by the end of their names
UNITS = ("B", "KB", "MB", "GB", "TB")


class Output(enum.StrEnum):
    """What standard output is for."""

    TABLE = "table"
    JSON = "json"


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or error; plain and unfolded where that is no terminal."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=PIPED_WIDTH, color_system=None)
    return made


def to_json(value: object) -> Json:
    """A value of `smile.resources` as JSON: fields by name, enums by value, times in ISO 8601."""
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, enum.StrEnum) else value
    if isinstance(value, date):  # and times, which are dates
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [to_json(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_json(value: object, *, indent: int | None = 2) -> None:
    """One JSON document on standard output; with `indent` None, one line of JSON Lines."""
    sys.stdout.write(json.dumps(to_json(value), indent=indent, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table; columns whose title ends in `>` are aligned to the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        right = column.endswith(">")
        made.add_column(column.rstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one a line."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(Text(name), Text(value))
    return made


def error_sentence(error: SmileError) -> str:
    """What went wrong, in one sentence and a reason."""
    return f"{error.message.rstrip('.')} ({error.reason})"


def error_json(error: SmileError) -> dict[str, Json]:
    """What went wrong, for programs."""
    body: dict[str, Json] = {
        "reason": error.reason,
        "message": error.message,
        "metadata": to_json(error.metadata),
        "retry_after": error.retry_after,
        "violations": [{"field": f, "description": d} for f, d in error.violations],
    }
    if isinstance(error, JobFailed):
        body["job"] = to_json(error.job)
    return {"error": body}


def short(name: str) -> str:
    """The last id of a resource name."""
    return name.rpartition("/")[2]


def pointed(vplm: Vplm, alias: str) -> str:
    """Where an alias points: `2`, or `2, and 3 for 0.1 of requests`; empty where it is not."""
    if alias not in vplm.aliases:
        return ""
    canary = vplm.canaries.get(alias)
    second = f", and {canary.version} for {canary.weight:.4g} of requests" if canary else ""
    return f"{vplm.aliases[alias]}{second}"


def size(count: int) -> str:
    """Bytes for people: `1.2 MB` (decimal units)."""
    value = float(count)
    for unit in UNITS:
        if value < 1000 or unit == UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def when(time: datetime | None) -> str:
    """A time for people, in their own zone."""
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds(start: datetime | None, end: datetime | None) -> str:
    """The time between two times."""
    return "" if start is None or end is None else f"{(end - start).total_seconds():.1f} s"


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Metrics by name: counts as they are, others with four digits after the point."""
    return [
        (name, f"{value:.0f}" if name.endswith(COUNTS) else f"{value:.4f}")
        for name, value in sorted(metrics.items())
    ]
