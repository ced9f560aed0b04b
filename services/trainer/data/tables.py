"""Dataset bytes to rows of named cells: CSV, JSON Lines, Parquet.

Readers stream: they hold one row (or one Parquet batch) at a time. A row that cannot be read comes
out as a `Fault` with its number, and reading goes on behind it where the format allows.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, TypeAlias

import pyarrow as pa
from pyarrow import parquet

from smile.limits import MIB
from smile.resources import DatasetFormat

LINE_BYTES_MAX = 16 * MIB
PARQUET_BATCH_ROWS = 1024
PARQUET_GROUP_BYTES_MAX = 1024 * MIB  # uncompressed, of one row group
BOM = b"\xef\xbb\xbf"

Cell: TypeAlias = object  # text, number, bool, None or a list of these: whatever the file holds


class Problem(StrEnum):
    """Reasons of row problems. Stable: programs switch on them."""

    COLUMN_MISSING = "COLUMN_MISSING"
    COLUMN_REPEATED = "COLUMN_REPEATED"
    DATASET_EMPTY = "DATASET_EMPTY"
    ENCODING_INVALID = "ENCODING_INVALID"
    LABEL_TYPE = "LABEL_TYPE"
    LABEL_UNKNOWN = "LABEL_UNKNOWN"
    ONE_CLASS = "ONE_CLASS"
    ROW_MALFORMED = "ROW_MALFORMED"
    TEXT_EMPTY = "TEXT_EMPTY"
    TEXT_TOO_LONG = "TEXT_TOO_LONG"
    TEXT_TYPE = "TEXT_TYPE"
    TOO_FEW_ROWS = "TOO_FEW_ROWS"
    WORDS_LABELS_MISMATCH = "WORDS_LABELS_MISMATCH"


@dataclass(frozen=True, slots=True)
class Row:
    """Cells by column name. `number` counts from 1."""

    number: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that could not be read; number 0 is the file as a whole."""

    number: int
    reason: Problem
    message: str
    column: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """An opened dataset.

    Attributes:
        columns: Names found up front; empty for JSON Lines, where every row names its own.
        rows: Rows and faults in the order of the file; consumed once.
    """

    columns: tuple[str, ...]
    rows: Iterator[Row | Fault]


def read_table(path: Path, format: DatasetFormat, wanted: Sequence[str]) -> Table:
    """Opens a dataset. Never raises for what the file holds: its faults come out as rows.

    Args:
        wanted: Columns that will be looked at; Parquet reads no others.
    """
    return READERS[format](path, wanted)


@dataclass(slots=True)
class _Lines:
    """Decodes physical lines and remembers the first byte that is not UTF-8 since last asked."""

    file: BinaryIO
    offset: int = 0
    number: int = 0
    bad: str = ""

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(LINE_BYTES_MAX + 1):
            self.number += 1
            if self.number == 1 and line.startswith(BOM):
                line, self.offset = line[len(BOM) :], len(BOM)
            yield self._decoded(line)
            self.offset += len(line)

    def take_bad(self) -> str:
        bad, self.bad = self.bad, ""
        return bad

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.bad = self.bad or (
                f"byte {self.offset + error.start} (line {self.number}) is not UTF-8: "
                f"0x{line[error.start]:02x}"
            )
            return line.decode("utf-8", "replace")


def _read_csv(path: Path, wanted: Sequence[str]) -> Table:
    rows = _csv_rows(path)
    header = next(rows, None)
    if header is None:
        return Table((), iter(()))
    if isinstance(header, Fault):
        return Table((), iter([Fault(0, header.reason, f"header: {header.message}")]))
    columns = tuple(str(name) for name in header)
    repeated = [name for name in wanted if columns.count(name) > 1]
    if repeated:
        message = f"the header names column '{repeated[0]}' {columns.count(repeated[0])} times"
        fault = Fault(0, Problem.COLUMN_REPEATED, message, repeated[0])
        return Table(columns, iter([fault]))
    return Table(columns, _named_rows(columns, rows))


