"""Examples as tokens: distinct texts once, and rows that point to them.

A row of a pair points to two texts, every other row to one. Texts are cut to the job's longest
length, their last special token kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.trainer.data.examples import Example, LabeledText, LabeledWords, TextPair
from smile.model.losses import IGNORED_LABEL
from smile.model.tokenizer import TextTokenizer, TokenizedText

TOKENIZED_AT_ONCE = 256
WINDOW_BATCHES = 16  # rows are sorted by length inside windows of this many batches

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One example: indices of its texts, and its targets.

    `labels` has the class of the text, or one class per token (-100: not counted), or nothing for
    pairs.
    """

    texts: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(slots=True)
class Corpus:
    """Distinct tokenized texts. `rows` index into them; see `tokenize`."""

    tokenizer: TextTokenizer
    tokens_max: int
    texts: list[TokenIds] = field(default_factory=list)
    _known: dict[TokenIds, int] = field(default_factory=dict)

    def tokenize(self, examples: Sequence[Example]) -> Iterator[list[CorpusRow]]:
        """Rows of the examples, in order, some at a time."""
        for start in range(0, len(examples), TOKENIZED_AT_ONCE):
            yield self._rows(examples[start : start + TOKENIZED_AT_ONCE])

    def length(self, row: CorpusRow) -> int:
        """Tokens of a row's texts."""
        return sum(len(self.texts[text]) for text in row.texts)

    def _rows(self, examples: Sequence[Example]) -> list[CorpusRow]:
        """Rows of examples of one kind."""
        match examples[0]:
            case LabeledWords():
                return self._tagged([e for e in examples if isinstance(e, LabeledWords)])
            case TextPair():
                pairs = [e for e in examples if isinstance(e, TextPair)]
                firsts = self._encode([pair.text for pair in pairs])
                seconds = self._encode([pair.pair for pair in pairs])
                return [CorpusRow(both, ()) for both in zip(firsts, seconds, strict=True)]
            case LabeledText():
                labeled = [e for e in examples if isinstance(e, LabeledText)]
                texts = self._encode([example.text for example in labeled])
                return [
                    CorpusRow((text,), (example.label,))
                    for text, example in zip(texts, labeled, strict=True)
                ]

    def _encode(self, texts: Sequence[str]) -> list[int]:
        encoded = self.tokenizer.encode(texts, truncate=True)
        return [self._index(text) for text in encoded]

    def _tagged(self, examples: Sequence[LabeledWords]) -> list[CorpusRow]:
        rows = [example.words for example in examples]
        encoded = self.tokenizer.encode_words(rows, truncate=True)
        return [
            CorpusRow((self._index(text),), token_labels(text, example.labels, self.tokens_max))
            for text, example in zip(encoded, examples, strict=True)
        ]

    def _index(self, text: TokenizedText) -> int:
        ids = cut(text.ids, self.tokens_max)
        index = self._known.setdefault(ids, len(self.texts))
        if index == len(self.texts):
            self.texts.append(ids)
        return index


def cut(values: Sequence[int], tokens_max: int) -> tuple[int, ...]:
    """At most `tokens_max` values: the first ones, and always the last."""
    if len(values) <= tokens_max:
        return tuple(values)
    return (*values[: tokens_max - 1], values[-1])


def token_labels(text: TokenizedText, labels: Sequence[int], tokens_max: int) -> tuple[int, ...]:
    """One class per token: a word's first token carries its label, all others -100."""
    targets = []
    before: int | None = None
    for word in text.places.words:
        first = word is not None and word != before
        targets.append(labels[word] if first and word is not None else IGNORED_LABEL)
        before = word
    return cut(targets, tokens_max)


def epoch_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """Row indices of one epoch's batches: every row once, rows of similar length together.

    Rows are shuffled, sorted by length inside windows of `WINDOW_BATCHES` batches, cut into
    batches, and the batches shuffled. The same seed and epoch give the same batches.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    window = batch_size * WINDOW_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        rows = sorted((int(row) for row in order[start : start + window]), key=lengths.__getitem__)
        batches.extend(rows[at : at + batch_size] for at in range(0, len(rows), batch_size))
    return [batches[index] for index in random.permutation(len(batches))]


def token_batches(lengths: Sequence[int], tokens_max: int) -> list[list[int]]:
    """Indices sorted by length, longest first, in batches of at most `tokens_max` tokens (or one
    text)."""
    batches: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if not batches or tokens + lengths[index] > tokens_max:
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += lengths[index]
    return batches


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train on and rows to validate on, each in the order of the dataset."""

    training: tuple[int, ...]
    validation: tuple[int, ...]


def split_rows(classes: Sequence[int], ratio: float, seed: int) -> Split:
    """Draws `ratio` of each class for validation, and leaves each class a row to train on.

    Args:
        classes: One class per row; rows that have none share one number.
        ratio: 0 draws nothing.
    """
    random = np.random.default_rng([seed, 0])
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(classes):
        by_class.setdefault(label, []).append(row)
    validation: set[int] = set()
    for label in sorted(by_class):
        rows = by_class[label]
        count = min(round(ratio * len(rows)), len(rows) - 1)
        validation.update(int(row) for row in random.permutation(rows)[:count])
    training = tuple(row for row in range(len(classes)) if row not in validation)
    return Split(training, tuple(sorted(validation)))
