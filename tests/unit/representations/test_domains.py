"""Domains: a row of one's own, else the parent's, else the general one, in one mixed batch."""

from __future__ import annotations

from collections.abc import Mapping
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
from smile.representations.build import TableWish, build, count_texts, write
from smile.representations.counting import NgramCounts
from smile.representations.delta import DeltaRules, Encoders, build_delta, differences
from smile.representations.domains import DomainTree, EffectiveRows, usable
from smile.representations.manifest import GENERAL, CorpusFacts, DeltaFacts
from smile.representations.overlay import LiveTable, Overlay
from smile.representations.snapshot import Table
from tests.unit.representations.fakes import ORIGIN, WIDTH, FakeEncoder, word_ids

FORMAT = RowFormat(RowDtype.FLOAT16, WIDTH)
CORPUS = CorpusFacts("", 0, 0, 0, 0)
GENERAL_ROWS = FakeEncoder()


def _encoder(name: str, shift: float = 1.0) -> FakeEncoder:
    return FakeEncoder(replace(ORIGIN, encoder_digest=name), shift)


def _wish(name: str, parent: str, over: str, table: str = "", budget: int = 1 << 20) -> TableWish:
    """`over` is the parent's encoder, `table` the digest of its table."""
    facts = DeltaFacts(0.5, 0.05, 1, table)
    return TableWish(
        FORMAT, budget, 1000, domain=name, parent=parent, parent_encoder=over, delta=facts
    )


def _table(folder: Path, keys: list[int], encoder: FakeEncoder, wish: TableWish) -> Table:
    chosen = NgramCounts(np.array(keys, np.int64), np.ones(len(keys), np.int64))
    path = folder / f"{wish.domain}-{len(list(folder.iterdir()))}"
    write(path, chosen, CORPUS, encoder, wish)
    return Table.open(path)


NEWS, SPORT, LAW = _encoder("news", 1.0), _encoder("sport", 2.0), _encoder("law", 3.0)
ENCODERS = {"general": GENERAL_ROWS, "news": NEWS, "sport": SPORT, "law": LAW}
PARENTS = {"news": "general", "sport": "news", "law": "general"}


def _delta(folder: Path, name: str, keys: list[int], parent: Table | None = None) -> Table:
    over = ENCODERS[PARENTS[name]].origin.encoder_digest
    table = "" if parent is None else parent.digest
    return _table(folder, keys, ENCODERS[name], _wish(name, PARENTS[name], over, table))


def _deltas(folder: Path, keys: Mapping[str, list[int]]) -> list[Table]:
    """Of `sport`, `law` and `news`: children before parents, the order does not matter."""
    news = _delta(folder, "news", keys["news"])
    sport = _delta(folder, "sport", keys["sport"], news)
    return [sport, _delta(folder, "law", keys["law"]), news]


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
    tree = DomainTree(ORIGIN, _deltas(folder, keys))
    asked = data.draw(st.lists(st.integers(0, 32), max_size=40))
    names = [data.draw(st.sampled_from(list(keys))) for _ in asked]
    domains = np.array([tree.number(name) for name in names], np.int32)
    among = data.draw(st.sampled_from([None, set(domains.tolist())]))
    view = tree.view(general, among)
    numbers = view.find(np.array(asked, np.int64), domains)
    rows = view.stores.take(numbers)
    for place, (key, name) in enumerate(zip(asked, names, strict=True)):
        holder = next((each for each in tree.path(name) if key in keys[each]), None)
        assert (numbers[place] >= 0) == (holder is not None)
        if holder is not None:
            truth = FORMAT.unpack(ENCODERS[holder].packed(np.array([key]), FORMAT))[0]
            assert (rows[place] == truth).all()
            assert (numbers[place] < view.general_rows) == (holder == GENERAL)


def test_texts_of_one_domain(tmp_path: Path) -> None:
    news = _delta(tmp_path, "news", [5])
    tree = DomainTree(ORIGIN, [news, _delta(tmp_path, "sport", [6], news)])
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
    assert tree.digest(tree.number("news")) == news.digest and tree.digest(0) == ""
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
                _table(folder, [1], NEWS, _wish("news", "sport", "sport", "s")),
                _table(folder, [1], SPORT, _wish("sport", "news", "news", "n")),
            ]
        case "encoder":
            return [_table(folder, [1], NEWS, _wish("news", GENERAL, "another"))]
        case _:
            foreign = {"backbone": {"backbone_digest": "another"}, "boundary": {"boundary": 5}}
            other = FakeEncoder(replace(NEWS.origin, **foreign[case]))  # type: ignore[arg-type]
            return [_table(folder, [1], other, replace(news, parent_encoder=over))]


def test_a_parent_that_was_created_again_is_another(tmp_path: Path) -> None:
    before, after = _delta(tmp_path, "news", [1]), _delta(tmp_path, "news", [2])
    sport = _delta(tmp_path, "sport", [1], before)
    assert DomainTree(ORIGIN, [before, sport]).names == (GENERAL, "news", "sport")
    with pytest.raises(FailedPrecondition, match=r"made over 'news' .* create it again") as caught:
        DomainTree(ORIGIN, [after, sport])
    assert caught.value.reason == "DOMAIN_MISMATCH"


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


def test_rows_of_another_format_become_those_of_general_ones(tmp_path: Path) -> None:
    small = RowFormat(RowDtype.INT8, WIDTH)
    wish = replace(_wish("news", GENERAL, ORIGIN.encoder_digest), format=small)
    news = _table(tmp_path, [1, 2], NEWS, wish)
    view = DomainTree(ORIGIN, [news]).view(_general(tmp_path, [1]))
    keys = np.array([2, 1])
    rows = view.stores.take(view.of("news").find(keys))
    stored = small.unpack(NEWS.packed(keys, small))
    assert (rows == FORMAT.unpack(FORMAT.pack(stored))).all()
    effective = EffectiveRows(GENERAL_ROWS, (news,)).packed(keys, FORMAT)
    assert (FORMAT.unpack(effective) == rows).all()


