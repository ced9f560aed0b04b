"""Which row an n-gram has: a whole batch is looked up at once.

Open addressing over 64-bit keys in buckets of one cache line (`smile.model.kernels.ngrams`); why it
and no other, with figures, is told in docs/adr/0014-ngram-index.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from smile.errors import InvalidArgument
from smile.model.kernels.ngrams import (
    BUCKET_WORDS,
    MISSING,
    PLACES,
    NgramKernels,
    ngram_kernels,
)

LOAD = 0.8  # of places: 16 bytes an entry, and five questions of six end at the first line
BUCKETS_MAX = (1 << 32) - 1
LINE_BYTES = 64
WORD_BYTES = 8


class NgramIndex:
    """From keys to rows. Never changes, so threads may share it.

    Args:
        table: [buckets, 8] int64, as `build` makes it; may be a file that is mapped.
        kernels: None: the best this machine has.
    """

    __slots__ = ("_kernels", "table")

    def __init__(self, table: NDArray[np.int64], kernels: NgramKernels | None = None) -> None:
        assert table.dtype == np.int64 and table.ndim == 2 and table.shape[1] == BUCKET_WORDS
        assert 1 <= len(table) <= BUCKETS_MAX, len(table)
        self.table = table
        self._kernels = kernels or ngram_kernels()

    @classmethod
    def build(
        cls,
        keys: NDArray[np.int64],
        rows: NDArray[np.int32] | None = None,
        *,
        load: float = LOAD,
        kernels: NgramKernels | None = None,
    ) -> NgramIndex:
        """An index of `keys` [n]; of one that comes up again the last row stays.

        Args:
            rows: [n], not negative; None: each key's place.
            load: Share of places that are taken at most, up to 1.

        Raises:
            InvalidArgument: a key is negative.
        """
        assert 0.0 < load <= 1.0, load
        if keys.size and keys.min() < 0:
            raise InvalidArgument(f"an n-gram's key must be at least 0, got {keys.min()}")
        if rows is None:
            rows = np.arange(len(keys), dtype=np.int32)
        assert rows.shape == keys.shape, f"{rows.shape} rows for {keys.shape} keys"
        table = _aligned(max(1, math.ceil(len(keys) / (PLACES * load))))
        made = cls(table, kernels)
        made._kernels.build(
            np.ascontiguousarray(keys, np.int64), np.ascontiguousarray(rows, np.int32), table
        )
        return made

    @property
    def nbytes(self) -> int:
        return int(self.table.nbytes)

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """The row of each key [n], -1 where there is none."""
        rows = np.full(len(keys), MISSING, np.int32)
        self.find_into(keys, rows)
        return rows

    def find_into(self, keys: NDArray[np.int64], rows: NDArray[np.int32], first: int = 0) -> None:
        """Sets rows[i] to `first` and the row of keys[i], where there is one."""
        assert rows.shape == keys.shape and rows.dtype == np.int32, f"{rows.shape}, {keys.shape}"
        self._kernels.find(np.ascontiguousarray(keys, np.int64), self.table, rows, first)

    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Every key and its row, in the table's order."""
        keys = self.table[:, :PLACES].ravel()
        rows = self.table.view(np.int32)[:, 2 * PLACES : 3 * PLACES].ravel()
        taken = keys >= 0
        return keys[taken], rows[taken]


def number_missing(
    keys: NDArray[np.int64], rows: NDArray[np.int32], first: int
) -> NDArray[np.int64]:
    """Gives keys whose row is -1 rows from `first` on, equal keys the same; returns the different
    ones in the order of their rows, [missing]."""
    assert rows.shape == keys.shape and rows.flags.c_contiguous
    return ngram_kernels().number_missing(np.ascontiguousarray(keys, np.int64), rows, first)


def _aligned(buckets: int) -> NDArray[np.int64]:
    """Memory whose buckets are whole cache lines."""
    words = buckets * BUCKET_WORDS
    memory = np.empty(words + LINE_BYTES // WORD_BYTES, np.int64)
    start = -memory.__array_interface__["data"][0] % LINE_BYTES // WORD_BYTES
    table: NDArray[np.int64] = memory[start : start + words].reshape(buckets, BUCKET_WORDS)
    return table
