"""A corpus as the student meets it: pieces of documents as token ids.

Serving sees sentences and passages, so both are learned from: every sentence alone, and each
document again as passages of whole sentences.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from smile.errors import InvalidArgument
from smile.model.skip.distill.documents import Document
from smile.model.tokenizer import TextTokenizer

SPECIAL_TOKENS = 2  # around a text
PASSAGE_LENGTHS = 3  # each half of the one before
PASSAGE_TOKENS_MIN = 16
LENGTH_JITTER_TOKENS = 1.5  # texts of nearly one length meet others each epoch


@dataclass(frozen=True, slots=True)
class Pieces:
    """Texts as token ids, special tokens included.

    Attributes:
        labels: Of each text's document.
        documents: Each text's document, by number.
    """

    ids: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    documents: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids, in hex."""
        total = hashlib.sha256()
        for ids in self.ids:
            total.update(len(ids).to_bytes(8, "big") + np.asarray(ids, "<u4").tobytes())
        return total.hexdigest()


def cut(documents: Sequence[Document], tokenizer: TextTokenizer, tokens_max: int) -> Pieces:
    """Sentences, and passages of at least two, of at most so many tokens; of some documents half as
    many and of some a quarter, so that texts of all lengths are met.

    Raises:
        InvalidArgument: no document has a sentence.
    """
    ids: list[tuple[int, ...]] = []
    numbers: list[int] = []
    for number, document in enumerate(documents):
        sentences = document.sentences()
        if not sentences:
            continue
        alone = tokenizer.encode(sentences, truncate=True)
        most = max(PASSAGE_TOKENS_MIN, tokens_max >> number % PASSAGE_LENGTHS)
        passages = list(_passages(sentences, [len(text) for text in alone], most))
        together = tokenizer.encode(passages, truncate=True) if passages else []
        found = [_cut_off(text.ids, tokens_max) for text in (*alone, *together)]
        ids += found
        numbers += [number] * len(found)
    if not ids:
        raise InvalidArgument("a corpus must have at least 1 sentence of 3 words, got 0")
    return Pieces(tuple(ids), tuple(documents[one].label for one in numbers), tuple(numbers))


def batches(pieces: Pieces, tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's batches as indices of texts, in the order in which they are learned from. Texts of
    a batch are of nearly the same length; the same arguments give the same batches."""
    drawn = random.Random(f"{seed}/{epoch}")  # noqa: S311 -- repeatable, not secret
    keys = [len(ids) + drawn.uniform(0, LENGTH_JITTER_TOKENS) for ids in pieces.ids]
    found: list[list[int]] = [[]]
    filled = 0
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        if filled + len(pieces.ids[index]) > tokens and found[-1]:
            found.append([])
            filled = 0
        found[-1].append(index)
        filled += len(pieces.ids[index])
    drawn.shuffle(found)
    return found


def _passages(sentences: Sequence[str], lengths: Sequence[int], most: int) -> Iterator[str]:
    taken: list[str] = []
    filled = SPECIAL_TOKENS
    for sentence, length in zip(sentences, lengths, strict=True):
        own = length - SPECIAL_TOKENS
        if taken and filled + own > most:
            if len(taken) > 1:
                yield " ".join(taken)
            taken, filled = [], SPECIAL_TOKENS
        taken.append(sentence)
        filled += own
    if len(taken) > 1:
        yield " ".join(taken)


def _cut_off(ids: Sequence[int], most: int) -> tuple[int, ...]:
    """The text's first tokens and its last, which ends it."""
    return tuple(ids) if len(ids) <= most else (*ids[: most - 1], ids[-1])