def _named_rows(
    columns: tuple[str, ...], rows: Iterator[list[str] | Fault]
) -> Iterator[Row | Fault]:
    for number, cells in enumerate(rows, 1):
        if isinstance(cells, Fault):
            yield Fault(number, cells.reason, cells.message)
        elif len(cells) != len(columns):
            message = f"the header has {len(columns)} columns, this row has {len(cells)}"
            yield Fault(number, Problem.ROW_MALFORMED, message)
        else:
            yield Row(number, dict(zip(columns, cells, strict=True)))


def _csv_rows(path: Path) -> Iterator[list[str] | Fault]:
    """Records of a CSV file, header included; blank lines are no records."""
    with path.open("rb") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, strict=True)
        while True:
            started = lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Fault(0, Problem.ROW_MALFORMED, f"line {started}: {error}")
                continue
            if bad := lines.take_bad():
                yield Fault(0, Problem.ENCODING_INVALID, bad)
            elif cells:
                yield cells


def _read_jsonl(path: Path, wanted: Sequence[str]) -> Table:
    return Table((), _jsonl_rows(path))


def _jsonl_rows(path: Path) -> Iterator[Row | Fault]:
    with path.open("rb") as file:
        lines = _Lines(file)
        number = 0
        for line in lines:
            if not line.strip():
                continue
            number += 1
            if bad := lines.take_bad():
                yield Fault(number, Problem.ENCODING_INVALID, bad)
                continue
            yield _jsonl_row(number, line, lines.number)


def _jsonl_row(number: int, line: str, line_number: int) -> Row | Fault:
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        message = f"line {line_number} is not JSON: {what}"
        return Fault(number, Problem.ROW_MALFORMED, message)
    if not isinstance(cells, dict):
        message = f"line {line_number} must be a JSON object, got {type(cells).__name__}"
        return Fault(number, Problem.ROW_MALFORMED, message)
    return Row(number, cells)


def _read_parquet(path: Path, wanted: Sequence[str]) -> Table:
    try:
        file = parquet.ParquetFile(path)
        columns = tuple(file.schema_arrow.names)
        sizes = [
            file.metadata.row_group(group).total_byte_size
            for group in range(file.metadata.num_row_groups)
        ]
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"not a Parquet file: {_first_line(error)}"
        return Table((), iter([Fault(0, Problem.ROW_MALFORMED, message)]))
    if max(sizes, default=0) > PARQUET_GROUP_BYTES_MAX:
        message = (
            f"a row group has at most {PARQUET_GROUP_BYTES_MAX} bytes uncompressed, "
            f"got {max(sizes)}"
        )
        return Table(columns, iter([Fault(0, Problem.ROW_MALFORMED, message)]))
    return Table(columns, _parquet_rows(file, [name for name in columns if name in wanted]))


def _parquet_rows(file: parquet.ParquetFile, wanted: list[str]) -> Iterator[Row | Fault]:
    numbers = itertools.count(1)
    try:
        for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=wanted):
            for index in range(batch.num_rows):
                yield _parquet_row(next(numbers), batch, index)
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"the file cannot be read on: {_first_line(error)}"
        yield Fault(next(numbers), Problem.ROW_MALFORMED, message)
    finally:
        file.close()


def _parquet_row(number: int, batch: pa.RecordBatch, index: int) -> Row | Fault:
    cells: dict[str, Cell] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            cells[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            found = error.object[error.start]
            message = f"byte {error.start} of the cell is not UTF-8: 0x{found:02x}"
            return Fault(number, Problem.ENCODING_INVALID, message, name)
    return Row(number, cells)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


READERS: Mapping[DatasetFormat, Callable[[Path, Sequence[str]], Table]] = {
    DatasetFormat.CSV: _read_csv,
    DatasetFormat.JSONL: _read_jsonl,
    DatasetFormat.PARQUET: _read_parquet,
}
