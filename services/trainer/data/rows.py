"""Rows of cells to examples one can train on, and the report of all that cannot be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.trainer.data.examples import Example, LabeledText, LabeledWords, TextPair
from services.trainer.data.tables import Cell, Fault, Problem, Row, Table, read_table
from smile.limits import TEXT_CHARS_MAX
from smile.model.specs import HeadSpec, Task
from smile.resources import ColumnMapping, DatasetFormat, DatasetReport, RowProblem

PROBLEMS_SHOWN_MAX = 100
LABELS_SHOWN_MAX = 20
SHOWN_CHARS_MAX = 60
TRAINING_ROWS_MIN = 4


@dataclass(frozen=True, slots=True)
class RowSchema:
    """What rows must hold.

    Attributes:
        head: Decides the task and, but for embeddings, the labels there are.
        columns: Which columns hold what.
        training: Whether rows are trained on; validation rows may be few and of one class.
    """

    head: HeadSpec
    columns: ColumnMapping
    training: bool = True

    @property
    def pairs(self) -> bool:
        return self.head.task is Task.EMBEDDING and self.columns.pair != ""

    @property
    def wanted(self) -> tuple[str, str]:
        second = self.columns.pair if self.pairs else self.columns.label
        return self.columns.text, second


@dataclass(frozen=True, slots=True)
class ReadDataset:
    """Examples in the order of the rows, and what was wrong with the others.

    `labels` are the head's, or for embeddings trained on labels those found.
    """

    examples: tuple[Example, ...]
    labels: tuple[str, ...]
    report: DatasetReport

    @property
    def valid(self) -> bool:
        return self.report.problem_count == 0


def read_dataset(path: Path, format: DatasetFormat, schema: RowSchema) -> ReadDataset:
    """Reads and checks every row. Never raises for what the file holds."""
    table = read_table(path, format, schema.wanted)
    reader = _Reader(schema)
    reader.read(table)
    return reader.result()


class _RowFault(Exception):
    """A row that breaks the schema."""

    def __init__(self, reason: Problem, message: str, column: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.column = column


@dataclass(slots=True)
class _Reader:
    schema: RowSchema
    examples: list[Example] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)
    problem_count: int = 0
    rows: int = 0
    columns: dict[str, None] = field(default_factory=dict)  # in the order they were met
    label_counts: Counter[str] = field(default_factory=Counter)
    labels: dict[str, int] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)

    def read(self, table: Table) -> None:
        self.labels = {label: index for index, label in enumerate(self.schema.head.labels)}
        self.columns = dict.fromkeys(table.columns)
        absent = [name for name in self.schema.wanted if table.columns and name not in self.columns]
        for name in absent:
            self._whole(Problem.COLUMN_MISSING, self._missing_text(name), name)
        for row in table.rows:
            self.rows += row.number > 0
            if isinstance(row, Fault):
                self._problem(RowProblem(row.number, row.column, row.reason, row.message))
            elif not absent:
                self._take(row)
        self._check_whole()

    def result(self) -> ReadDataset:
        counts = {label: self.label_counts.get(label, 0) for label in self.labels}
        report = DatasetReport(
            rows=self.rows,
            valid_rows=len(self.examples),
            problems=tuple(self.problems),
            problem_count=self.problem_count,
            label_counts={} if self.schema.pairs else counts,
            columns=tuple(self.columns),
        )
        return ReadDataset(tuple(self.examples), tuple(self.labels), report)

    def _take(self, row: Row) -> None:
        self.columns.update(dict.fromkeys(row.cells))
        try:
            for name in self.schema.wanted:
                if name not in row.cells:
                    self.missing[name] += 1
                    raise _RowFault(Problem.COLUMN_MISSING, f"no column '{name}'", name)
            self.examples.append(self._example(row))
        except _RowFault as fault:
            self._problem(RowProblem(row.number, fault.column, fault.reason, fault.message))

    def _example(self, row: Row) -> Example:
        first, second = self.schema.wanted
        if self.schema.pairs:
            return TextPair(_text(row.cells[first], first), _text(row.cells[second], second))
        if self.schema.head.task is Task.TOKEN_CLASSIFICATION:
            return self._tagged(row.cells[first], row.cells[second])
        text = _text(row.cells[first], first)
        label = self._label(row.cells[second])
        self.label_counts[label] += 1
        return LabeledText(text, self.labels[label])

    def _tagged(self, first: Cell, second: Cell) -> LabeledWords:
        column = self.schema.columns
        words = [_text(word, column.text) for word in _listed(first, column.text)]
        tags = _listed(second, column.label)
        if not words:
            raise _RowFault(Problem.TEXT_EMPTY, "the row has no words", column.text)
        if len(words) != len(tags):
            message = f"{len(words)} words and {len(tags)} labels; every word needs one"
            raise _RowFault(Problem.WORDS_LABELS_MISMATCH, message, column.label)
        if sum(map(len, words)) + len(words) > TEXT_CHARS_MAX:
            message = f"a text has at most {TEXT_CHARS_MAX} characters, these words have more"
            raise _RowFault(Problem.TEXT_TOO_LONG, message, column.text)
        labels = [self._label(tag) for tag in tags]
        self.label_counts.update(labels)
        return LabeledWords(tuple(words), tuple(self.labels[label] for label in labels))

    def _label(self, cell: Cell) -> str:
        column = self.schema.columns.label
        text = _label_text(cell)
        if text in self.labels:
            return text
        if self.schema.head.task is Task.EMBEDDING and isinstance(cell, str | int) and text:
            return self._new_label(text)
        if isinstance(cell, str):
            message = f"label {_shown(cell)} is not one of {_known(self.schema.head.labels)}"
            raise _RowFault(Problem.LABEL_UNKNOWN, message, column)
        message = (
            f"a label is text, got {_kind(cell)} {_shown(cell)}, whose text is none of "
            f"{_known(self.schema.head.labels)}"
        )
        raise _RowFault(Problem.LABEL_TYPE, message, column)

    def _new_label(self, text: str) -> str:
        self.labels[text] = len(self.labels)
        return text

    def _check_whole(self) -> None:
        """Faults of the dataset as a whole. Only the first: the others follow from it."""
        for name, count in self.missing.items():
            if count == self.rows:  # one problem instead of one per row
                self.problems = [p for p in self.problems if p.reason != Problem.COLUMN_MISSING]
                self.problem_count -= count
                self._whole(Problem.COLUMN_MISSING, self._missing_text(name), name)
                return
        if self.rows == 0 and self.problem_count == 0:
            self._whole(Problem.DATASET_EMPTY, "the dataset has no rows")
        elif self.schema.training and self.problem_count == 0:
            self._check_training()

    def _check_training(self) -> None:
        if self.rows < TRAINING_ROWS_MIN:
            message = f"training needs at least {TRAINING_ROWS_MIN} rows, got {self.rows}"
            self._whole(Problem.TOO_FEW_ROWS, message)
        elif not self.schema.pairs and len(self.label_counts) < 2:
            only = next(iter(self.label_counts), "")
            message = f"all rows have the label {_shown(only)}; training needs at least 2 classes"
            self._whole(Problem.ONE_CLASS, message, self.schema.columns.label)
        elif max(self.label_counts.values(), default=2) < 2 and self._grouped:
            message = "no two rows share a label; embeddings are trained on rows that do"
            self._whole(Problem.TOO_FEW_ROWS, message, self.schema.columns.label)

    @property
    def _grouped(self) -> bool:
        """Embeddings trained on labels, not on pairs."""
        return self.schema.head.task is Task.EMBEDDING and not self.schema.pairs

    def _missing_text(self, name: str) -> str:
        found = ", ".join(f"'{column}'" for column in list(self.columns)[:LABELS_SHOWN_MAX])
        return f"no column '{name}'; the dataset has {found or 'none'}"

    def _whole(self, reason: Problem, message: str, column: str = "") -> None:
        self._problem(RowProblem(0, column, reason, message))

    def _problem(self, problem: RowProblem) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_SHOWN_MAX:
            self.problems.append(problem)


def _text(cell: Cell, column: str) -> str:
    if cell is None:
        raise _RowFault(Problem.TEXT_EMPTY, "the text is null", column)
    if not isinstance(cell, str):
        message = f"a text is needed, got {_kind(cell)} {_shown(cell)}"
        raise _RowFault(Problem.TEXT_TYPE, message, column)
    if not cell or cell.isspace():
        raise _RowFault(Problem.TEXT_EMPTY, "the text has nothing but white space", column)
    if len(cell) > TEXT_CHARS_MAX:
        message = f"a text has at most {TEXT_CHARS_MAX} characters, got {len(cell)}"
        raise _RowFault(Problem.TEXT_TOO_LONG, message, column)
    if not _is_unicode(cell):
        message = "the text has half of a surrogate pair, which is no character"
        raise _RowFault(Problem.ENCODING_INVALID, message, column)
    return cell


def _listed(cell: Cell, column: str) -> Sequence[Cell]:
    """Words or labels: a list as it is, text split at white space."""
    if isinstance(cell, str):
        return cell.split()
    if isinstance(cell, list):
        return cell
    message = f"a list of words (or text with spaces) is needed, got {_kind(cell)} {_shown(cell)}"
    raise _RowFault(Problem.TEXT_TYPE, message, column)


def _label_text(cell: Cell) -> str:
    """The text that may be a label: of booleans and numbers, as JSON writes them."""
    if isinstance(cell, str):
        return cell
    return json.dumps(cell) if isinstance(cell, bool | int | float) else ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


KINDS: Mapping[type, str] = {bool: "the boolean", int: "the number", float: "the number"}


def _kind(cell: Cell) -> str:
    return KINDS.get(type(cell), f"a {type(cell).__name__}" if cell is not None else "null")


def _shown(value: Cell) -> str:
    text = ascii(value) if isinstance(value, str) and not _is_unicode(value) else repr(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


def _known(labels: Sequence[str]) -> str:
    shown = ", ".join(_shown(label) for label in labels[:LABELS_SHOWN_MAX])
    more = len(labels) - LABELS_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown
