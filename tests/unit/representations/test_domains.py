"""Domains: a row of one's own, else the parent's, else the general one, in one mixed batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smile.errors import (
    AlreadyExists,
    DataCorrupted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SmileError,
)
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.representations.build import TableWish, build, write
from smile.representations.counting import NgramCounts
from smile.representations.delta import DeltaRules, Encoders, build_delta
from smile.representations.domains import DomainTree, EffectiveRows
from smile.representations.manifest import GENERAL, CorpusFacts
from smile.representations.overlay import LiveTable, Overlay
from smile.representations.snapshot import Table
from tests.unit.representations.fakes import ORIGIN, WIDTH, FakeEncoder, word_ids

FORMAT = RowFormat(RowDtype.FLOAT16, WIDTH)
CORPUS = CorpusFacts("", 0, 0, 0, 0)
GENERAL_ROWS = FakeEncoder()


def _encoder(name: str, shift: float = 1.0) -> FakeEncoder:
    return FakeEncoder(replace(ORIGIN, encoder_digest=name), shift)


def _wish(name: str, parent: str, parent_encoder: str, budget: int = 1 << 20) -> TableWish:
    return TableWish(
        FORMAT, budget, 1000, domain=name, parent=parent, parent_encoder=parent_encoder
    )


def _table(folder: Path, keys: list[int], encoder: FakeEncoder, wish: TableWish) -> Table:
    chosen = NgramCounts(np.array(keys, np.int64), np.ones(len(keys), np.int64))
    path = folder / f"{wish.domain}-{len(list(folder.iterdir()))}"
    write(path, chosen, CORPUS, encoder, wish)
    return Table.open(path)


NEWS, SPORT, LAW = _encoder("news", 1.0), _encoder("sport", 2.0), _encoder("law", 3.0)
ENCODERS = {"general": GENERAL_ROWS, "news": NEWS, "sport": SPORT, "law": LAW}
PARENTS = {"news": "general", "sport": "news", "law": "general"}


def _delta(folder: Path, name: str, keys: list[int]) -> Table:
    parent = PARENTS[name]
    over = ENCODERS[parent].origin.encoder_digest
    return _table(folder, keys, ENCODERS[name], _wish(name, parent, over))


def _general(folder: Path, keys: list[int]) -> Table:
    return _table(folder, keys, GENERAL_ROWS, TableWish(FORMAT, 1 << 20, 1000))


KEYS = st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True)


@settings(max_examples=25, deadline=None)
@given(held=st.tuples(KEYS, KEYS, KEYS, KEYS), data=st.data())
def test_resolved_as_by_hand(
    tmp_path_factory: pytest.TempPathFactory,
    held: tuple[list[int], list[int], list[int], list[int]],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("domains")
    keys = dict(zip(("general", "news", "sport", "law"), held, strict=True))
    general = _general(folder, keys["general"])
    # children before parents: the order does not matter
    tree = DomainTree(
        ORIGIN, [_delta(folder, name, keys[name]) for name in ("sport", "law", "news")]
    )
    view = tree.view(general)
    asked = data.draw(st.lists(st.integers(0, 32), max_size=40))
    names = [data.draw(st.sampled_from(list(keys))) for _ in asked]
    domains = np.array([tree.number(name) for name in names], np.int32)
    numbers = view.find(np.array(asked, np.int64), domains)
    rows = view.stores.take(numbers)
    for place, (key, name) in enumerate(zip(asked, names, strict=True)):
        holder = next((each for each in tree.path(name) if key in keys[each]), None)
        assert (numbers[place] >= 0) == (holder is not None)
        if holder is not None:
            truth = FORMAT.unpack(ENCODERS[holder].packed(np.array([key]), FORMAT))[0]
            assert (rows[place] == truth).all()


def test_texts_of_one_domain(tmp_path: Path) -> None:
    tree = DomainTree(ORIGIN, [_delta(tmp_path, "news", [5]), _delta(tmp_path, "sport", [6])])
    view = tree.view(_general(tmp_path, [5, 6, 7]))
    asked = np.array([5, 6, 7, 8])
    shifts = {
        name: (view.stores.take(view.of(name).find(asked)) - GENERAL_ROWS.numbers(asked)).mean(1)
        for name in tree.names
    }
    assert np.rint(shifts["general"][:3]).tolist() == [0, 0, 0]
    assert np.rint(shifts["news"][:3]).tolist() == [1, 0, 0]
    assert np.rint(shifts["sport"][:3]).tolist() == [1, 2, 0]
    assert view.of("sport").find(asked)[3] == -1
    assert view.of("sport").stores is view.stores
    assert tree.path("sport") == ("sport", "news", "general")
    with pytest.raises(NotFound, match="one of general, news, sport, got 'law'"):
        view.of("law")


def test_over_live_rows(tmp_path: Path) -> None:
    """Rows that traffic adds are general ones: every domain has them, behind its own."""
    live = LiveTable(_general(tmp_path, [5]), Overlay(FORMAT, 1 << 12))
    tree = DomainTree(ORIGIN, [_delta(tmp_path, "news", [6])])
    new = np.array([6, 9])
    live.overlay.insert(new, GENERAL_ROWS.packed(new, FORMAT))
    view = tree.view(live.view)
    rows = view.stores.take(view.find(np.array([6, 9, 6]), np.array([1, 1, 0], np.int32)))
    truth = [NEWS.packed(new[:1], FORMAT)[0], *GENERAL_ROWS.packed(new[::-1], FORMAT)]
    assert (rows == FORMAT.unpack(np.array(truth))).all()


def test_no_domains_is_general(tmp_path: Path) -> None:
    tree = DomainTree(ORIGIN, [])
    found = tree.view(_general(tmp_path, [5])).of(GENERAL).find(np.array([5, 6]))
    assert tree.names == (GENERAL,) and found.tolist() == [0, -1]


def _wrong(folder: Path, case: str) -> list[Table]:
    news, over = _wish("news", GENERAL, ORIGIN.encoder_digest), ORIGIN.encoder_digest
    match case:
        case "orphan":
            return [_delta(folder, "sport", [1])]
        case "twice":
            return [_delta(folder, "news", [1]), _delta(folder, "news", [2])]
        case "general":
            return [_general(folder, [1])]
        case "cycle":
            return [
                _table(folder, [1], NEWS, _wish("news", "sport", "sport")),
                _table(folder, [1], SPORT, _wish("sport", "news", "news")),
            ]
        case "encoder":
            return [_table(folder, [1], NEWS, _wish("news", GENERAL, "another"))]
        case _:
            foreign = {"backbone": {"backbone_digest": "another"}, "boundary": {"boundary": 5}}
            other = FakeEncoder(replace(NEWS.origin, **foreign[case]))  # type: ignore[arg-type]
            return [_table(folder, [1], other, replace(news, parent_encoder=over))]


@pytest.mark.parametrize(
    ("case", "kind", "why"),
    [
        ("orphan", FailedPrecondition, "needs its parent 'news', which has no table"),
        ("twice", AlreadyExists, "domain 'news' has two tables"),
        ("general", DataCorrupted, "general table is no delta"),
        ("cycle", DataCorrupted, "its own ancestor"),
        ("encoder", FailedPrecondition, "differs from rows of local encoder another"),
        ("backbone", FailedPrecondition, "for backbone another"),
        ("boundary", FailedPrecondition, "for boundary 5"),
    ],
)
def test_trees_that_are_none(tmp_path: Path, case: str, kind: type[SmileError], why: str) -> None:
    with pytest.raises(kind, match=why):
        DomainTree(ORIGIN, _wrong(tmp_path, case))


def test_rows_of_different_formats(tmp_path: Path) -> None:
    small = replace(
        _wish("news", GENERAL, ORIGIN.encoder_digest), format=RowFormat(RowDtype.INT8, WIDTH)
    )
    tree = DomainTree(ORIGIN, [_table(tmp_path, [1], NEWS, small)])
    with pytest.raises(InvalidArgument, match="domain 'news' must have rows of"):
        tree.view(_general(tmp_path, [1]))


class Partly(FakeEncoder):
    """A domain that changed a third of the general rows."""

    def numbers(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = super().numbers(keys)
        rows[keys % 3 == 0] += 1.0
        return rows


TEXTS = ["the match was won", "the match was lost", "the match", "a very long and rare text here"]


def _built(folder: Path, rules: DeltaRules, budget: int = 1 << 20) -> Table:
    own = Partly(NEWS.origin)
    encoders = Encoders(own, GENERAL_ROWS, 0)
    wish = _wish("news", GENERAL, ORIGIN.encoder_digest, budget)
    stated = build_delta(folder / "delta", TEXTS, word_ids, encoders, wish, rules)
    table = Table.open(folder / "delta", own.origin, verify=True)
    assert table.manifest == stated
    assert (table.store.rows == own.packed(table.keys, FORMAT)).all()
    return table


def test_a_delta_has_what_is_frequent_and_differs(tmp_path: Path) -> None:
    general = tmp_path / "general"
    build(general, TEXTS, word_ids, GENERAL_ROWS, 0, TableWish(FORMAT, 1 << 20, 1000))
    counted = Table.open(general)
    everything = _built(tmp_path / "1", DeltaRules(1.0, 0.0))
    assert sorted(everything.keys) == sorted(counted.keys)
    differing = _built(tmp_path / "2", DeltaRules(1.0, 0.1))
    assert sorted(differing.keys) == sorted(key for key in counted.keys if key % 3 == 0)
    frequent = NgramCounts(counted.keys, counted.counts).covering(0.5)
    half = _built(tmp_path / "3", DeltaRules(0.5, 0.1))
    assert half.keys.tolist() == [key for key in frequent.keys.tolist() if key % 3 == 0]
    assert 0 < half.manifest.rows < differing.manifest.rows < everything.manifest.rows
    small = _built(
        tmp_path / "4", DeltaRules(1.0, 0.0), int(2.5 * TableWish(FORMAT, 1, 1).entry_bytes)
    )
    assert small.keys.tolist() == counted.keys[:2].tolist()
    assert small.manifest.corpus.covered == int(counted.counts[:2].sum())


def test_a_grandchild_is_compared_with_what_its_parent_has(tmp_path: Path) -> None:
    news = _built(tmp_path, DeltaRules(1.0, 0.0))
    effective = EffectiveRows(GENERAL_ROWS, (news,))
    known, unknown = news.keys[:3], np.array([3, 6])
    rows = effective.packed(np.concatenate([unknown[:1], known, unknown[1:]]), FORMAT)
    assert (rows[1:4] == Partly(NEWS.origin).packed(known, FORMAT)).all()
    assert (rows[[0, 4]] == GENERAL_ROWS.packed(unknown, FORMAT)).all()
    assert effective.origin == NEWS.origin and EffectiveRows(GENERAL_ROWS).origin == ORIGIN


def test_deltas_that_are_none(tmp_path: Path) -> None:
    same = Encoders(FakeEncoder(NEWS.origin), GENERAL_ROWS, 0)
    wish = _wish("news", GENERAL, ORIGIN.encoder_digest)
    out = tmp_path / "delta"
    with pytest.raises(InvalidArgument, match=r"must differ .* they do so by at most 0"):
        build_delta(out, TEXTS, word_ids, same, wish, DeltaRules())
    with pytest.raises(InvalidArgument, match="at least 1 text, got 0"):
        build_delta(out, [], word_ids, same, wish, DeltaRules())
    with pytest.raises(InvalidArgument, match="budget must be at least 69 bytes, one row, got 5"):
        build_delta(out, TEXTS, word_ids, same, replace(wish, budget_bytes=5), DeltaRules())
    for name, parent in [("", GENERAL), (GENERAL, "news"), ("news", "news"), ("news", "")]:
        with pytest.raises(InvalidArgument, match="a name of its own and a parent"):
            build_delta(out, TEXTS, word_ids, same, _wish(name, parent, ""), DeltaRules())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rules", [(0.0, 0.1), (1.1, 0.1), (0.5, -0.1), (0.5, float("nan"))])
def test_rules_out_of_range(rules: tuple[float, float]) -> None:
    with pytest.raises(InvalidArgument, match="must be"):
        DeltaRules(*rules)
