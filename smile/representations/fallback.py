"""The policy that computes nothing: a missing trigram is served by its bigram, that by its unigram.

As SkipBERT does under a deadline (Wang et al., ACL 2022). It needs a table of `Kinds.FALLBACK` from
an encoder that was trained to leave neighbours out; the default is to compute what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from smile.model.ngram_rows import RowStores
from smile.representations.keys import bigrams_of, unigrams_of


class Rows(Protocol):
    """Rows that can be had, as of one moment."""

    @property
    def stores(self) -> RowStores: ...

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]: ...


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many tokens of a batch were served by which n-gram.

    Attributes:
        nothing: Not even their unigram was there.
    """

    trigrams: int
    bigrams: int
    unigrams: int
    nothing: int


@dataclass(frozen=True, slots=True)
class Shorter:
    """Rows of the longest n-gram that is there; implements `smile.model.materialized.RowView`."""

    rows: Rows

    @property
    def stores(self) -> RowStores:
        return self.rows.stores

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """The number of the row that serves each trigram [n], new; -1 where there is none."""
        return self.found(keys)[0]

    def found(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int32], Lengths]:
        """The same, and how many were served by which."""
        numbers = self.rows.find(keys)
        missing = [int(np.count_nonzero(numbers < 0))]
        for shorter in (bigrams_of, unigrams_of):
            places = np.flatnonzero(numbers < 0)
            numbers[places] = self.rows.find(shorter(keys[places]))
            missing.append(int(np.count_nonzero(numbers < 0)))
        no_trigram, no_bigram, nothing = missing
        return numbers, Lengths(
            len(keys) - no_trigram, no_trigram - no_bigram, no_bigram - nothing, nothing
        )
