"""Texts of a corpus, read as they are needed.

A corpus is files and folders of them: `.txt` with a text a line, `.csv` and `.jsonl` with a column
`text`. Folders are read in the order of their files' paths, so a corpus has one digest everywhere.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from smile.errors import DatasetInvalid, InvalidArgument
from smile.limits import TEXT_CHARS_MAX

COLUMN = "text"


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The corpus's files, in order.

    Raises:
        InvalidArgument: a path is not there or of a kind that is not read; `violations` has all.
    """
    found: list[Path] = []
    wrong: list[tuple[str, str]] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in READERS)
        elif not path.is_file():
            wrong.append((str(path), "there is no such file or folder"))
        elif path.suffix not in READERS:
            wrong.append((str(path), f"a corpus is of {', '.join(READERS)} files"))
        else:
            found.append(path)
    if wrong:
        field, why = wrong[0]
        raise InvalidArgument(f"{field}: {why}", violations=wrong)
    return found


def texts_of(files: Sequence[Path], column: str = COLUMN) -> Iterator[str]:
    """The texts of files in order; those of white space alone are left out, and long ones cut to
    as many characters as a request may have.

    Raises:
        DatasetInvalid: a file has no such column, or a line that is no row.
    """
    for path in files:
        for text in READERS[path.suffix](path, column):
            if text and not text.isspace():
                yield text[:TEXT_CHARS_MAX]


def _lines(path: Path, _: str) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.strip()


def _csv(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        if column not in (rows.fieldnames or ()):
            raise DatasetInvalid(
                f"{path} must have a column '{column}', got {', '.join(rows.fieldnames or ())}"
            )
        try:
            for row in rows:
                yield row[column] or ""
        except csv.Error as error:
            raise DatasetInvalid(f"{path}, line {rows.line_num}: {error}") from error


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[column]
                text.encode(errors="strict")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DatasetInvalid(
                    f"{path}, line {number}: must be an object with a text in '{column}'"
                ) from error
            yield text


READERS: Mapping[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _lines,
    ".csv": _csv,
    ".jsonl": _json_lines,
}
