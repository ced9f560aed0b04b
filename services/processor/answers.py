"""From what heads give to what callers read: softmax, labels, words.

Pure functions over one text's output; the task decides which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from services.processor.requests import FloatArray
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


@dataclass(frozen=True, slots=True)
class Question:
    """One text as it was asked: its characters, its tokens, whose labels, and how many to tell (0:
    all).
    """

    text: str
    tokens: TokenizedText
    head: HeadSpec
    top_k: int


Result: TypeAlias = Classification | TokenClassification | Embedding


def predict(question: Question, output: FloatArray) -> Prediction:
    """The answer to one text, from its head's output: logits [labels] or [tokens, labels], or a
    vector [H].
    """
    result = _RESULTS[question.head.task](question, output)
    return Prediction(result, question.tokens.truncated, len(question.tokens))


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities over the last dimension, in float64, and never NaN for finite logits."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    scores: FloatArray = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return scores


def _classification(question: Question, logits: FloatArray) -> Classification:
    scores = softmax(logits)
    best = np.argsort(-scores, kind="stable")  # equal scores in label order
    kept = best[: question.top_k] if question.top_k else best
    ranked = tuple(LabelScore(question.head.labels[index], float(scores[index])) for index in kept)
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
    for token, word in enumerate(tokens.words):
        if word is None or tokens.special[token]:
            continue
        start, end = tokens.offsets[token]
        first = first_of.setdefault(word, token)
        known = spans.get(first, (start, end))
        spans[first] = (min(known[0], start), max(known[1], end))
    return spans


def _embedding(_: Question, vector: FloatArray) -> Embedding:
    return Embedding(tuple(vector.tolist()))


_RESULTS: Mapping[Task, Callable[[Question, FloatArray], Result]] = {
    Task.SEQUENCE_CLASSIFICATION: _classification,
    Task.TOKEN_CLASSIFICATION: _token_classification,
    Task.EMBEDDING: _embedding,
}
