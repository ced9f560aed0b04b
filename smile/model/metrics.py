"""How good predictions are: pure functions from class indices to frozen results.

Undefined ratios (no such prediction, no such truth) are 0. Means over classes leave out classes
that occur neither in the truth nor among the predictions.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smile.training import ClassScore

IGNORED_LABEL = -100  # of tokens that neither loss nor metric counts
OUTSIDE = "O"

__all__ = [
    "IGNORED_LABEL",
    "ClassScore",
    "ClassificationReport",
    "RetrievalReport",
    "TokenReport",
    "TokenScoring",
    "bio_spans",
    "classification_report",
    "confusion_matrix",
    "is_bio",
    "pair_retrieval_report",
    "retrieval_report",
    "span_scores",
    "token_report",
]

Indices = npt.NDArray[np.int64]
Span = tuple[int, int, str]  # first token, one past the last token, type


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """Scores of a classifier. `confusion[true][predicted]` counts, in the order of `classes`."""

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]


class TokenScoring(enum.StrEnum):
    """What a token classifier's F1 counts."""

    ENTITIES = "entities"  # whole BIO spans, exact in both ends and type
    TOKENS = "tokens"  # single tokens, mean over classes


@dataclass(frozen=True, slots=True)
class TokenReport:
    """Scores of a token classifier over the tokens that carry a label.

    With `scoring` ENTITIES, precision, recall and F1 are micro-averages over spans, and `entities`
    has a row per type; with TOKENS they are means over classes.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    scoring: TokenScoring
    tokens: ClassificationReport
    entities: tuple[ClassScore, ...] = ()


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """Share of texts whose nearest other text carries the same label."""

    recall_at_1: float
    queries: int


def classification_report(
    truth: Indices, predicted: Indices, labels: Sequence[str]
) -> ClassificationReport:
    """Scores of `predicted` [texts] against `truth` [texts], both class indices into `labels`."""
    confusion = confusion_matrix(truth, predicted, classes=len(labels))
    hits = confusion.diagonal()
    support = confusion.sum(axis=1)
    precision = _ratio(hits, confusion.sum(axis=0))
    recall = _ratio(hits, support)
    f1 = _ratio(2 * precision * recall, precision + recall)
    occurring = (confusion.sum(axis=0) + support) > 0
    return ClassificationReport(
        accuracy=float(hits.sum() / max(len(truth), 1)),
        macro_precision=_mean(precision[occurring]),
        macro_recall=_mean(recall[occurring]),
        macro_f1=_mean(f1[occurring]),
        classes=tuple(
            ClassScore(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, label in enumerate(labels)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def confusion_matrix(truth: Indices, predicted: Indices, *, classes: int) -> Indices:
    """Counts [classes, classes] of (true, predicted) pairs."""
    assert len(truth) == len(predicted), "as many predictions as truths"
    pairs = truth.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def token_report(
    truth: Sequence[Indices], predicted: Sequence[Indices], labels: Sequence[str]
) -> TokenReport:
    """Scores of token labels, one array [tokens] of class indices per text.

    Tokens whose true label is -100 (special tokens, continuations of a word) are left out before
    spans are read, in the predictions too.
    """
    kept = [true != IGNORED_LABEL for true in truth]
    true_kept = [true[keep] for true, keep in zip(truth, kept, strict=True)]
    predicted_kept = [guess[keep] for guess, keep in zip(predicted, kept, strict=True)]
    tokens = classification_report(_joined(true_kept), _joined(predicted_kept), labels)
    entities: tuple[ClassScore, ...] = ()
    if is_bio(labels):
        scoring = TokenScoring.ENTITIES
        entities, whole = span_scores(
            [_named(text, labels) for text in true_kept],
            [_named(text, labels) for text in predicted_kept],
        )
        precision, recall, f1 = whole.precision, whole.recall, whole.f1
    else:
        scoring = TokenScoring.TOKENS
        precision, recall, f1 = tokens.macro_precision, tokens.macro_recall, tokens.macro_f1
    return TokenReport(
        accuracy=tokens.accuracy,
        precision=precision,
        recall=recall,
        f1=f1,
        scoring=scoring,
        tokens=tokens,
        entities=entities,
    )


def is_bio(labels: Sequence[str]) -> bool:
    """Whether all labels are `O`, `B-type` or `I-type`, and some entity can begin."""
    tagged = [label for label in labels if label != OUTSIDE]
    return (
        len(tagged) < len(labels)
        and any(label.startswith("B-") for label in tagged)
        and all(label[:2] in ("B-", "I-") and len(label) > 2 for label in tagged)
    )


def bio_spans(tags: Sequence[str]) -> set[Span]:
    """Entities of one text. An `I-` that continues nothing begins an entity, as in conlleval."""
    spans: set[Span] = set()
    start, kind = 0, ""
    for index, tag in enumerate([*tags, OUTSIDE]):
        continues = tag.startswith("I-") and tag[2:] == kind
        if kind and not continues:
            spans.add((start, index, kind))
            kind = ""
        if tag != OUTSIDE and not continues:
            start, kind = index, tag[2:]
    return spans


def retrieval_report(embeddings: npt.NDArray[np.floating], labels: Indices) -> RetrievalReport:
    """Nearest-neighbour label accuracy of L2-normalised `embeddings` [texts, hidden].

    Texts whose label nobody else carries cannot be answered and are not asked.
    """
    similarity = embeddings @ embeddings.T  # [texts, texts]
    np.fill_diagonal(similarity, -np.inf)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    asked = counts[inverse] > 1
    if not asked.any():
        return RetrievalReport(recall_at_1=0.0, queries=0)
    nearest = similarity.argmax(axis=1)
    hits = (labels[nearest] == labels)[asked]
    return RetrievalReport(recall_at_1=float(hits.mean()), queries=int(asked.sum()))


def pair_retrieval_report(
    anchors: npt.NDArray[np.floating], positives: npt.NDArray[np.floating]
) -> RetrievalReport:
    """Share of anchors [pairs, hidden] whose nearest positive [pairs, hidden] is their own."""
    if len(anchors) == 0:
        return RetrievalReport(recall_at_1=0.0, queries=0)
    nearest = (anchors @ positives.T).argmax(axis=1)
    return RetrievalReport(
        recall_at_1=float((nearest == np.arange(len(anchors))).mean()), queries=len(anchors)
    )


def span_scores(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> tuple[tuple[ClassScore, ...], ClassScore]:
    """Scores of entities that are right in both ends and type, from the tags of each text.

    Returns:
        A row per type of entity that is there or was predicted, by name, and the micro-average.
    """
    true_count: Counter[str] = Counter()
    predicted_count: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for true_tags, predicted_tags in zip(truth, predicted, strict=True):
        true_spans, predicted_spans = bio_spans(true_tags), bio_spans(predicted_tags)
        true_count.update(kind for _, _, kind in true_spans)
        predicted_count.update(kind for _, _, kind in predicted_spans)
        hits.update(kind for _, _, kind in true_spans & predicted_spans)
    rows = tuple(
        _span_score(kind, hits[kind], predicted_count[kind], true_count[kind])
        for kind in sorted(true_count | predicted_count)
    )
    whole = _span_score("", hits.total(), predicted_count.total(), true_count.total())
    return rows, whole


def _span_score(label: str, hits: int, predicted: int, true: int) -> ClassScore:
    f1 = 2 * hits / max(true + predicted, 1)
    return ClassScore(label, hits / max(predicted, 1), hits / max(true, 1), f1, true)


def _joined(texts: Sequence[Indices]) -> Indices:
    return np.concatenate(texts) if texts else np.zeros(0, dtype=np.int64)


def _named(indices: Indices, labels: Sequence[str]) -> list[str]:
    return [labels[index] for index in indices]


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _ratio(
    numerator: npt.NDArray[np.generic], denominator: npt.NDArray[np.generic]
) -> npt.NDArray[np.float64]:
    out = np.zeros(len(numerator), dtype=np.float64)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out
