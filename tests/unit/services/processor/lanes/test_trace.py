"""Traces in Chrome's format: whole, bounded, and without a word of anybody's."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from services.processor.lanes.trace import PROCESS, Facts, Gauge, Lane, Trace
from tests.unit.services.processor.conftest import key

PHASES = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "M": {"name", "ph", "pid", "tid", "args"},
    "C": {"name", "ph", "ts", "pid", "args"},
    "s": {"name", "cat", "ph", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "ph", "bp", "id", "ts", "pid", "tid"},
}


def rendered(trace: Trace) -> list[dict[str, Any]]:
    """The events, each checked for the fields its phase has."""
    document = json.loads(trace.render())
    assert set(document) == {"traceEvents", "displayTimeUnit"}
    for event in document["traceEvents"]:
        missing = {"tid"} if event["name"] == "process_name" else set()
        assert set(event) == PHASES[event["ph"]] - missing, event
        assert event["pid"] == PROCESS
        assert event.get("dur", 0) >= 0
    return list(document["traceEvents"])


def test_spans_lie_on_named_threads_in_the_order_of_the_lanes(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t", clock=lambda: 10.0)
    trace.span(Lane.COMPUTE, 10.5, 10.75, Facts(batch=3, vplms=2, texts=4, tokens=50))
    trace.span(Lane.ADMIT, 10.0, 10.001, Facts(request=7))
    events = rendered(trace)
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    compute = next(e for e in events if e["name"] == "compute")
    assert names[compute["tid"]] == "compute"
    assert (compute["ts"], compute["dur"]) == (500_000.0, 250_000.0)
    assert compute["args"] == {"batch": 3, "vplms": 2, "texts": 4, "tokens": 50}
    admit = next(e for e in events if e["name"] == "admit")
    assert admit["tid"] < compute["tid"]
    assert admit["args"] == {"request": 7}


def test_spans_that_overlap_get_rows_of_their_own(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t", clock=lambda: 0.0)
    for started, ended in ((0.0, 4.0), (1.0, 3.0), (2.0, 5.0), (3.0, 6.0), (4.0, 7.0)):
        trace.span(Lane.LOAD, started, ended, Facts(vplms=1))
    spans = [e for e in rendered(trace) if e["ph"] == "X"]
    rows = Counter(e["tid"] for e in spans)
    assert len(rows) == 3
    for row in rows:
        on_row = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans if e["tid"] == row)
        assert all(left[1] <= right[0] for left, right in pairwise(on_row))
    names = {e["args"]["name"] for e in rendered(trace) if e["name"] == "thread_name"}
    assert names == {"load", "load 2", "load 3"}


def test_an_arrow_leads_from_each_load_to_the_first_batch_that_used_it(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t", clock=lambda: 0.0)
    trace.loaded(key("a"), 0.0, 1.0, Facts(vplms=1, bytes=100))
    trace.loaded(key("b"), 0.0, 2.0, Facts(vplms=1, bytes=100))
    trace.prepared([key("a"), key("warm")], 3.0, 4.0, Facts(batch=1))
    trace.prepared([key("a"), key("b")], 5.0, 6.0, Facts(batch=2))
    events = rendered(trace)
    starts = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "f"}
    assert {starts[arrow]: ends[arrow] for arrow in ends} == {1e6: 3e6, 2e6: 5e6}


def test_counters_are_kept(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t", clock=lambda: 0.0)
    trace.level(Gauge.QUEUE_TEXTS, 0.5, 12)
    (level,) = [e for e in rendered(trace) if e["ph"] == "C"]
    assert (level["name"], level["ts"], level["args"]) == ("queue texts", 5e5, {"value": 12})


def test_the_oldest_leave_first_and_take_their_arrows_along(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t", events_max=3, clock=lambda: 0.0)
    trace.loaded(key("a"), 0.0, 1.0, Facts(vplms=1))
    for number in range(2, 10):
        trace.span(Lane.COMPUTE, number, number + 1, Facts(batch=number))
    trace.prepared([key("a")], 20.0, 21.0, Facts(batch=20))
    events = rendered(trace)
    assert [e["args"]["batch"] for e in events if e["ph"] == "X"] == [8, 9, 20]
    assert not [e for e in events if e["ph"] in "sf"], "half an arrow is no arrow"


def test_nothing_is_kept_or_written_when_off(tmp_path: Path) -> None:
    trace = Trace(None)
    trace.span(Lane.COMPUTE, 0.0, 1.0, Facts())
    trace.loaded(key("a"), 0.0, 1.0, Facts())
    trace.prepared([key("a")], 0.0, 1.0, Facts())
    trace.level(Gauge.IN_FLIGHT, 0.0, 1)
    assert not trace.on
    assert trace.write() is None
    assert [e["name"] for e in rendered(trace)] == ["process_name"]
    assert list(tmp_path.iterdir()) == []


def test_a_trace_is_written_whole_and_again(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    for _ in range(2):
        trace.span(Lane.ANSWER, 0.0, 1.0, Facts(texts=1))
        assert trace.write() == tmp_path / "trace.json"
        assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_a_path_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        Trace(tmp_path / "absent" / "trace.json").write()
