"""What each task learns from a batch, and how well a module does on validation rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.trainer.data.corpus import Corpus, CorpusRow, token_batches
from services.trainer.training.learner import Learner
from services.trainer.training.states import States
from smile.model.losses import (
    IGNORED_LABEL,
    contrastive_loss,
    ranking_loss,
    sequence_loss,
    token_loss,
)
from smile.model.metrics import (
    ClassificationReport,
    classification_report,
    pair_retrieval_report,
    retrieval_report,
    token_report,
)
from smile.model.specs import HeadSpec, Task
from smile.resources import TrainingSummary

STEP_TOKENS_MAX = 1024  # tokens back-propagated at once, where a task's loss is a sum over texts
EVALUATED_TOKENS_MAX = 1024
RETRIEVAL_ROWS_MAX = 4000  # all-pairs similarities grow with the square
RETRIEVAL_LOSS_ROWS = 128
CONFUSION_CLASSES_MAX = 100  # a larger matrix is nothing to look at


class NothingFinite(ArithmeticError):
    """A loss or a weight is not a finite number."""


@dataclass(frozen=True, slots=True)
class Score:
    """Validation metrics by name, and class by class."""

    metrics: Mapping[str, float]
    summary: TrainingSummary = field(default_factory=TrainingSummary)


@dataclass(frozen=True, slots=True)
class Data:
    """Where rows' texts and states are. Where texts have states of two kinds, those of the second
    have the numbers from the count of texts on; see `services.trainer.training.states`.
    """

    corpus: Corpus
    states: States

    def length(self, row: CorpusRow) -> int:
        """Tokens of a row's texts."""
        return sum(self.text_length(text) for text in row.texts)

    def text_length(self, text: int) -> int:
        """Tokens of a text."""
        return len(self.corpus.texts[text % len(self.corpus.texts)])

    def other(self, row: CorpusRow) -> CorpusRow:
        """The row with states of the second kind; of one that has those of the first."""
        count = len(self.corpus.texts)
        return CorpusRow(tuple(text + count for text in row.texts), row.labels)

    def outputs(self, module: Learner, texts: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
        """The module's answers for texts, and the texts' lengths in tokens."""
        states, packed = self.states.of(texts)
        with torch.autocast("cpu", torch.bfloat16, enabled=states.dtype is torch.bfloat16):
            output = module.forward_entered(states, packed)
        return output.to(torch.float32), packed.lengths


class Objective(Protocol):
    """One task's learning."""

    def backward(
        self, module: Learner, data: Data, batches: Sequence[Sequence[CorpusRow]]
    ) -> float:
        """Adds the gradients of the mean loss over the batches of one step, and returns the loss.

        Raises:
            NothingFinite: the loss is no number.
        """
        ...

    def evaluate(self, module: Learner, data: Data, rows: Sequence[CorpusRow]) -> Score:
        """How well the module does on at least one row."""
        ...


def objective(head: HeadSpec, *, pairs: bool, weights: Tensor | None = None) -> Objective:
    """The objective of a head's task.

    Args:
        pairs: Decides between the two of embeddings.
        weights: How much each class counts in training [labels]; None: all the same.
    """
    match head.task:
        case Task.SEQUENCE_CLASSIFICATION:
            return _Sequences(head, weights)
        case Task.TOKEN_CLASSIFICATION:
            return _Tokens(head, weights)
        case Task.EMBEDDING:
            return _Pairs() if pairs else _Groups()


class _Summed:
    """Tasks whose loss is a mean over texts or tokens: the batches of a step are as one, and that
    may be taken in parts. Only training counts classes by their weights."""

    def __init__(self, head: HeadSpec, weights: Tensor | None) -> None:
        self._labels = head.labels
        self._weights = weights

    def _loss(self, output: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def backward(
        self, module: Learner, data: Data, batches: Sequence[Sequence[CorpusRow]]
    ) -> float:
        rows = [row for batch in batches for row in batch]
        counted = sum(self._weight(row) for row in rows) or 1
        total = 0.0
        lengths = [data.length(row) for row in rows]
        for part in token_batches(lengths, STEP_TOKENS_MAX):
            chosen = [rows[index] for index in sorted(part)]
            output, _ = data.outputs(module, [row.texts[0] for row in chosen])
            share = sum(map(self._weight, chosen)) / counted
            loss = self._loss(output, _targets(chosen), self._weights) * share
            total += _checked(loss)
            loss.backward()
        return total

    def _weight(self, row: CorpusRow) -> float:
        """How much a row counts in the mean."""
        if self._weights is None:
            return _counted(row)
        return sum(float(self._weights[label]) for label in row.labels if label != IGNORED_LABEL)

    @torch.no_grad()
    def _answers(
        self, module: Learner, data: Data, rows: Sequence[CorpusRow]
    ) -> tuple[list[Tensor], float]:
        """Each row's output, in the order of rows, and the mean loss."""
        answers: dict[int, Tensor] = {}
        total = 0.0
        lengths = [data.length(row) for row in rows]
        for part in token_batches(lengths, EVALUATED_TOKENS_MAX):
            chosen = [rows[index] for index in part]
            output, sizes = data.outputs(module, [row.texts[0] for row in chosen])
            total += _checked(self._loss(output, _targets(chosen))) * sum(map(_counted, chosen))
            per_row = list(sizes) if self._by_token else 1
            answers.update(zip(part, output.split(per_row), strict=True))
        counted = sum(map(_counted, rows)) or 1
        return [answers[index] for index in range(len(rows))], total / counted

    _by_token = False


class _Sequences(_Summed):
    def _loss(self, output: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        return sequence_loss(output, target, weights)

    def evaluate(self, module: Learner, data: Data, rows: Sequence[CorpusRow]) -> Score:
        answers, loss = self._answers(module, data, rows)
        predicted = torch.cat(answers).argmax(1).numpy()
        report = classification_report(_targets(rows).numpy(), predicted, self._labels)
        metrics = {
            "validation_loss": loss,
            "validation_accuracy": report.accuracy,
            "validation_macro_f1": report.macro_f1,
        }
        return Score(metrics, _by_class(report))


class _Tokens(_Summed):
    _by_token = True

    def _loss(self, output: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        return token_loss(output, target, weights)

    def evaluate(self, module: Learner, data: Data, rows: Sequence[CorpusRow]) -> Score:
        answers, loss = self._answers(module, data, rows)
        predicted = [answer.argmax(1).numpy() for answer in answers]
        truth = [np.array(row.labels, dtype=np.int64) for row in rows]
        report = token_report(truth, predicted, self._labels)
        metrics = {
            "validation_loss": loss,
            "validation_token_accuracy": report.accuracy,
            "validation_f1": report.f1,
            "validation_macro_f1": report.tokens.macro_f1,
        }
        return Score(metrics, replace(_by_class(report.tokens), entities=report.entities))


class _Pairs:
    """Embeddings trained on pairs: the other pairs of a batch are the negatives."""

    def backward(
        self, module: Learner, data: Data, batches: Sequence[Sequence[CorpusRow]]
    ) -> float:
        losses = (ranking_loss(*_both_sides(module, data, rows)) for rows in batches)
        return _averaged(losses, batches)

    @torch.no_grad()
    def evaluate(self, module: Learner, data: Data, rows: Sequence[CorpusRow]) -> Score:
        rows = rows[:RETRIEVAL_ROWS_MAX]
        first = _embeddings(module, data, [row.texts[0] for row in rows])
        second = _embeddings(module, data, [row.texts[1] for row in rows])
        losses = [
            _checked(ranking_loss(a, b)) * len(a)
            for a, b in zip(
                first.split(RETRIEVAL_LOSS_ROWS), second.split(RETRIEVAL_LOSS_ROWS), strict=True
            )
        ]
        report = pair_retrieval_report(first.numpy(), second.numpy())
        return _retrieved(sum(losses) / len(rows), report.recall_at_1)


class _Groups:
    """Embeddings trained on labels: texts of one label shall lie together."""

    def backward(
        self, module: Learner, data: Data, batches: Sequence[Sequence[CorpusRow]]
    ) -> float:
        return _averaged((self._of(module, data, rows) for rows in batches), batches)

    def _of(self, module: Learner, data: Data, rows: Sequence[CorpusRow]) -> Tensor:
        output, _ = data.outputs(module, [row.texts[0] for row in rows])
        return contrastive_loss(output, _targets(rows))

    @torch.no_grad()
    def evaluate(self, module: Learner, data: Data, rows: Sequence[CorpusRow]) -> Score:
        rows = rows[:RETRIEVAL_ROWS_MAX]
        found = _embeddings(module, data, [row.texts[0] for row in rows])
        labels = _targets(rows)
        losses = [
            _checked(contrastive_loss(part, target)) * len(part)
            for part, target in zip(
                found.split(RETRIEVAL_LOSS_ROWS), labels.split(RETRIEVAL_LOSS_ROWS), strict=True
            )
        ]
        report = retrieval_report(found.numpy(), labels.numpy())
        return _retrieved(sum(losses) / len(rows), report.recall_at_1)


def _retrieved(loss: float, recall: float) -> Score:
    return Score({"validation_loss": loss, "validation_recall_at_1": recall})


def _averaged(losses: Iterator[Tensor], batches: Sequence[Sequence[CorpusRow]]) -> float:
    """Back-propagates batch after batch, each by its share of the step's rows; their mean loss."""
    rows = sum(map(len, batches))
    total = 0.0
    for loss, batch in zip(losses, batches, strict=True):
        shared = loss * (len(batch) / rows)
        total += _checked(shared)
        shared.backward()
    return total


def _by_class(report: ClassificationReport) -> TrainingSummary:
    shown = len(report.classes) <= CONFUSION_CLASSES_MAX
    return TrainingSummary(report.classes, report.confusion if shown else ())


def _both_sides(module: Learner, data: Data, rows: Sequence[CorpusRow]) -> tuple[Tensor, Tensor]:
    texts = [row.texts[0] for row in rows] + [row.texts[1] for row in rows]
    output, _ = data.outputs(module, texts)
    return output[: len(rows)], output[len(rows) :]


def _embeddings(module: Learner, data: Data, texts: Sequence[int]) -> Tensor:
    """[texts, H], in order."""
    found: dict[int, Tensor] = {}
    lengths = [data.text_length(text) for text in texts]
    for part in token_batches(lengths, EVALUATED_TOKENS_MAX):
        output, _ = data.outputs(module, [texts[index] for index in part])
        found.update(zip(part, functional.normalize(output, dim=1), strict=True))
    return torch.stack([found[index] for index in range(len(texts))])


def _targets(rows: Sequence[CorpusRow]) -> Tensor:
    return torch.tensor([label for row in rows for label in row.labels], dtype=torch.int64)


def _counted(row: CorpusRow) -> int:
    return sum(label != IGNORED_LABEL for label in row.labels)


def _checked(loss: Tensor) -> float:
    value = loss.item()
    if not np.isfinite(value):
        raise NothingFinite(f"the loss is {value}")
    return float(value)
