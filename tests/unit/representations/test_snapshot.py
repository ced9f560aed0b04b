"""Snapshots: what is written is what is found; what is broken or foreign is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from smile.errors import AlreadyExists, DataCorrupted, FailedPrecondition, InvalidArgument
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.representations import build as builder
from smile.representations import manifest as names
from smile.representations.build import Kinds, Step, TableWish, build
from smile.representations.keys import bigrams_of, keys_of_texts, unigrams
from smile.representations.snapshot import Table
from tests.unit.representations.fakes import ORIGIN, WIDTH, FakeEncoder, word_ids

TEXTS = ["the cat sat", "the cat ran", "the cat sat down", "a dog sat", "the dog ran far away"]
VOCAB = 1000
FORMATS = [RowFormat(dtype, WIDTH) for dtype in RowDtype]
BIG = 1 << 20


def _wish(row_format: RowFormat = FORMATS[0], budget: int = BIG, **more: object) -> TableWish:
    return replace(TableWish(row_format, budget, VOCAB), **more)  # type: ignore[arg-type]


def _build(path: Path, wish: TableWish | None = None, texts: list[str] | None = None) -> Table:
    build(path, TEXTS if texts is None else texts, word_ids, FakeEncoder(), 0, wish or _wish())
    return Table.open(path, ORIGIN, verify=True)


@pytest.mark.parametrize("row_format", FORMATS, ids=str)
def test_what_is_written_is_found(tmp_path: Path, row_format: RowFormat) -> None:
    table = _build(tmp_path / "table", _wish(row_format))
    asked = keys_of_texts(word_ids(TEXTS), 0)
    numbers = table.find(asked)
    assert (numbers >= 0).all()
    truth = row_format.unpack(row_format.pack(FakeEncoder().numbers(asked)))
    assert (table.stores.take(numbers) == truth).all()
    assert (table.find(np.array([5, 6])) == -1).all()
    stated = table.manifest
    assert (stated.corpus.texts, stated.corpus.tokens) == (5, len(asked))
    assert stated.corpus.covered == len(asked) and stated.corpus.ngrams == stated.rows
    assert stated.bytes == sum((tmp_path / "table" / name).stat().st_size for name in names.FILES)


def test_the_most_frequent_come_first_and_the_budget_holds(tmp_path: Path) -> None:
    wish = _wish(budget=int(3.5 * _wish().entry_bytes))
    table = _build(tmp_path / "table", wish)
    counts = Counter(keys_of_texts(word_ids(TEXTS), 0).tolist())
    best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]
    assert list(zip(table.keys.tolist(), table.counts.tolist(), strict=True)) == best
    assert table.manifest.corpus.covered == sum(count for _, count in best)
    assert table.manifest.corpus.ngrams == len(counts)


def test_a_build_is_reproducible(tmp_path: Path) -> None:
    one, two = _build(tmp_path / "one"), _build(tmp_path / "two")
    assert one.digest == two.digest
    other = _build(tmp_path / "three", texts=TEXTS[:-1])
    assert other.digest != one.digest


def test_fallback_has_every_unigram_and_bigrams(tmp_path: Path) -> None:
    table = _build(tmp_path / "table", _wish(kinds=Kinds.FALLBACK))
    asked = keys_of_texts(word_ids(TEXTS), 0)
    for keys in (asked, bigrams_of(asked), unigrams(VOCAB)):
        assert (table.find(keys) >= 0).all()
    assert table.manifest.corpus.covered == len(asked)


def test_budgets_too_small(tmp_path: Path) -> None:
    entry = _wish().entry_bytes
    with pytest.raises(InvalidArgument, match=f"at least {int(entry)} bytes, one row, got 10"):
        _build(tmp_path / "table", _wish(budget=10))
    small = _wish(budget=int(entry * (VOCAB - 1)), kinds=Kinds.FALLBACK)
    with pytest.raises(InvalidArgument, match=f"the {VOCAB} unigrams of the vocabulary"):
        _build(tmp_path / "table", small)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_corpus(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="at least 1 text, got 0"):
        _build(tmp_path / "table", texts=[])


def test_texts_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    """They are n-grams of the unknown token, like any other."""

    def unknown(texts: Sequence[str]) -> list[list[int]]:
        return [[1, *[100 for _ in text], 2] for text in texts]

    build(tmp_path / "table", ["ᏣᎳᎩ", "ᏣᎳ"], unknown, FakeEncoder(), 0, _wish())
    table = Table.open(tmp_path / "table")
    assert (table.find(keys_of_texts(unknown(["ᏣᎳᎩᏣ"]), 0)) >= 0).all()
    assert table.manifest.rows == 5 and table.manifest.corpus.tokens == 9


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "ROWS_BATCH", 7)
    monkeypatch.setattr(builder, "TEXTS_BATCH", 2)
    told: list[tuple[Step, int, int]] = []
    build(
        tmp_path / "table",
        TEXTS,
        word_ids,
        FakeEncoder(),
        0,
        _wish(),
        lambda *step: told.append(step),
    )
    rows = Table.open(tmp_path / "table").manifest.rows
    assert told[:3] == [(Step.COUNT, 2, 0), (Step.COUNT, 4, 0), (Step.COUNT, 5, 0)]
    assert [done for step, done, _ in told if step is Step.ROWS] == [7, 14, rows]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "ROWS_BATCH", 2)
    with pytest.raises(FailedPrecondition, match=r"disk of .* is full") as refused:
        build(tmp_path / "table", TEXTS, word_ids, FakeEncoder(fails_at=5), 0, _wish())
    assert refused.value.reason == "DISK_FULL"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_will_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 99})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    encoder = FakeEncoder()
    with pytest.raises(FailedPrecondition, match="bytes free for the table, got 99"):
        build(tmp_path / "table", TEXTS, word_ids, encoder, 0, _wish())
    assert encoder.asked == 0


def test_an_output_that_is_there(tmp_path: Path) -> None:
    _build(tmp_path / "table")
    with pytest.raises(AlreadyExists, match="a table never changes"):
        _build(tmp_path / "table")


def test_an_output_made_meanwhile(tmp_path: Path) -> None:
    class Racing(FakeEncoder):
        def packed(self, keys: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.uint8]:
            (tmp_path / "table" / "other").mkdir(parents=True)
            return super().packed(keys, row_format)

    with pytest.raises(AlreadyExists, match="made meanwhile"):
        build(tmp_path / "table", TEXTS, word_ids, Racing(), 0, _wish())
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize("name", names.FILES)
@pytest.mark.parametrize("damage", ["lost", "cut", "longer", "flipped"])
def test_broken_files(tmp_path: Path, name: str, damage: str) -> None:
    _build(tmp_path / "table")
    path = tmp_path / "table" / name
    content = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        flipped = bytes([content[0] ^ 1]) + content[1:]
        path.write_bytes(
            {"cut": content[:-1], "longer": content + b"x", "flipped": flipped}[damage]
        )
    why = {"lost": "has lost its", "flipped": "must have SHA-256"}.get(damage, "must have .* bytes")
    with pytest.raises(DataCorrupted, match=why):
        Table.open(tmp_path / "table", verify=True)
    if name != names.ROWS_FILE or damage != "flipped":
        with pytest.raises(DataCorrupted, match=why):
            Table.open(tmp_path / "table")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"format": "smile.table.v2"}, "format is not"),
        ({"rows": -1}, "rows must be at least 0"),
        ({"rows": 0}, "1 to"),
        ({"rows": "5"}, "rows must be int"),
        ({"rows": 5}, "does not hold what its manifest says"),
        ({"dtype": "float64"}, "float64"),
        ({"files": {}}, "files must be"),
        ({"origin": {}}, "backbone"),
        ({"origin": 5}, "manifest"),
        ({"stranger": 1}, "stranger"),
    ],
)
def test_broken_manifests(tmp_path: Path, changed: dict[str, object], why: str) -> None:
    _build(tmp_path / "table")
    path = tmp_path / "table" / names.MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(DataCorrupted, match=why):
        Table.open(tmp_path / "table")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000])
def test_no_manifests(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(FailedPrecondition, match=r"it has no manifest\.json"):
        Table.open(tmp_path)
    (tmp_path / names.MANIFEST_FILE).write_bytes(content)
    with pytest.raises(DataCorrupted, match="manifest"):
        Table.open(tmp_path)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"backbone_digest": "f" * 64}, "BACKBONE_MISMATCH"),
        ({"boundary": 2}, "BOUNDARY_MISMATCH"),
        ({"encoder_digest": "f" * 64}, "ENCODER_MISMATCH"),
    ],
)
def test_rows_of_others(tmp_path: Path, other: dict[str, object], reason: str) -> None:
    _build(tmp_path / "table")
    with pytest.raises(FailedPrecondition, match="wanted is one for") as refused:
        Table.open(tmp_path / "table", replace(ORIGIN, **other))  # type: ignore[arg-type]
    assert refused.value.reason == reason


def test_pages_are_the_files(tmp_path: Path) -> None:
    table = _build(tmp_path / "table")
    base: object = table.store.rows
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and base.mode == "r"
    assert not table.store.rows.flags.writeable
