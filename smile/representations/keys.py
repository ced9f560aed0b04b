"""Keys of n-grams without torch: what `smile.model.skip.ngrams` makes of packed tokens.

A key is `left << 42 | centre << 21 | right`. A neighbour that is left out is `ANY`: both for a
unigram, the right one for a bigram.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ID_BITS = 21
ANY = (1 << ID_BITS) - 1


def keys_of_texts(texts: Sequence[Sequence[int]], outside: int) -> NDArray[np.int64]:
    """The key of every token's trigram, text after text: [tokens] int64.

    Args:
        texts: Token ids of each, special tokens included; at least one each.
        outside: Stands for a neighbour outside the text.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    total = int(lengths.sum())
    ids = np.fromiter(itertools.chain.from_iterable(texts), np.int64, total)
    left, right = np.empty_like(ids), np.empty_like(ids)
    left[1:], right[:-1] = ids[:-1], ids[1:]
    ends = lengths.cumsum()
    left[ends - lengths] = outside
    right[ends - 1] = outside
    return pack_keys(left, ids, right)


def pack_keys(
    left: NDArray[np.int64], centre: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Three token ids [n] to keys [n]."""
    keys: NDArray[np.int64] = (left << 2 * ID_BITS) | (centre << ID_BITS) | right
    return keys


def bigrams_of(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same without the right neighbour."""
    return keys | ANY


def unigrams_of(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same without neighbours."""
    return keys | (ANY << 2 * ID_BITS) | ANY


def unigrams(vocab: int) -> NDArray[np.int64]:
    """The unigram of every token id, in order."""
    return unigrams_of(np.arange(vocab, dtype=np.int64) << ID_BITS)
