"""A benchmark's figures as tables in Markdown: numbers by name, and grids of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from benchmarks.harness.json_types import Json, number

ROWS_MAX = 40
CELL_NUMBERS_MAX = 3


Grid: TypeAlias = tuple[tuple[str, ...], list[tuple[str, ...]]]


def details(figures: Mapping[str, Json]) -> str:
    """Numbers and words by name, those one level down as `outer.inner`; then a grid for each figure
    that is one. Longer lists, of repetitions say, are left to the result's file.
    """
    scalars = _scalars(figures)
    tables: list[Grid] = [(("key", "value"), scalars)] if scalars else []
    tables += [grid for name, value in figures.items() if (grid := _grid(name, value)) is not None]
    return "\n\n".join(table(columns, rows) for columns, rows in tables)


def shown(value: Json) -> str:
    """A number with four digits, or as it is."""
    if value is None:
        return "-"
    found = number(value)
    if found is None:
        return str(value)
    return f"{found:,.0f}" if abs(found) >= 1_000 else f"{found:.4g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _scalars(figures: Mapping[str, Json]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for key, value in figures.items():
        if isinstance(value, Mapping):
            inner = ((f"{key}.{name}", item) for name, item in value.items())
            rows += [(f"`{name}`", shown(item)) for name, item in inner if _is_scalar(item)]
        elif _is_scalar(value):
            rows.append((f"`{key}`", shown(value)))
    return rows[:ROWS_MAX]


def _grid(name: str, value: Json) -> Grid | None:
    """Titles and rows of a figure that has the same keys in each of its mappings, or a few numbers
    under each of its own; the longer side goes downwards. None: it is not of that kind.
    """
    if not isinstance(value, Mapping) or not value:
        return None
    if all(_is_few(item) for item in value.values()):
        return (f"`{name}`", *map(str, value)), [("", *map(_cell, value.values()))]
    cells = {
        (outer, inner): item
        for outer, row in value.items()
        if isinstance(row, Mapping)
        for inner, item in row.items()
    }
    inners = list(dict.fromkeys(inner for _, inner in cells))
    if not cells or len(cells) != len(value) * len(inners):
        return None
    if not all(_is_scalar(item) or _is_few(item) for item in cells.values()):
        return None
    if len(inners) > len(value):
        rows = [(i, *(_cell(cells[o, i]) for o in value)) for i in inners]
        return (f"`{name}`", *value), rows
    rows = [(o, *(_cell(cells[o, i]) for i in inners)) for o in value]
    return (f"`{name}`", *inners), rows


def _cell(value: Json) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " / ".join(map(shown, value))
    return shown(value)


def _is_scalar(value: Json) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_few(value: Json) -> bool:
    """Whether it is a list of numbers short enough for a cell."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return 0 < len(value) <= CELL_NUMBERS_MAX and all(number(item) is not None for item in value)
