"""The labels in a dataset file, for `smile create --labels-from`."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

from smile.client.chunks import unreadable
from smile.client.datasets import format_of
from smile.errors import DatasetInvalid, FailedPrecondition
from smile.model.specs import LABELS_MAX, Task
from smile.resources import DatasetFormat


def labels_of(path: Path, column: str, task: Task) -> list[str]:
    """The different labels in a file's column, sorted. For token classification each row holds a
    list of labels, or several with spaces between them.

    Raises:
        InvalidArgument: the file cannot be read, or its format told.
        DatasetInvalid: it has no such column, a row is malformed, or there are too many labels.
    """
    found: set[str] = set()
    try:
        for value in _values(path, column):
            if task is Task.TOKEN_CLASSIFICATION:
                parts = value if isinstance(value, list) else str(value).split()
                found.update(str(part) for part in parts)
            elif value not in (None, ""):
                found.add(str(value))
            if len(found) > LABELS_MAX:
                raise DatasetInvalid(
                    f"column '{column}' of {path} has more than {LABELS_MAX} different labels"
                )
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DatasetInvalid(f"{path} is not UTF-8: byte {error.start}") from error
    return sorted(found)


def _values(path: Path, column: str) -> Iterator[object]:
    match format_of(path):
        case DatasetFormat.CSV:
            yield from _csv(path, column)
        case DatasetFormat.JSONL:
            yield from _jsonl(path, column)
        case DatasetFormat.PARQUET:
            yield from _parquet(path, column)


def _csv(path: Path, column: str) -> Iterator[object]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _require(column, reader.fieldnames or (), path)
        try:
            for row in reader:
                yield row[column]
        except csv.Error as error:
            raise DatasetInvalid(f"{path}, line {reader.line_num}: {error}") from error


def _jsonl(path: Path, column: str) -> Iterator[object]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DatasetInvalid(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict) or column not in row:
                raise DatasetInvalid(f"{path}, line {number} has no '{column}'")
            yield row[column]


def _parquet(path: Path, column: str) -> Iterator[object]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise FailedPrecondition(
            "reading labels from Parquet needs the package pyarrow; give --labels instead"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        _require(column, file.schema_arrow.names, path)
        for batch in file.iter_batches(columns=[column]):
            yield from batch.column(0).to_pylist()
    except importlib.import_module("pyarrow").ArrowException as error:
        raise DatasetInvalid(f"{path} is not Parquet: {error}") from error


def _require(column: str, columns: object, path: Path) -> None:
    names = list(columns) if isinstance(columns, list | tuple) else []
    if column not in names:
        raise DatasetInvalid(
            f"{path} has no column '{column}'; it has {', '.join(map(str, names)) or 'none'}",
            reason="COLUMN_MISSING",
        )
