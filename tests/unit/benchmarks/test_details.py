"""Figures as tables: nothing that a result is about is left out for its shape."""

from __future__ import annotations

import json

import pytest

from benchmarks.details import details
from benchmarks.eviction import POLICIES, TRACES
from benchmarks.harness.json_types import Json
from benchmarks.harness.result import RESULTS, figures_of


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_numbers_and_those_one_level_down_by_name() -> None:
    text = details({"a": 1.23456, "b": {"c": 2000, "d": "x"}, "e": None, "f": [0.1] * 5})
    assert _rows(text) == [
        ["key", "value"], ["---", "---"],
        ["`a`", "1.235"], ["`b.c`", "2,000"], ["`b.d`", "x"], ["`e`", "-"],
    ]  # fmt: skip


def test_a_grid_has_its_longer_side_downwards() -> None:
    long: dict[str, dict[str, Json]] = {
        "x": {"p": 1, "q": 2},
        "y": {"p": 3, "q": 4},
        "z": {"p": 5, "q": [6, 7]},
    }
    expected = [
        ["`g`", "p", "q"], ["---"] * 3, ["x", "1", "2"], ["y", "3", "4"], ["z", "5", "6 / 7"],
    ]  # fmt: skip
    assert _rows(details({"g": long})) == expected
    wide = {inner: {outer: long[outer][inner] for outer in long} for inner in ("p", "q")}
    assert _rows(details({"g": wide})) == expected


@pytest.mark.parametrize(
    "figure",
    [
        {},
        {"x": {"p": 1}, "y": {"q": 2}},
        {"x": {"p": {"deep": 1}}},
        {"x": {"p": [1, 2, 3, 4, 5]}},
        {"x": {"p": ["a", "b"]}},
        {"x": {"p": 1}, "y": "not a row"},
    ],
)
def test_what_is_no_grid_is_left_to_the_file(figure: dict[str, Json]) -> None:
    assert "`g`" not in details({"g": figure})


def test_evictions_figures_are_all_shown() -> None:
    found = json.loads((RESULTS / "eviction.json").read_text())
    rows = _rows(details(figures_of(found)))
    traces = {row[0]: row[1:] for row in rows if "@" in row[0]}
    assert {name.partition("@")[0] for name in traces} == set(TRACES)
    assert all(len(cells) == len(POLICIES) for cells in traces.values())
    by_count, by_bytes = found["hit_rates"]["loop@0.3"]["s3_fifo"]
    assert traces["loop@0.3"][list(POLICIES).index("s3_fifo")] == f"{by_count:.4g} / {by_bytes:.4g}"
    assert ["`means`", *POLICIES] in rows
