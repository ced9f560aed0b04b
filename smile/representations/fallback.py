"""What serves n-grams that a table has no row of: one policy, chosen when an encoder is distilled.

A policy is a `smile.model.materialized.RowView` over a table's: it says which row serves each
n-gram, and leaves to be computed what it has none for. The default leaves all that is missing. The
other computes nothing: a missing trigram is served by its bigram, that by its unigram, as SkipBERT
does under a deadline (Wang et al., ACL 2022); it needs a table of `Kinds.FALLBACK`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from smile.model.ngram_rows import RowStores
from smile.model.skip.policy import MissPolicy
from smile.representations.build import Kinds
from smile.representations.index import NgramIndex
from smile.representations.keys import bigrams_of, unigrams, unigrams_of

Keys: TypeAlias = NDArray[np.int64]
Numbers: TypeAlias = NDArray[np.int32]

KINDS: Mapping[MissPolicy, Kinds] = {
    MissPolicy.COMPUTE: Kinds.TRIGRAMS,
    MissPolicy.SHORTER: Kinds.FALLBACK,
}


class Rows(Protocol):
    """Rows that can be had, as of one moment."""

    @property
    def stores(self) -> RowStores: ...

    def find(self, keys: Keys) -> Numbers: ...


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

    def find(self, keys: Keys) -> Numbers:
        """The number of the row that serves each trigram [n], new; -1 where there is none."""
        return self.found(keys)[0]

    def found(self, keys: Keys) -> tuple[Numbers, Lengths]:
        """The same, and how many were served by which."""
        return _longest(self.rows.find, keys)


def under(policy: MissPolicy, rows: Rows) -> Rows:
    """The rows that serve each n-gram; -1, to be computed, where a policy has none for it."""
    return Shorter(rows) if policy is MissPolicy.SHORTER else rows


def served(policy: MissPolicy, asked: Keys, known: Keys, vocab: int) -> Keys:
    """The n-gram that serves each of `asked` [n] once a table has the trigrams `known`, and what
    the policy wants beside them.

    Args:
        vocab: Token ids are below it.
    """
    if policy is MissPolicy.COMPUTE:
        return asked
    there = np.unique(np.concatenate([unigrams(vocab), bigrams_of(known), known]))
    numbers, _ = _longest(NgramIndex.build(there).find, asked)
    found: Keys = there[numbers]
    return found


def _longest(find: Callable[[Keys], Numbers], keys: Keys) -> tuple[Numbers, Lengths]:
    numbers = find(keys)
    missing = [int(np.count_nonzero(numbers < 0))]
    for shorter in (bigrams_of, unigrams_of):
        places = np.flatnonzero(numbers < 0)
        numbers[places] = find(shorter(keys[places]))
        missing.append(int(np.count_nonzero(numbers < 0)))
    no_trigram, no_bigram, nothing = missing
    return numbers, Lengths(
        len(keys) - no_trigram, no_trigram - no_bigram, no_bigram - nothing, nothing
    )
