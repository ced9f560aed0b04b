"""How often each n-gram comes up in a corpus.

Keys are collected, sorted once a block is full, and sorted blocks are merged as soon as two are of
similar size (O'Neil et al., The log-structured merge-tree, 1996): every key is moved a logarithmic
number of times, and memory is that of the different ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smile.representations.keys import keys_of_texts
from smile.representations.manifest import CorpusFacts

BLOCK_KEYS = 1 << 22
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class NgramCounts:
    """Different n-grams and how often each came up, the most frequent first.

    Attributes:
        keys: [n] int64; where counts are equal the smaller first.
        counts: [n] int64, at least 1.
    """

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def total(self) -> int:
        """Of all counts."""
        return int(self.counts.sum())

    def first(self, count: int) -> NgramCounts:
        """The most frequent `count` of them."""
        return NgramCounts(self.keys[:count], self.counts[:count])

    def covering(self, share: float) -> NgramCounts:
        """The fewest that make up at least this share of all occurrences."""
        assert 0.0 <= share <= 1.0, share
        if share == 0.0 or len(self) == 0:
            return self.first(0)
        reached = np.cumsum(self.counts) >= share * self.total
        return self.first(int(reached.argmax()) + 1)


class CorpusCounter:
    """Counts the n-grams of texts as they come.

    Args:
        outside: Token id of neighbours outside a text.
    """

    def __init__(self, outside: int) -> None:
        self._outside = outside
        self._digest = hashlib.sha256()
        self._texts = self._tokens = 0
        self._waiting: list[NDArray[np.int64]] = []
        self._waiting_keys = 0
        self._sorted: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    @property
    def tokens(self) -> int:
        """Counted so far."""
        return self._tokens

    def add(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        """Texts and their token ids, special tokens included."""
        for text in texts:
            data = text.encode(errors="replace")
            self._digest.update(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
        self._texts += len(texts)
        keys = keys_of_texts(ids, self._outside)
        self._tokens += len(keys)
        self._waiting.append(keys)
        self._waiting_keys += len(keys)
        if self._waiting_keys >= BLOCK_KEYS:
            self._sort()

    def counts(self) -> NgramCounts:
        """All so far."""
        self._sort()
        while len(self._sorted) > 1:
            self._merge_two()
        if not self._sorted:
            return NgramCounts(np.empty(0, np.int64), np.empty(0, np.int64))
        keys, counts = self._sorted[0]
        order = np.argsort(-counts, kind="stable")
        return NgramCounts(keys[order], counts[order])

    def facts(self, ngrams: int, covered: int) -> CorpusFacts:
        """What was counted, of which `covered` tokens have a row."""
        digest = self._digest.hexdigest() if self._texts else ""
        return CorpusFacts(digest, self._texts, self._tokens, ngrams, covered)

    def _sort(self) -> None:
        """What waits becomes a sorted block, and blocks of similar size become one."""
        if not self._waiting:
            return
        keys, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
        self._waiting, self._waiting_keys = [], 0
        self._sorted.append((keys, counts.astype(np.int64)))
        while len(self._sorted) > 1 and len(self._sorted[-2][0]) < 2 * len(self._sorted[-1][0]):
            self._merge_two()

    def _merge_two(self) -> None:
        (keys, counts), (others, more) = self._sorted.pop(), self._sorted.pop()
        both = np.concatenate([keys, others])
        order = np.argsort(both, kind="stable")  # of two sorted runs: one pass
        both, weights = both[order], np.concatenate([counts, more])[order]
        first = np.flatnonzero(np.diff(both, prepend=-1))
        self._sorted.append((both[first], np.add.reduceat(weights, first)))