def test_what_cannot_be_in_a_tree_takes_its_children_with_it_and_no_other(tmp_path: Path) -> None:
    sport, law, news = _deltas(tmp_path, {"news": [1], "sport": [2], "law": [3]})
    assert usable(ORIGIN, [sport, law, news])[0].names == (GENERAL, "law", "news", "sport")
    tree, faults = usable(ORIGIN, [sport, law])
    assert tree.names == (GENERAL, "law") and faults.keys() == {"sport"}
    foreign = _table(tmp_path, [1], NEWS, _wish("news", GENERAL, "another"))
    tree, faults = usable(ORIGIN, [foreign, sport, law])
    assert tree.names == (GENERAL, "law")
    assert {name: error.reason for name, error in faults.items()} == {
        "news": "ENCODER_MISMATCH",
        "sport": "DOMAIN_NOT_SERVED",
    }


class Partly(FakeEncoder):
    """A domain that changed a third of the general rows."""

    def numbers(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = super().numbers(keys)
        rows[keys % 3 == 0] += 1.0
        return rows


TEXTS = ["the match was won", "the match was lost", "the match", "a very long and rare text here"]


COUNTED = count_texts(TEXTS, word_ids, 0)


def _built(folder: Path, rules: DeltaRules, budget: int = 1 << 20) -> Table:
    own = Partly(NEWS.origin)
    encoders = Encoders(own, EffectiveRows(GENERAL_ROWS))
    wish = TableWish(FORMAT, budget, 1000, domain="news", parent=GENERAL)
    stated = build_delta(folder / "delta", COUNTED, encoders, wish, rules)
    table = Table.open(folder / "delta", own.origin, verify=True)
    assert table.manifest == stated and stated.parent_encoder == ORIGIN.encoder_digest
    assert stated.delta is not None
    assert (stated.delta.alpha, stated.delta.parent_table) == (rules.alpha, "")
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
    assert half.manifest.delta is not None and half.manifest.delta.frequent == len(frequent)
    assert 0 < half.manifest.rows < differing.manifest.rows < everything.manifest.rows
    small = _built(
        tmp_path / "4", DeltaRules(1.0, 0.0), int(2.5 * TableWish(FORMAT, 1, 1).entry_bytes)
    )
    assert small.keys.tolist() == counted.keys[:2].tolist()
    assert small.manifest.corpus.covered == int(counted.counts[:2].sum())


class Stretched(FakeEncoder):
    """Rows of a domain that are 0.4 of their length off, 0.2, or not at all."""

    def numbers(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        factors = np.array([1.4, 1.2, 1.0], np.float32)
        rows: NDArray[np.float32] = super().numbers(keys) * factors[keys % 3][:, None]
        return rows


def test_by_default_rows_that_moved_little_stay_the_parents(tmp_path: Path) -> None:
    encoders = Encoders(Stretched(NEWS.origin), EffectiveRows(GENERAL_ROWS))
    keys = COUNTED[1].covering(DeltaRules().alpha).keys
    off = differences(keys, encoders, FORMAT)
    assert np.allclose(off, np.array([0.4, 0.2, 0.0])[keys % 3], atol=1e-2)
    wish = TableWish(FORMAT, 1 << 20, 1000, domain="news", parent=GENERAL)
    build_delta(tmp_path / "delta", COUNTED, encoders, wish, DeltaRules())
    kept = Table.open(tmp_path / "delta").keys.tolist()
    assert kept == [key for key in keys.tolist() if key % 3 == 0] and len(kept) < len(keys)


def test_a_grandchild_is_compared_with_what_its_parent_has(tmp_path: Path) -> None:
    news = _built(tmp_path, DeltaRules(1.0, 0.0))
    effective = EffectiveRows(GENERAL_ROWS, (news,))
    known, unknown = news.keys[:3], np.array([3, 6])
    rows = effective.packed(np.concatenate([unknown[:1], known, unknown[1:]]), FORMAT)
    assert (rows[1:4] == Partly(NEWS.origin).packed(known, FORMAT)).all()
    assert (rows[[0, 4]] == GENERAL_ROWS.packed(unknown, FORMAT)).all()
    assert effective.origin == NEWS.origin and EffectiveRows(GENERAL_ROWS).origin == ORIGIN
    assert effective.table_digest == news.digest


def test_deltas_that_are_none(tmp_path: Path) -> None:
    same = Encoders(FakeEncoder(NEWS.origin), EffectiveRows(GENERAL_ROWS))
    wish = _wish("news", GENERAL, ORIGIN.encoder_digest)
    out = tmp_path / "delta"
    with pytest.raises(InvalidArgument, match=r"must differ .* they do so by at most 0"):
        build_delta(out, COUNTED, same, wish, DeltaRules())
    with pytest.raises(InvalidArgument, match="budget must be at least 69 bytes, one row, got 5"):
        build_delta(out, COUNTED, same, replace(wish, budget_bytes=5), DeltaRules())
    for name, parent in [("", GENERAL), (GENERAL, "news"), ("news", "news"), ("news", "")]:
        with pytest.raises(InvalidArgument, match="a name of its own and a parent"):
            build_delta(out, COUNTED, same, _wish(name, parent, ""), DeltaRules())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rules", [(0.0, 0.1), (1.1, 0.1), (0.5, -0.1), (0.5, float("nan"))])
def test_rules_out_of_range(rules: tuple[float, float]) -> None:
    with pytest.raises(InvalidArgument, match="must be"):
        DeltaRules(*rules)
