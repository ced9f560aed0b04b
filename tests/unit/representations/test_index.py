"""The index answers as a dict does, in both forms, whatever lies where."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smile.errors import InvalidArgument
from smile.model.kernels.build import Places, load
from smile.model.kernels.ngrams import NUMPY, PLACES, NativeNgrams, NgramKernels, _homes
from smile.model.kernels.tape import Library
from smile.representations.index import NgramIndex

HANDLE = load(Places()).handle
FORMS = {"numpy": NUMPY} | ({} if HANDLE is None else {"native": NativeNgrams(Library(HANDLE))})
KEY_MAX = (1 << 63) - 1
KEYS = st.one_of(st.integers(0, KEY_MAX), st.integers(0, 20), st.integers(KEY_MAX - 20, KEY_MAX))

both = pytest.mark.parametrize("form", FORMS)
pairs = pytest.mark.parametrize("reader", FORMS)


def _array(keys: list[int]) -> NDArray[np.int64]:
    return np.array(keys, np.int64)


def _together(buckets: int, count: int, home: int) -> NDArray[np.int64]:
    """Keys that all belong in one bucket."""
    candidates = np.arange(count * buckets * 4, dtype=np.int64)
    found: NDArray[np.int64] = candidates[_homes(candidates, buckets) == home][:count]
    assert len(found) == count
    return found


@both
@pairs
@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(KEYS, max_size=200), asked=st.lists(KEYS, max_size=200), load=st.floats(0.2, 1.0)
)
def test_as_a_dict(form: str, reader: str, keys: list[int], asked: list[int], load: float) -> None:
    """What one form built, the other reads."""
    index = NgramIndex.build(_array(keys), load=load, kernels=FORMS[form])
    truth = {key: row for row, key in enumerate(keys)}
    questions = asked + keys
    found = NgramIndex(index.table, FORMS[reader]).find(_array(questions))
    assert found.tolist() == [truth.get(key, -1) for key in questions]


@both
@settings(max_examples=40, deadline=None)
@given(keys=st.lists(KEYS, max_size=100), known=st.sets(KEYS, max_size=50))
def test_missing_are_numbered_once(form: str, keys: list[int], known: set[int]) -> None:
    rows = _array([3 if key in known else -1 for key in keys]).astype(np.int32)
    missing = FORMS[form].number_missing(_array(keys), rows, 1000)
    unknown = list(dict.fromkeys(key for key in keys if key not in known))
    assert missing.tolist() == unknown
    assert rows.tolist() == [3 if k in known else 1000 + unknown.index(k) for k in keys]


@both
@pytest.mark.parametrize("home", [0, 3, 7])
def test_all_in_one_bucket(form: str, home: int) -> None:
    """The worst case: keys of one bucket fill its followers, past the table's end."""
    buckets, count = 8, 4 * PLACES
    keys = _together(buckets, count + 5, home)
    index = NgramIndex.build(keys[:count], load=count / (buckets * PLACES), kernels=FORMS[form])
    assert len(index.table) == buckets
    assert index.find(keys).tolist() == [*range(count), *[-1] * 5]


@both
def test_full_to_the_last_place(form: str) -> None:
    keys = np.random.default_rng(0).permutation(np.arange(0, 10_000 * PLACES, PLACES))
    index = NgramIndex.build(keys, load=1.0, kernels=FORMS[form])
    assert index.nbytes == len(keys) // PLACES * 64
    assert (index.find(keys) == np.arange(len(keys))).all()
    assert (index.find(keys + 1) == -1).all()


@both
def test_empty(form: str) -> None:
    index = NgramIndex.build(_array([]), kernels=FORMS[form])
    assert index.find(_array([])).tolist() == []
    assert index.find(_array([0, KEY_MAX])).tolist() == [-1, -1]
    assert [len(part) for part in index.entries()] == [0, 0]


@both
def test_rows_of_its_own_and_a_first(form: str) -> None:
    index = NgramIndex.build(_array([5, 6, 5]), np.array([7, 8, 9], np.int32), kernels=FORMS[form])
    rows = np.array([100, 101, 102], np.int32)
    index.find_into(_array([5, 4, 6]), rows, first=1000)
    assert rows.tolist() == [1009, 101, 1008]
    entries = zip(*(part.tolist() for part in index.entries()), strict=True)
    assert sorted(entries) == [(5, 9), (6, 8)]


@both
def test_negative_keys(form: str) -> None:
    """Nothing is found for them, not even an empty place, and none is taken in."""
    index = NgramIndex.build(_array([1, 2]), kernels=FORMS[form])
    assert index.find(_array([-1, -2, 1])).tolist() == [-1, -1, 0]
    with pytest.raises(InvalidArgument, match="at least 0, got -1"):
        NgramIndex.build(_array([3, -1]), kernels=FORMS[form])


def test_a_strided_batch() -> None:
    keys = np.arange(100, dtype=np.int64).reshape(50, 2)
    index = NgramIndex.build(keys[:, 1])
    assert (index.find(keys[:, 1]) == np.arange(50)).all()


def test_forms_are_both_here() -> None:
    if HANDLE is None:
        pytest.skip(load(Places()).origin)
    kernels: NgramKernels = FORMS["native"]
    assert NgramIndex.build(_array([1]))._kernels.__class__ is kernels.__class__
