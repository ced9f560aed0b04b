"""What the lanes did and when, in Chrome's trace event format: for Perfetto or chrome://tracing.

A bounded ring of spans, counters and arrows; the oldest leave first. Off, it costs one test of a
flag per call site. Spans carry numbers alone (ids, counts), so no text, name or key of a tenant is
ever in a trace. Format: "Trace Event Format" (Google, 2016), JSON object form.
"""

from __future__ import annotations

import enum
import itertools
import json
import os
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

EVENTS_MAX = 200_000  # about 40 MB of JSON
ARROWS_MAX = 10_000  # loads whose first batch is still to come
PROCESS = 1
ROWS_MAX = 1_000  # of a lane, as thread ids go
MICROSECONDS = 1e6

Json: TypeAlias = "dict[str, str | int | float | dict[str, int | str]]"


class Lane(enum.StrEnum):
    """What works beside what. Spans of one lane that overlap are drawn on several rows."""

    ADMIT = "admit"
    RESOLVE = "resolve"
    TOKENISE = "tokenise"
    LOAD = "load"
    PREPARE = "prepare"
    LOOK_UP = "look up"
    COPY = "copy"
    COMPUTE = "compute"
    ANSWER = "answer"


class Gauge(enum.StrEnum):
    """What is counted over time."""

    QUEUE_TEXTS = "queue texts"
    QUEUE_TOKENS = "queue tokens"
    IN_FLIGHT = "batches in flight"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a span was about; zeros are left out."""

    request: int = 0
    batch: int = 0
    vplms: int = 0
    texts: int = 0
    tokens: int = 0
    bytes: int = 0
    failed: int = 0
    found: int = 0


@dataclass(frozen=True, slots=True)
class _Span:
    lane: Lane
    started: float
    ended: float
    facts: Facts
    out: int = 0  # the arrow that begins at its end
    into: tuple[int, ...] = ()  # the arrows that end at its start


@dataclass(frozen=True, slots=True)
class _Level:
    gauge: Gauge
    at: float
    value: int


class Trace:
    """Records what lanes do. Any thread may call it.

    Args:
        path: Where `write` writes; None records nothing.
        events_max: Events kept.
        clock: The clock whose times callers pass in; monotonic seconds.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        events_max: int = EVENTS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on = path is not None
        self._path = path
        self._began = clock()
        self._events: deque[_Span | _Level] = deque(maxlen=events_max)
        self._arrows: OrderedDict[Hashable, int] = OrderedDict()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def span(self, lane: Lane, started: float, ended: float, facts: Facts) -> None:
        """A lane worked from `started` to `ended`."""
        if self.on:
            self._events.append(_Span(lane, started, ended, facts))

    def level(self, gauge: Gauge, at: float, value: int) -> None:
        """A counter had `value` from `at` on."""
        if self.on:
            self._events.append(_Level(gauge, at, value))

    def loaded(self, module: Hashable, started: float, ended: float, facts: Facts) -> None:
        """A module came into memory: an arrow leads from here to the first batch that uses it."""
        if not self.on:
            return
        with self._lock:
            number = next(self._numbers)
            self._arrows[module] = number
            if len(self._arrows) > ARROWS_MAX:
                self._arrows.popitem(last=False)
        self._events.append(_Span(Lane.LOAD, started, ended, facts, out=number))

    def prepared(
        self, modules: Iterable[Hashable], started: float, ended: float, facts: Facts
    ) -> None:
        """A batch that uses `modules` was prepared."""
        if not self.on:
            return
        with self._lock:
            found = [self._arrows.pop(module, 0) for module in modules]
        arrows = tuple(number for number in found if number)
        self._events.append(_Span(Lane.PREPARE, started, ended, facts, into=arrows))

    def render(self) -> str:
        """Everything kept, as one JSON document."""
        return json.dumps(
            {"traceEvents": list(self._rendered()), "displayTimeUnit": "ms"}, separators=(",", ":")
        )

    def write(self) -> Path | None:
        """Write everything kept to the path, at once and whole; None where nothing is recorded.

        Raises:
            OSError: the path cannot be written.
        """
        if self._path is None:
            return None
        text = self.render()
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return self._path

    def _rendered(self) -> Iterator[Json]:
        events = list(self._events.copy())
        spans = sorted(
            (event for event in events if isinstance(event, _Span)), key=lambda span: span.started
        )
        yield {"name": "process_name", "ph": "M", "pid": PROCESS, "args": {"name": "processor"}}
        drawn = {span.out for span in spans if span.out}
        rows: dict[Lane, list[float]] = {lane: [] for lane in Lane}
        for span in spans:
            row = _row(rows[span.lane], span)
            yield from self._slice(span, _thread(span.lane, row), drawn)
        for lane, ends in rows.items():
            for row in range(len(ends)):
                yield from _named(lane, row)
        for event in events:
            if isinstance(event, _Level):
                yield {
                    "name": event.gauge.value,
                    "ph": "C",
                    "pid": PROCESS,
                    "ts": self._us(event.at),
                    "args": {"value": event.value},
                }

    def _slice(self, span: _Span, thread: int, drawn: set[int]) -> Iterator[Json]:
        started, ended = self._us(span.started), self._us(span.ended)
        place = {"pid": PROCESS, "tid": thread}
        facts = {name: value for name, value in asdict(span.facts).items() if value}
        yield {
            "name": span.lane.value,
            "cat": "lane",
            "ph": "X",
            "ts": started,
            "dur": ended - started,
            "args": facts,
            **place,
        }
        arrow = {"name": "module", "cat": "module"}
        if span.out:
            yield {**arrow, "ph": "s", "id": span.out, "ts": ended, **place}
        for number in span.into:
            if number in drawn:  # else its beginning has left the ring
                yield {**arrow, "ph": "f", "bp": "e", "id": number, "ts": started, **place}

    def _us(self, at: float) -> float:
        return round((at - self._began) * MICROSECONDS, 1)


def _row(ends: list[float], span: _Span) -> int:
    """The first row of a lane that is free when the span starts; it is taken until its end."""
    for row, end in enumerate(ends):
        if end <= span.started:
            ends[row] = span.ended
            return row
    if len(ends) < ROWS_MAX:
        ends.append(span.ended)
    return len(ends) - 1


def _thread(lane: Lane, row: int) -> int:
    return (1 + list(Lane).index(lane)) * ROWS_MAX + row


def _named(lane: Lane, row: int) -> Iterator[Json]:
    thread = _thread(lane, row)
    name = lane.value if row == 0 else f"{lane.value} {row + 1}"
    place: Json = {"ph": "M", "pid": PROCESS, "tid": thread}
    yield {"name": "thread_name", "args": {"name": name}, **place}
    yield {"name": "thread_sort_index", "args": {"sort_index": thread}, **place}
