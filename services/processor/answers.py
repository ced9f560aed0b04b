"""From what heads give to what callers read: softmax, labels, words.

Pure functions over one text's output; the task decides which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np

from services.processor.requests import FloatArray
from smile.errors import InvalidArgument
from smile.model.specs import HeadSpec, Task
from smile.model.tokenizer import TokenizedText
from smile.resources import (
    Classification,
    Embedding,
    LabelScore,
    Prediction,
    TokenClassification,
    TokenLabel,
)

FLOAT_BYTES = 4
FIELD_BYTES = 10  # tags, lengths and a score
CHARS_PER_WORD = 5
FEW = 32  # labels; numpy takes as long for one as for these


@dataclass(frozen=True, slots=True)
class Question:
    """One text as it was asked: its characters, its tokens, whose labels, and how many to tell (0:
    all).
    """

    text: str
    tokens: TokenizedText
    head: HeadSpec
    top_k: int


class Asking(Protocol):
    """What decides how large an answer gets."""

    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def top_k(self) -> int: ...


Result: TypeAlias = Classification | TokenClassification | Embedding


def predict(question: Question, output: FloatArray) -> Prediction:
    """The answer to one text, from its head's output: logits [labels] or [tokens, labels], or a
    vector [H].
    """
    result = _RESULTS[question.head.task](question, output)
    return Prediction(result, question.tokens.truncated, len(question.tokens))


def predict_all(questions: Sequence[Question], outputs: Sequence[FloatArray]) -> list[Prediction]:
    """The answers to several texts, in order."""
    return [predict(*pair) for pair in zip(questions, outputs, strict=True)]


def size_of(asking: Asking, head: HeadSpec, hidden: int) -> int:
    """About how many bytes the answer to all texts has."""
    return _SIZES[head.task](asking, head, hidden)


def check_size(asking: Asking, head: HeadSpec, hidden: int, bytes_max: int) -> None:
    """Raises `InvalidArgument` if the answer would have more than about `bytes_max` bytes."""
    check_bytes(size_of(asking, head, hidden), bytes_max)


def check_bytes(size: int, bytes_max: int) -> None:
    """Raises `InvalidArgument` if an answer of `size` bytes is more than a message may have."""
    if size > bytes_max:
        raise InvalidArgument(
            f"the answer would have about {size} bytes, and a message has at most {bytes_max}; ask "
            f"for fewer texts at a time, or for fewer scores with top_k",
            reason="ANSWER_TOO_LARGE",
            metadata={"limit": str(bytes_max), "value": str(size)},
        )


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities over the last dimension, in float64, and never NaN for finite logits."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    scores: FloatArray = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return scores


def _softmax_few(logits: FloatArray) -> list[float]:
    """The same for a few logits [labels], without the price of numpy calls; in float64."""
    values: list[float] = logits.tolist()
    most = max(values)
    powers = [math.exp(value - most) for value in values]
    total = math.fsum(powers)
    return [power / total for power in powers]


def _classification(question: Question, logits: FloatArray) -> Classification:
    scores = _softmax_few(logits) if logits.size <= FEW else softmax(logits).tolist()
    best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)  # equal: label order
    kept = best[: question.top_k] if question.top_k else best
    ranked = tuple(LabelScore(question.head.labels[index], scores[index]) for index in kept)
    return Classification(ranked[0].label, ranked[0].score, ranked)


def _token_classification(question: Question, logits: FloatArray) -> TokenClassification:
    scores = softmax(logits)  # [tokens, labels]
    best = scores.argmax(axis=-1)
    words = _words(question.tokens)
    return TokenClassification(
        tuple(
            TokenLabel(
                question.text[start:end],
                start,
                end,
                question.head.labels[best[token]],
                float(scores[token, best[token]]),
            )
            for token, (start, end) in words.items()
        )
    )


def _words(tokens: TokenizedText) -> dict[int, tuple[int, int]]:
    """First token of each word → characters [start, end) of the whole word."""
    first_of: dict[int, int] = {}
    spans: dict[int, tuple[int, int]] = {}
    places = tokens.places
    for token, word in enumerate(places.words):
        if word is None or places.special[token]:
            continue
        start, end = places.offsets[token]
        first = first_of.setdefault(word, token)
        known = spans.get(first, (start, end))
        spans[first] = (min(known[0], start), max(known[1], end))
    return spans


def _embedding(_: Question, vector: FloatArray) -> Embedding:
    return Embedding(tuple(vector.tolist()))


def _classification_bytes(asking: Asking, head: HeadSpec, _: int) -> int:
    mean = _label_bytes_mean(head.labels) + FIELD_BYTES
    told = min(asking.top_k or len(head.labels), len(head.labels)) + 1
    return int(len(asking.texts) * told * mean)


@lru_cache(maxsize=1_024)
def _label_bytes_mean(labels: tuple[str, ...]) -> float:
    return sum(len(label.encode()) for label in labels) / len(labels)


def _token_classification_bytes(asking: Asking, head: HeadSpec, _: int) -> int:
    label = max(len(name.encode()) for name in head.labels)
    chars = sum(map(len, asking.texts))
    return chars + chars // CHARS_PER_WORD * (label + 2 * FIELD_BYTES)


def _embedding_bytes(asking: Asking, _: HeadSpec, hidden: int) -> int:
    return len(asking.texts) * (FLOAT_BYTES * hidden + FIELD_BYTES)


_SIZES: Mapping[Task, Callable[[Asking, HeadSpec, int], int]] = {
    Task.SEQUENCE_CLASSIFICATION: _classification_bytes,
    Task.TOKEN_CLASSIFICATION: _token_classification_bytes,
    Task.EMBEDDING: _embedding_bytes,
}
_RESULTS: Mapping[Task, Callable[[Question, FloatArray], Result]] = {
    Task.SEQUENCE_CLASSIFICATION: _classification,
    Task.TOKEN_CLASSIFICATION: _token_classification,
    Task.EMBEDDING: _embedding,
}
