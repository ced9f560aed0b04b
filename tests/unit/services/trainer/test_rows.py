"""Datasets of every format, whole and broken: what is read, and what the report says."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from services.trainer.data.examples import LabeledText, LabeledWords, TextPair
from services.trainer.data.rows import ReadDataset, RowSchema, read_dataset
from smile.model.specs import HeadSpec, Task
from smile.resources import ColumnMapping, DatasetFormat

TOPICS = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("sport", "money"))
TAGS = HeadSpec(Task.TOKEN_CLASSIFICATION, ("O", "B-PER"))
EMBEDDING = HeadSpec(Task.EMBEDDING)
GOOD_CSV = "text,label\n" + "a game,sport\na bank,money\n" * 3


def read(
    folder: Path,
    data: bytes | str,
    format: DatasetFormat = DatasetFormat.CSV,
    *,
    head: HeadSpec = TOPICS,
    columns: ColumnMapping | None = None,
    training: bool = True,
) -> ReadDataset:
    path = folder / "data"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_dataset(path, format, RowSchema(head, columns or ColumnMapping(), training))


def problems(result: ReadDataset) -> list[tuple[int, str]]:
    assert result.report.problem_count == len(result.report.problems)
    return [(problem.row, problem.reason) for problem in result.report.problems]


def jsonl(*rows: object) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def parquet_bytes(**columns: object) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


GOOD_ROWS = [{"text": "a game", "label": "sport"}, {"text": "a bank", "label": "money"}] * 3


@pytest.mark.parametrize(
    ("format", "data"),
    [
        (DatasetFormat.CSV, GOOD_CSV.encode()),
        (DatasetFormat.CSV, b"\xef\xbb\xbf" + GOOD_CSV.replace("\n", "\r\n").encode()),
        (DatasetFormat.CSV, GOOD_CSV.replace("a game", '"a game"').encode() + b"\n\n"),
        (DatasetFormat.JSONL, jsonl(*GOOD_ROWS).encode()),
        (DatasetFormat.JSONL, b"\xef\xbb\xbf" + jsonl(*GOOD_ROWS, "", "").encode()),
        (
            DatasetFormat.PARQUET,
            parquet_bytes(
                text=["a game", "a bank"] * 3, label=["sport", "money"] * 3, more=[1] * 6
            ),
        ),
    ],
)
def test_every_format_gives_the_same_examples(
    tmp_path: Path, format: DatasetFormat, data: bytes
) -> None:
    result = read(tmp_path, data, format)
    assert problems(result) == []
    assert result.examples == (LabeledText("a game", 0), LabeledText("a bank", 1)) * 3
    assert result.report.rows == result.report.valid_rows == 6
    assert result.report.label_counts == {"sport": 3, "money": 3}
    assert result.report.columns[:2] == ("text", "label")


def test_quotes_commas_and_newlines_inside_cells_are_text(tmp_path: Path) -> None:
    data = 'label,text\nsport,"a ""great"", long\ngame"\n' + "money,x\n" * 4
    result = read(tmp_path, data)
    assert result.examples[0] == LabeledText('a "great", long\ngame', 0)


def test_columns_are_found_by_their_mapping(tmp_path: Path) -> None:
    data = GOOD_CSV.replace("text,label", "headline,topic")
    columns = ColumnMapping("headline", "topic")
    assert problems(read(tmp_path, data, columns=columns)) == []
    missing = read(tmp_path, data)
    assert problems(missing) == [(0, "COLUMN_MISSING"), (0, "COLUMN_MISSING")]
    assert "no column 'text'; the dataset has 'headline', 'topic'" in (
        missing.report.problems[0].message
    )
    assert missing.report.rows == 6


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ("a,b,sport", "ROW_MALFORMED", "2 columns, this row has 3"),
        ("lonely", "ROW_MALFORMED", "2 columns, this row has 1"),
        ('"a" b,sport', "ROW_MALFORMED", "line 8"),
        ("   ,sport", "TEXT_EMPTY", "white space"),
        (",sport", "TEXT_EMPTY", "white space"),
        ("a match,art", "LABEL_UNKNOWN", "'art' is not one of 'sport', 'money'"),
        ("a match,", "LABEL_UNKNOWN", "'' is not one of"),
        ("a\x00b,sport", "", ""),
        ("x" * 100_001 + ",sport", "TEXT_TOO_LONG", "100000 characters, got 100001"),
        ("x" * 200_000 + ",sport", "ROW_MALFORMED", "line 8"),
    ],
)
def test_a_bad_csv_row_is_named(tmp_path: Path, row: str, reason: str, said: str) -> None:
    result = read(tmp_path, f"{GOOD_CSV}{row}\na game,sport\n")
    assert problems(result) == ([(7, reason)] if reason else [])
    if reason:
        assert said in result.report.problems[0].message
        assert (result.report.rows, result.report.valid_rows) == (8, 7)


@pytest.mark.parametrize("format", [DatasetFormat.CSV, DatasetFormat.JSONL])
def test_bytes_that_are_no_utf8_are_told_by_offset(tmp_path: Path, format: DatasetFormat) -> None:
    good = GOOD_CSV if format is DatasetFormat.CSV else jsonl(*GOOD_ROWS) + "\n"
    bad = b"caf\xe9,sport\n" if format is DatasetFormat.CSV else b'{"text": "caf\xe9"}\n'
    result = read(tmp_path, good.encode() + bad, format)
    assert problems(result) == [(7, "ENCODING_INVALID")]
    offset = len(good) + bad.index(b"\xe9")
    assert f"byte {offset} " in result.report.problems[0].message
    assert "0xe9" in result.report.problems[0].message


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{not json", "ROW_MALFORMED"),
        ("[1, 2]", "ROW_MALFORMED"),
        ("[" * 100_000, "ROW_MALFORMED"),
        ({"text": "a"}, "COLUMN_MISSING"),
        ({"text": 5, "label": "sport"}, "TEXT_TYPE"),
        ({"text": None, "label": "sport"}, "TEXT_EMPTY"),
        ({"text": "a", "label": None}, "LABEL_TYPE"),
        ({"text": "a", "label": 1}, "LABEL_TYPE"),
        ({"text": "a", "label": ["sport"]}, "LABEL_TYPE"),
        ({"text": "a", "label": True}, "LABEL_TYPE"),
        ('{"text": "\\ud800", "label": "sport"}', "ENCODING_INVALID"),
    ],
)
def test_a_bad_json_row_is_named(tmp_path: Path, row: object, reason: str) -> None:
    result = read(tmp_path, jsonl(*GOOD_ROWS, row), DatasetFormat.JSONL)
    assert problems(result) == [(7, reason)]


def test_a_column_that_no_json_row_has_is_one_problem(tmp_path: Path) -> None:
    result = read(tmp_path, jsonl(*[{"body": "a", "label": "sport"}] * 5), DatasetFormat.JSONL)
    assert problems(result) == [(0, "COLUMN_MISSING")]
    assert "the dataset has 'body', 'label'" in result.report.problems[0].message


def test_numbers_are_labels_where_their_text_is_one(tmp_path: Path) -> None:
    head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("0", "1", "true"))
    data = jsonl(*[{"text": "a", "label": label} for label in (0, 1, "1", True, 2, 1.0)])
    result = read(tmp_path, data, DatasetFormat.JSONL, head=head)
    assert problems(result) == [(5, "LABEL_TYPE"), (6, "LABEL_TYPE")]
    assert [e.label for e in result.examples if isinstance(e, LabeledText)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "DATASET_EMPTY"),
        ("\n\n", "DATASET_EMPTY"),
        ("text,label\n", "DATASET_EMPTY"),
        ("text,label\n" + "a,sport\n" * 10, "ONE_CLASS"),
        ("text,label\na,sport\nb,money\n", "TOO_FEW_ROWS"),
        ("text,text,label\na,b,sport\n", "COLUMN_REPEATED"),
        ('"text', "ROW_MALFORMED"),
    ],
)
def test_a_dataset_that_is_wrong_as_a_whole_says_why(
    tmp_path: Path, data: str, reason: str
) -> None:
    assert problems(read(tmp_path, data)) == [(0, reason)]


def test_validation_rows_may_be_few_and_of_one_class(tmp_path: Path) -> None:
    assert problems(read(tmp_path, "text,label\na,sport\n", training=False)) == []


def test_only_the_first_problems_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    result = read(tmp_path, "text,label\n" + ",sport\n" * 250)
    assert len(result.report.problems) == 100
    assert (result.report.problem_count, result.report.problems[-1].row) == (250, 100)


@pytest.mark.parametrize(
    ("format", "rows"),
    [
        (DatasetFormat.CSV, "text,label\nAnn sleeps,B-PER O\n"),
        (DatasetFormat.JSONL, jsonl({"text": ["Ann", "sleeps"], "label": ["B-PER", "O"]})),
    ],
)
def test_words_and_their_labels(tmp_path: Path, format: DatasetFormat, rows: str) -> None:
    result = read(tmp_path, rows, format, head=TAGS, training=False)
    assert problems(result) == []
    assert result.examples == (LabeledWords(("Ann", "sleeps"), (1, 0)),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": ["Ann"], "label": ["O", "O"]}, "WORDS_LABELS_MISMATCH"),
        ({"text": [], "label": []}, "TEXT_EMPTY"),
        ({"text": ["Ann", " "], "label": ["O", "O"]}, "TEXT_EMPTY"),
        ({"text": ["Ann", 3], "label": ["O", "O"]}, "TEXT_TYPE"),
        ({"text": 3, "label": ["O"]}, "TEXT_TYPE"),
        ({"text": ["Ann"], "label": ["X"]}, "LABEL_UNKNOWN"),
    ],
)
def test_bad_words_are_named(tmp_path: Path, row: object, reason: str) -> None:
    result = read(tmp_path, jsonl(row), DatasetFormat.JSONL, head=TAGS, training=False)
    assert problems(result) == [(1, reason)]


def test_words_from_parquet_lists(tmp_path: Path) -> None:
    data = parquet_bytes(text=[["Ann", "sleeps"]], label=[["B-PER", "O"]])
    result = read(tmp_path, data, DatasetFormat.PARQUET, head=TAGS, training=False)
    assert result.examples == (LabeledWords(("Ann", "sleeps"), (1, 0)),)


def test_embeddings_take_pairs_or_any_labels(tmp_path: Path) -> None:
    pairs = read(
        tmp_path, "text,same\n" + "a,b\n" * 4, head=EMBEDDING, columns=ColumnMapping(pair="same")
    )
    assert pairs.examples == (TextPair("a", "b"),) * 4
    grouped = read(tmp_path, "text,label\n" + "a,x\nb,y\n" * 2, head=EMBEDDING)
    assert (problems(grouped), grouped.labels) == ([], ("x", "y"))
    lonely = read(tmp_path, "text,label\na,1\nb,2\nc,3\nd,4\n", head=EMBEDDING)
    assert problems(lonely) == [(0, "TOO_FEW_ROWS")]


def test_what_is_no_parquet_is_told(tmp_path: Path) -> None:
    for data in (b"", b"PAR1", b"PAR1" + b"\x00" * 100 + b"PAR1", GOOD_CSV.encode()):
        result = read(tmp_path, data, DatasetFormat.PARQUET)
        assert problems(result) == [(0, "ROW_MALFORMED")]


def test_damaged_parquet_never_raises(tmp_path: Path) -> None:
    whole = parquet_bytes(text=["a game", "a bank"] * 300, label=["sport", "money"] * 300)
    for place in range(4, len(whole) - 8, max(1, len(whole) // 40)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        read(tmp_path, bytes(damaged), DatasetFormat.PARQUET)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, st.sampled_from(["sport", "money", "art"])), max_size=12))
def test_what_a_writer_wrote_is_read_row_for_row(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    """Every row comes back as it was, or is named as a problem: none is lost, none is invented."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    as_json = jsonl(*[{"text": text, "label": label} for text, label in rows])
    good = [t for t, label in rows if label != "art" and t and not t.isspace()]
    for data, format in (
        (buffer.getvalue(), DatasetFormat.CSV),
        (as_json, DatasetFormat.JSONL),
    ):
        result = read(tmp_path, data, format, training=False)
        assert [e.text for e in result.examples if isinstance(e, LabeledText)] == good
        assert result.report.rows == len(rows)
        assert result.report.valid_rows == len(good)
        assert result.report.problem_count == (len(rows) - len(good) if rows else 1)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from(list(DatasetFormat)))
def test_no_bytes_make_a_reader_raise(tmp_path: Path, data: bytes, format: DatasetFormat) -> None:
    result = read(tmp_path, data, format)
    assert result.report.problem_count > 0 or result.report.valid_rows >= 4
    assert len(result.examples) == result.report.valid_rows <= result.report.rows
