"""A missing trigram is served by the longest shorter n-gram that is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smile.model.ngram_rows import RowDtype, RowFormat
from smile.representations.build import Kinds, TableWish, build
from smile.representations.fallback import Lengths, Shorter
from smile.representations.keys import (
    bigrams_of,
    keys_of_texts,
    pack_keys,
    unigrams_of,
)
from smile.representations.snapshot import Table
from tests.unit.representations.fakes import WIDTH, FakeEncoder, word_ids

FORMAT = RowFormat(RowDtype.FLOAT16, WIDTH)
VOCAB = 1000


def _table(folder: Path, kinds: Kinds) -> Table:
    wish = TableWish(FORMAT, 1 << 20, VOCAB, kinds)
    build(folder / "table", ["the cat sat down"], word_ids, FakeEncoder(), 0, wish)
    return Table.open(folder / "table")


def _keys(*ngrams: tuple[int, int, int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return pack_keys(*np.array(ngrams, np.int64).T)


def test_the_longest_that_is_there(tmp_path: Path) -> None:
    shorter = Shorter(_table(tmp_path, Kinds.FALLBACK))
    (ids,) = word_ids(["the cat sat down"])
    known = (ids[1], ids[2], ids[3])
    asked = _keys(known, (known[0], known[1], 999), (998, known[1], 999), (1, 2000, 3))
    numbers, lengths = shorter.found(asked)
    wanted = [asked[0], bigrams_of(asked)[1], unigrams_of(asked)[2]]
    truth = FORMAT.unpack(FakeEncoder().packed(np.array(wanted), FORMAT))
    assert (shorter.stores.take(numbers[:3]) == truth).all() and numbers[3] == -1
    assert lengths == Lengths(trigrams=1, bigrams=1, unigrams=1, nothing=1)
    assert (shorter.find(asked) == numbers).all()


def test_a_table_of_trigrams_alone(tmp_path: Path) -> None:
    shorter = Shorter(_table(tmp_path, Kinds.TRIGRAMS))
    keys = keys_of_texts(word_ids(["the cat ran down"]), 0)
    _, lengths = shorter.found(keys)
    assert (lengths.bigrams, lengths.unigrams) == (0, 0)
    assert lengths.trigrams + lengths.nothing == len(keys) == 6


def test_no_tokens(tmp_path: Path) -> None:
    shorter = Shorter(_table(tmp_path, Kinds.TRIGRAMS))
    assert shorter.found(np.empty(0, np.int64))[1] == Lengths(0, 0, 0, 0)
