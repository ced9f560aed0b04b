"""The kernels of an n-gram index (ngram_index.cpp), and the same in NumPy.

An index is a table of buckets, [buckets, 8] int64, each a cache line: five keys, five int32 rows,
and an int32 that is not 0 where a key that belongs here or before was put behind. Empty places have
key and row -1. A key's bucket is decided by a mixing function that both forms share: either can
read what the other built.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from smile.model.kernels.build import Places, load
from smile.model.kernels.tape import Library

PLACES = 5
BUCKET_WORDS = 8
MISSING = -1

_FIRST_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SECOND_FACTOR = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


class NgramKernels(Protocol):
    """Arrays are contiguous; keys are not negative. Threads may share it."""

    def build(
        self, keys: NDArray[np.int64], rows: NDArray[np.int32], table: NDArray[np.int64]
    ) -> None:
        """Fills a table that has room. Of a key that comes up again the last row stays."""
        ...

    def find(
        self,
        keys: NDArray[np.int64],
        table: NDArray[np.int64],
        rows: NDArray[np.int32],
        first: int = 0,
    ) -> None:
        """rows[i] = first + the row of keys[i]; one that is not there leaves rows[i] as it is."""
        ...

    def number_missing(
        self, keys: NDArray[np.int64], rows: NDArray[np.int32], first: int
    ) -> NDArray[np.int64]:
        """Gives keys whose row is -1 rows from `first` on, equal keys the same, in the order in
        which they come up. Returns the different ones, in that order."""
        ...


class NativeNgrams:
    """The kernels of one library. The interpreter's lock is free meanwhile."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def build(
        self, keys: NDArray[np.int64], rows: NDArray[np.int32], table: NDArray[np.int64]
    ) -> None:
        self._run("build", _at(keys), _at(rows), len(keys), _at(table), len(table))

    def find(
        self,
        keys: NDArray[np.int64],
        table: NDArray[np.int64],
        rows: NDArray[np.int32],
        first: int = 0,
    ) -> None:
        self._run("find", _at(keys), len(keys), _at(table), len(table), first, _at(rows))

    def number_missing(
        self, keys: NDArray[np.int64], rows: NDArray[np.int32], first: int
    ) -> NDArray[np.int64]:
        missing = np.empty(len(keys), np.int64)
        count = np.zeros(1, np.int64)
        self._run("number", _at(keys), _at(rows), len(keys), first, _at(missing), _at(count))
        return missing[: int(count[0])]

    def _run(self, name: str, *words: int) -> None:
        self._library.run((self._library.function(f"ngrams_{name}"), len(words), *words))


class NumpyNgrams:
    """The kernels without native code."""

    def build(
        self, keys: NDArray[np.int64], rows: NDArray[np.int32], table: NDArray[np.int64]
    ) -> None:
        in_keys, in_rows, passed = _columns(table)
        table.fill(-1)
        passed.fill(0)
        keys, last = np.unique(keys[::-1], return_index=True)
        rows = rows[::-1][last]
        at = _homes(keys, len(table))
        filled = np.zeros(len(table), np.int64)
        while len(keys):  # each round puts what fits, and what does not goes a bucket further
            order = np.argsort(at, kind="stable")
            keys, rows, at = keys[order], rows[order], at[order]
            place = np.arange(len(at)) - np.searchsorted(at, at) + filled[at]
            fits = place < PLACES
            in_keys[at[fits], place[fits]] = keys[fits]
            in_rows[at[fits], place[fits]] = rows[fits]
            np.add.at(filled, at[fits], 1)
            passed[at[~fits]] = 1
            keys, rows, at = keys[~fits], rows[~fits], (at[~fits] + 1) % len(table)

    def find(
        self,
        keys: NDArray[np.int64],
        table: NDArray[np.int64],
        rows: NDArray[np.int32],
        first: int = 0,
    ) -> None:
        in_keys, in_rows, passed = _columns(table)
        asked = np.flatnonzero(keys >= 0)
        at = _homes(keys[asked], len(table))
        for _ in range(len(table)):
            if len(asked) == 0:
                return
            equal = in_keys[at] == keys[asked, None]  # [asked, places]
            hits = equal.any(axis=1)
            places = equal[hits].argmax(axis=1)
            rows[asked[hits]] = first + in_rows[at[hits], places]
            on = ~hits & (passed[at] != 0)
            asked, at = asked[on], (at[on] + 1) % len(table)

    def number_missing(
        self, keys: NDArray[np.int64], rows: NDArray[np.int32], first: int
    ) -> NDArray[np.int64]:
        places = np.flatnonzero(rows == MISSING)
        found, at, back = np.unique(keys[places], return_index=True, return_inverse=True)
        order = np.argsort(at)  # of the different keys, as they come up
        numbers = np.empty(len(found), np.int32)
        numbers[order] = np.arange(len(found), dtype=np.int32)
        rows[places] = first + numbers[back]
        return found[order]


NUMPY = NumpyNgrams()


@functools.cache
def ngram_kernels() -> NgramKernels:
    """The native ones where they can be had; the first call may compile, for seconds."""
    loaded = load(Places())
    return NUMPY if loaded.handle is None else NativeNgrams(Library(loaded.handle))


def _at(array: NDArray[np.int64] | NDArray[np.int32]) -> int:
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])


def _columns(
    table: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Keys [buckets, 5], rows [buckets, 5] and the passed flags [buckets], views."""
    halves = table.view(np.int32)
    return table[:, :PLACES], halves[:, 2 * PLACES : 3 * PLACES], halves[:, 3 * PLACES]


def _homes(keys: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """The bucket in which each key belongs."""
    bits = keys.view(np.uint64)
    with np.errstate(over="ignore"):
        bits = (bits ^ (bits >> np.uint64(31))) * _FIRST_FACTOR
        bits = (bits ^ (bits >> _HALF)) * _SECOND_FACTOR
    return (((bits >> _HALF) * np.uint64(buckets)) >> _HALF).astype(np.int64)
