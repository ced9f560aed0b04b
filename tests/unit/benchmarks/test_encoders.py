"""Tables cut short, and how n-grams are found in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import plots, skip_sweep
from benchmarks.harness.encoders import FOLDER_VARIABLE, First, encoders, hits
from benchmarks.harness.json_types import Json
from smile.errors import FailedPrecondition
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.skip.policy import MissPolicy
from smile.representations.build import Kinds, TableWish, build
from smile.representations.fallback import KINDS, under
from smile.representations.keys import keys_of_texts
from smile.representations.snapshot import Table
from tests.unit.representations.fakes import WIDTH, FakeEncoder, word_ids

VOCAB = 1000
TEXTS = ["the cat sat down", "the cat ran away"]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    wish = TableWish(RowFormat(RowDtype.FLOAT16, WIDTH), 1 << 20, VOCAB, Kinds.FALLBACK)
    build(tmp_path / "table", TEXTS, word_ids, FakeEncoder(), 0, wish)
    return Table.open(tmp_path / "table")


def test_a_smaller_table_is_the_first_rows_of_a_larger_one(table: Table) -> None:
    asked = keys_of_texts(word_ids(TEXTS), 0)
    whole, unigrams = First(table, table.manifest.rows), First(table, VOCAB)
    assert (whole.find(asked) == table.find(asked)).all() and (whole.find(asked) >= 0).all()
    assert (unigrams.find(asked) < 0).all()
    served = under(MissPolicy.SHORTER, unigrams).find(asked)
    centres = np.concatenate([np.array(ids) for ids in word_ids(TEXTS)])
    assert (served == centres).all()  # rows of unigrams lie in the order of the vocabulary
    assert (under(MissPolicy.COMPUTE, unigrams).find(asked) < 0).all()


def test_every_ngram_is_found_once(table: Table) -> None:
    def shares(rows: First, texts: list[str]) -> list[Json]:
        return list(hits(rows, word_ids(texts), 0).values())

    assert shares(First(table, table.manifest.rows), TEXTS) == [1.0, 0.0, 0.0]
    assert shares(First(table, VOCAB), TEXTS) == [0.0, 0.0, 1.0]
    (trigrams, bigrams, unigrams) = shares(First(table, table.manifest.rows), ["the cat slept"])
    assert isinstance(trigrams, float) and isinstance(bigrams, float)
    assert trigrams > 0 and bigrams > 0 and trigrams + bigrams + float(str(unigrams)) == 1.0


def test_policies_want_what_they_serve_from() -> None:
    assert KINDS[MissPolicy.COMPUTE] is Kinds.TRIGRAMS
    assert KINDS[MissPolicy.SHORTER] is Kinds.FALLBACK


def test_an_empty_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(FailedPrecondition, match="has no encoder"):
        next(encoders())


def test_figures_are_drawn(tmp_path: Path) -> None:
    row: dict[str, Json] = {
        "encoder": "b3", "policy": "compute", "distilled_for": "compute", "dtype": "float16",
        "loss_points": 0.4, "table_bytes": 1 << 22, "speedup_computed": 1.3,
        "speedup_looked_up": 1.5, "speedup_all_found": None,
    }  # fmt: skip
    shorter = [
        {**row, "policy": "shorter", "loss_points": loss, "table_bytes": size}
        for loss, size in ((5.0, 1 << 26), (3.0, 1 << 28))
    ]
    plots.skip_sweep({"variants": [row, *shorter]}, tmp_path / "sweep.svg")
    plots.skip_speed({"encoders": [row]}, tmp_path / "speed.svg")
    for name in ("sweep", "speed"):
        assert (tmp_path / f"{name}.svg").stat().st_size > 1_000


def test_policies_are_compared_where_encoders_learned_alike() -> None:
    def row(encoder: str, kind: str, policy: str, learned: int, loss: float) -> dict[str, Json]:
        return {
            "encoder": encoder, "kind": kind, "policy": policy, "distilled_for": policy,
            "learned_tokens": learned, "loss_points": loss, "dtype": "float16", "boundary": 3,
        }  # fmt: skip

    rows = [
        row("included", "words", "compute", 4_000, 0.3),
        row("longer", "words", "compute", 2_000, 0.6),
        row("alike", "words", "compute", 1_000, 0.9),
        row("layers", "layers", "shorter", 1_000, 2.5),
        {**row("layers", "layers", "compute", 1_000, 0.2), "distilled_for": "shorter"},
    ]
    smaller = row("layers", "layers", "shorter", 1_000, 2.0)
    assert skip_sweep._headline([smaller, *rows]) == {
        "loss_points_included": 0.3,
        "loss_points_compute": 0.9,
        "loss_points_shorter": 2.5,
    }
