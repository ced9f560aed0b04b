"""The kernels of n-gram indexes and counts (ngram_index.cpp, ngram_counts.cpp), and NumPy's.

An index is a table of buckets, [buckets, 8] int64, each a cache line: five keys, five int32 rows,
and an int32 that is not 0 where a key that belongs here or before was put behind. Empty places have
key and row -1. A key's bucket is decided by a mixing function that both forms share: either can
read what the other built.

Counts lie in lines of four cells, [lines, 8] int64: a key, -1 where there is none, and a word of a
float32 count and 32 bits, one for each group of tenants that asked.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from smile.model.kernels.build import Places, load
from smile.model.kernels.tape import Library, real

PLACES = 5
BUCKET_WORDS = 8
CELLS = 4
LINE_WORDS = 8
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

    def count(
        self, keys: NDArray[np.int64], lines: NDArray[np.int64], weight: float, tenant: int
    ) -> None:
        """Counts `weight` more of every key, and sets its bits of `tenant`. A key that has no cell
        takes the one with the least count in its line: what was counted there is forgotten."""
        ...

    def counted(self, keys: NDArray[np.int64], lines: NDArray[np.int64]) -> NDArray[np.float32]:
        """What was counted of each key [n]; 0 where it has no cell."""
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

    def count(
        self, keys: NDArray[np.int64], lines: NDArray[np.int64], weight: float, tenant: int
    ) -> None:
        self._run("count", _at(keys), len(keys), _at(lines), len(lines), real(weight), tenant)

    def counted(self, keys: NDArray[np.int64], lines: NDArray[np.int64]) -> NDArray[np.float32]:
        counts = np.empty(len(keys), np.float32)
        self._run("counted", _at(keys), len(keys), _at(lines), len(lines), _at(counts))
        return counts

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

    def count(
        self, keys: NDArray[np.int64], lines: NDArray[np.int64], weight: float, tenant: int
    ) -> None:
        in_keys, counts, tenants = cells_of(lines)
        keys, times = np.unique(keys, return_counts=True)
        at = _homes(keys, len(lines))
        order = np.argsort(at, kind="stable")
        keys, at, weights = keys[order], at[order], times[order] * np.float32(weight)
        turn = np.arange(len(at)) - np.searchsorted(at, at)
        for now in range(int(turn.max(initial=-1)) + 1):  # keys of one line take turns
            mine = turn == now
            line, key = at[mine], keys[mine]
            equal = in_keys[line] == key[:, None]
            known = equal.any(axis=1)
            cell = np.where(known, equal.argmax(axis=1), counts[line].argmin(axis=1))
            counts[line, cell] = np.where(known, counts[line, cell], 0) + weights[mine]
            tenants[line, cell] = np.where(known, tenants[line, cell], 0) | np.uint32(tenant)
            in_keys[line, cell] = key

    def counted(self, keys: NDArray[np.int64], lines: NDArray[np.int64]) -> NDArray[np.float32]:
        in_keys, counts, _ = cells_of(lines)
        at = _homes(keys, len(lines))
        equal = in_keys[at] == keys[:, None]
        found: NDArray[np.float32] = np.where(equal, counts[at], np.float32(0)).max(axis=1)
        return found


NUMPY = NumpyNgrams()


@functools.cache
def ngram_kernels() -> NgramKernels:
    """The native ones where they can be had; the first call may compile, for seconds."""
    loaded = load(Places())
    return NUMPY if loaded.handle is None else NativeNgrams(Library(loaded.handle))


def empty_lines(lines: int) -> NDArray[np.int64]:
    """Lines of cells with no key and no count."""
    made = np.zeros((lines, LINE_WORDS), np.int64)
    made[:, 0::2] = -1
    return made


def cells_of(
    lines: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint32]]:
    """Keys, counts and tenants' bits of lines, [lines, 4] each, views."""
    return lines[:, 0::2], lines.view(np.float32)[:, 2::4], lines.view(np.uint32)[:, 3::4]


def _at(array: NDArray[np.int64] | NDArray[np.int32] | NDArray[np.float32]) -> int:
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
