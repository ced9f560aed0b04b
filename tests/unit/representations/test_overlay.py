"""Live rows: whoever looks up while others insert and evict finds the right row or none."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from smile.errors import InvalidArgument
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.representations.build import TableWish, build
from smile.representations.keys import keys_of_texts
from smile.representations.overlay import INDEX_BYTES, LiveTable, Overlay
from smile.representations.snapshot import Table
from smile.representations.traffic import CountRules, Counts, Weighed
from smile.representations.update import Updater
from tests.unit.representations.fakes import WIDTH, FakeEncoder, word_ids

FORMAT = RowFormat(RowDtype.INT8, WIDTH)
ENCODER = FakeEncoder()
ROUNDS = 300


def _overlay(rows: int) -> Overlay:
    return Overlay(FORMAT, rows * (FORMAT.row_bytes + INDEX_BYTES))


def _packed(keys: NDArray[np.int64]) -> NDArray[np.uint8]:
    return ENCODER.packed(keys, FORMAT)


def _right(live: LiveTable, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which keys are found; those that are have their own rows."""
    view = live.view
    numbers = view.find(keys)
    found = numbers >= 0
    rows = view.stores.take(numbers)
    assert (rows[found] == FORMAT.unpack(_packed(keys))[found]).all()
    return found


class Machine(RuleBasedStateMachine):
    """Against a dict of what should be there; with views that somebody keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.live = LiveTable(None, _overlay(6))
        self.truth: set[int] = set()
        self.kept: list[tuple[object, NDArray[np.int64]]] = []

    @rule(keys=st.lists(st.integers(0, 20), max_size=6))
    def insert(self, keys: list[int]) -> None:
        given_keys = np.array(keys, np.int64)
        room = self.live.overlay.room
        new = [key for key in dict.fromkeys(keys) if key not in self.truth][:room]
        assert self.live.overlay.insert(given_keys, _packed(given_keys)) == len(new)
        self.truth.update(new)

    @rule(keys=st.lists(st.integers(0, 20), max_size=4))
    def remove(self, keys: list[int]) -> None:
        gone = self.truth & set(keys)
        assert self.live.overlay.remove(np.array(keys, np.int64)) == len(gone)
        self.truth -= gone

    @rule()
    def keep(self) -> None:
        view = self.live.view
        keys = np.array(sorted(self.truth), np.int64)
        self.kept.append((view, keys))

    @rule()
    def drop(self) -> None:
        self.kept = self.kept[1:]

    @invariant()
    def right(self) -> None:
        asked = np.arange(21)
        assert _right(self.live, asked).tolist() == [key in self.truth for key in range(21)]
        for view, keys in self.kept:  # still finds what it found, whatever came since
            numbers = view.find(keys)  # type: ignore[attr-defined]
            assert (numbers >= 0).all()
            truth = FORMAT.unpack(_packed(keys)) if len(keys) else np.empty((0, 3 * WIDTH))
            assert (view.stores.take(numbers) == truth).all()  # type: ignore[attr-defined]

    @invariant()
    def places_add_up(self) -> None:
        if not self.kept:
            self.live.refresh()
            assert self.live.overlay.room == 6 - len(self.truth)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_places_wait_for_old_views() -> None:
    live = LiveTable(None, _overlay(2))
    keys = np.arange(4)
    live.overlay.insert(keys[:2], _packed(keys[:2]))
    old = live.view
    live.overlay.remove(keys[:1])
    live.refresh()
    assert live.overlay.room == 0 and live.overlay.insert(keys[3:], _packed(keys[3:])) == 0
    assert old.find(keys).tolist() == [0, 1, -1, -1]
    del old
    gc.collect()
    assert live.overlay.insert(keys[3:], _packed(keys[3:])) == 1
    assert live.view.find(keys).tolist() == [-1, 1, -1, 0]


def test_readers_beside_a_writer() -> None:
    """Every row that is found is the right one, while places change hands all the time."""
    live = LiveTable(None, _overlay(64))
    asked = np.arange(200)
    truth = FORMAT.unpack(_packed(asked))
    done = threading.Event()
    wrong: list[str] = []
    looked = [0, 0]

    def read(reader: int) -> None:
        while not done.is_set() or looked[reader] == 0:
            view = live.view
            numbers = view.find(asked)
            rows = view.stores.take(numbers)
            found = numbers >= 0
            if not (rows[found] == truth[found]).all():
                wrong.append(f"reader {reader} after {looked[reader]}")
            looked[reader] += 1

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for reader in readers:
        reader.start()
    chance = np.random.default_rng(0)
    inserted = 0
    for _ in range(ROUNDS):
        keys = chance.choice(asked, 40, replace=False)
        inserted += live.overlay.insert(keys, _packed(keys))
        live.overlay.remove(chance.choice(asked, 40, replace=False))
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert inserted > ROUNDS and min(looked) > 0


def test_two_writers_of_one_row() -> None:
    overlay = _overlay(1000)
    keys = np.arange(500)
    rows = _packed(keys)
    inserted: list[int] = []

    def write() -> None:
        for start in range(0, 500, 50):
            part = slice(start, start + 50)
            inserted.append(overlay.insert(keys[part], rows[part]))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(inserted) == 500 == len(overlay)
    assert _right(LiveTable(None, overlay), keys).all()


def test_a_table_and_live_rows(tmp_path: Path) -> None:
    texts = ["the cat sat", "the dog ran"]
    build(tmp_path / "table", texts, word_ids, ENCODER, 0, TableWish(FORMAT, 1 << 20, 1000))
    live = LiveTable(Table.open(tmp_path / "table"), _overlay(10))
    known, new = keys_of_texts(word_ids(texts), 0), np.array([5, 6])
    assert not _right(live, new).any()
    live.overlay.insert(new, _packed(new))
    assert _right(live, np.concatenate([known, new])).all()
    live.overlay.clear()
    assert _right(live, known).all() and not _right(live, new).any()


def test_formats_that_differ(tmp_path: Path) -> None:
    build(tmp_path / "table", ["a"], word_ids, ENCODER, 0, TableWish(FORMAT, 1 << 20, 1000))
    other = Overlay(RowFormat(RowDtype.FLOAT16, WIDTH), 1 << 16)
    with pytest.raises(InvalidArgument, match="rows must be"):
        LiveTable(Table.open(tmp_path / "table"), other)


def test_a_budget_without_room() -> None:
    with pytest.raises(InvalidArgument, match="at least 84 bytes, one row, got 83"):
        Overlay(FORMAT, 83)


def _updater(rows: int, **rules: float) -> tuple[Updater, LiveTable, Counts]:
    live = LiveTable(None, _overlay(rows))
    stated = CountRules(**{"tenants_min": 2, "count_min": 2.0, **rules})  # type: ignore[arg-type]
    counts = Counts(stated, clock=lambda: 0.0)
    return Updater(live, counts, ENCODER), live, counts


def _ask(counts: Counts, times: dict[int, int]) -> None:
    keys = np.repeat(np.array(list(times), np.int64), list(times.values()))
    for tenant in range(64):  # surely of two groups
        counts.observe(keys, f"tenant-{tenant}")


def test_a_round_admits_what_is_asked() -> None:
    updater, live, counts = _updater(3)
    _ask(counts, {1: 5, 2: 4, 3: 3, 4: 2})
    counts.observe(np.full(1000, 9), "alone")
    learned = updater.round()
    assert learned.keys.tolist() == [1, 2, 3] and learned.evicted == 0
    assert (learned.rows == _packed(learned.keys)).all()
    assert _right(live, np.array([1, 2, 3, 4, 9])).tolist() == [True, True, True, False, False]
    assert len(updater.round().keys) == 0


def test_a_round_evicts_what_is_asked_less() -> None:
    updater, live, counts = _updater(2)
    _ask(counts, {1: 2, 2: 8})
    updater.round()
    _ask(counts, {3: 5})
    learned = updater.round()
    assert learned.keys.tolist() == [3] and learned.evicted == 1
    assert _right(live, np.array([1, 2, 3])).tolist() == [False, True, True]


def test_rounds_are_bounded() -> None:
    updater, live, counts = _updater(100)
    _ask(counts, {key: 5 for key in range(50)})
    assert len(updater.round(20).keys) == 20 == len(live.overlay)


def test_rows_of_other_processors() -> None:
    updater, live, counts = _updater(3)
    _ask(counts, {1: 9})
    updater.round()
    told = Weighed(np.array([5, 6, 7, 1]), np.array([4.0, 3.0, 2.0, 1.0], np.float32))
    assert updater.accept(told, _packed(told.keys)) == 2
    assert _right(live, np.array([1, 5, 6, 7])).tolist() == [True, True, True, False]


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 300))
def test_memory_is_the_budget(size: int) -> None:
    overlay = _overlay(size)
    keys = np.arange(2 * size)
    overlay.insert(keys, _packed(keys))
    budget = size * (FORMAT.row_bytes + INDEX_BYTES)
    assert len(overlay) == size
    assert overlay._rows.nbytes + 2 * overlay.view.index.nbytes <= budget + 2 * 64
