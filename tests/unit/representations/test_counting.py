"""Corpora are counted as a Counter counts them, whatever the blocks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smile.model.packing import pack
from smile.model.skip.ngrams import keys_of, ngram_keys
from smile.representations import counting
from smile.representations.counting import CorpusCounter, NgramCounts
from smile.representations.keys import ANY, bigrams_of, keys_of_texts, unigrams, unigrams_of

IDS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=20)


@given(texts=IDS, outside=st.integers(0, 3))
def test_keys_are_those_of_packed_tokens(texts: list[list[int]], outside: int) -> None:
    truth = ngram_keys(pack(texts), outside).numpy()
    assert (keys_of_texts(texts, outside) == truth).all()


def test_shorter_keys() -> None:
    keys = keys_of(torch.tensor([[7, 8, 9], [2**21 - 2, 0, 5]])).numpy()
    dropped = keys_of(torch.tensor([[7, 8, ANY], [2**21 - 2, 0, ANY]])).numpy()
    alone = keys_of(torch.tensor([[ANY, 8, ANY], [ANY, 0, ANY]])).numpy()
    assert (bigrams_of(keys) == dropped).all()
    assert (unigrams_of(keys) == alone).all()
    assert unigrams(9)[8] == alone[0]
    assert (keys >= 0).all() and (alone >= 0).all()


@settings(max_examples=50, deadline=None)
@given(batches=st.lists(IDS, min_size=1, max_size=8), block=st.integers(1, 40))
def test_counted(batches: list[list[list[int]]], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "BLOCK_KEYS", block)
        counter = CorpusCounter(0)
        truth: Counter[int] = Counter()
        for texts in batches:
            counter.add(["x"] * len(texts), texts)
            truth.update(keys_of_texts(texts, 0).tolist())
        found = counter.counts()
    assert dict(zip(found.keys.tolist(), found.counts.tolist(), strict=True)) == truth
    order = list(zip((-found.counts).tolist(), found.keys.tolist(), strict=True))
    assert order == sorted(order)
    assert counter.tokens == found.total == truth.total()


@given(
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    share=st.floats(0.0, 1.0),
)
def test_covering_is_the_shortest_prefix(counts: list[int], share: float) -> None:
    ordered = np.array(sorted(counts, reverse=True), np.int64)
    given_counts = NgramCounts(np.arange(len(ordered), dtype=np.int64), ordered)
    found = given_counts.covering(share)
    assert found.total >= share * sum(counts)
    assert len(found) == 0 or found.first(len(found) - 1).total < share * sum(counts)


def test_the_digest_is_the_texts_in_order() -> None:
    def digest(*texts: str) -> str:
        counter = CorpusCounter(0)
        for text in texts:
            counter.add([text], [[1]])
        return counter.facts(0, 0).digest

    assert digest("a", "b") == digest("a", "b")
    assert len({digest(), digest("a", "b"), digest("b", "a"), digest("ab"), digest("ab", "")}) == 5
    assert digest() == ""
