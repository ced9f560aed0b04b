"""Gradient steps: data and spec in, weights out. No I/O, no clock, no queue.

Only the PET module and the head are trained. Everything below the first PET layer is computed once
per text (`states.py`), and back-propagation never enters it. A run is a generator: whoever consumes
it may stop between any two steps by dropping it. The same data, spec and seed give the same bytes
on one machine.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from services.trainer.corpus import Corpus, CorpusRow, epoch_batches, split_rows
from services.trainer.examples import Example, LabeledText
from services.trainer.objectives import Data, NothingFinite, Score, objective
from services.trainer.schedule import build_optimizer, learning_rate
from services.trainer.states import BoundaryStates
from smile.model.backbone import Backbone
from smile.model.initial import StoredArray, initial_tensors
from smile.model.reference import VplmModule
from smile.model.specs import ModuleSpec
from smile.resources import HyperParameters


class LossNotFinite(Exception):
    """Training left the numbers: the loss or a weight is infinite or not a number."""


@dataclass(frozen=True, slots=True)
class TrainingInput:
    """All that decides a run.

    Attributes:
        tensors: Weights to start from; None for fresh ones, drawn from the seed.
        validation: Rows to validate on; None draws a share of `examples`.
        states_bytes_max: Memory for boundary states kept between epochs.
    """

    backbone: Backbone
    spec: ModuleSpec
    values: HyperParameters
    examples: Sequence[Example]
    validation: Sequence[Example] | None = None
    tensors: Mapping[str, StoredArray] | None = None
    states_bytes_max: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Encoding:
    """Texts tokenized or encoded so far."""

    done: int
    total: int
    bytes_kept: int = 0


@dataclass(frozen=True, slots=True)
class Planned:
    """What lies ahead, once the rows are known."""

    steps_total: int
    epochs_total: int
    training_rows: int
    validation_rows: int
    texts: int
    texts_kept: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """One gradient step, counted from 1 over all epochs."""

    step: int
    epoch: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class EpochDone:
    """One pass over the training rows; `metrics` is empty without validation rows."""

    step: int
    epoch: int
    metrics: Mapping[str, float]
    best: bool


LoopEvent: TypeAlias = Encoding | Planned | StepDone | EpochDone


@dataclass(frozen=True, slots=True)
class Trained:
    """The weights of the best epoch in their stored dtype, and what was measured with them."""

    tensors: Mapping[str, StoredArray]
    metrics: Mapping[str, float]


def train(given: TrainingInput) -> Generator[LoopEvent, None, Trained]:
    """Trains, and yields what happens.

    Raises:
        LossNotFinite: with the step, the rate and what to try.
        FailedPrecondition: the module is of another backbone.
        DataCorrupted: `tensors` do not fit the spec.
    """
    run = yield from _prepare(given)
    yield from run.epochs()
    return run.result()


@dataclass(frozen=True, slots=True)
class _Rows:
    """`training` has at least one row."""

    training: Sequence[CorpusRow]
    validation: Sequence[CorpusRow]


@dataclass(frozen=True, slots=True)
class _Best:
    """The epoch to be published if none better follows."""

    epoch: int
    score: Score | None
    loss: float
    tensors: Mapping[str, StoredArray]


class _Run:
    """One run: its module, its rows and the best epoch so far."""

    def __init__(self, given: TrainingInput, module: VplmModule, data: Data, rows: _Rows) -> None:
        self._given = given
        self._values = given.values
        self._module = module
        self._data = data
        self._rows = rows
        self._objective = objective(given.spec.head, pairs=not rows.training[0].labels)
        self._optimizer = build_optimizer(given.values, module.parameters())
        self._lengths = [data.corpus.length(row) for row in rows.training]
        batches = math.ceil(len(rows.training) / given.values.batch_size)
        self._steps_total = batches * given.values.epochs
        self._step = 0
        self._best: _Best | None = None

    def plan(self) -> Planned:
        return Planned(
            steps_total=self._steps_total,
            epochs_total=self._values.epochs,
            training_rows=len(self._rows.training),
            validation_rows=len(self._rows.validation),
            texts=len(self._data.corpus.texts),
            texts_kept=self._data.states.kept,
        )

    def epochs(self) -> Iterator[LoopEvent]:
        """All epochs, or those up to an early stop."""
        for epoch in range(1, self._values.epochs + 1):
            losses = []
            batches = epoch_batches(
                self._lengths, self._values.batch_size, seed=self._values.seed, epoch=epoch
            )
            for batch in batches:
                done = self._take_step([self._rows.training[row] for row in batch], epoch)
                losses.append(done.loss)
                yield done
            score = self._validate()
            best = self._keep_if_best(epoch, score, sum(losses) / len(losses))
            yield EpochDone(self._step, epoch, score.metrics if score else {}, best)
            if self._stops_early(epoch):
                return

    def result(self) -> Trained:
        """The best epoch's weights, measured again as they are stored: after rounding."""
        assert self._best is not None, "at least one epoch ran"
        module = VplmModule(self._given.backbone, self._given.spec, self._best.tensors)
        metrics = {
            "train_loss": self._best.loss,
            "best_epoch": float(self._best.epoch),
            "steps": float(self._step),
            "train_rows": float(len(self._rows.training)),
            "validation_rows": float(len(self._rows.validation)),
        }
        if self._rows.validation:
            score = self._objective.evaluate(module, self._data, self._rows.validation)
            metrics |= score.metrics
        return Trained(self._best.tensors, metrics)

    def _take_step(self, rows: Sequence[CorpusRow], epoch: int) -> StepDone:
        self._step += 1
        rate = learning_rate(self._values, self._step, self._steps_total)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        try:
            loss = self._objective.backward(self._module, self._data, rows)
        except NothingFinite as error:
            raise LossNotFinite(
                f"{error} at step {self._step} of {self._steps_total}, learning rate {rate:.3g}"
            ) from error
        if self._values.gradient_norm_max > 0:
            torch.nn.utils.clip_grad_norm_(
                self._module.parameters(), self._values.gradient_norm_max
            )
        self._optimizer.step()
        return StepDone(self._step, epoch, loss, rate)

    def _validate(self) -> Score | None:
        if not self._rows.validation:
            return None
        try:
            return self._objective.evaluate(self._module, self._data, self._rows.validation)
        except NothingFinite as error:
            raise LossNotFinite(f"{error} on validation rows after step {self._step}") from error

    def _keep_if_best(self, epoch: int, score: Score | None, loss: float) -> bool:
        """Without validation rows the latest epoch is the best."""
        before = self._best.score if self._best else None
        if score is not None and not score.better_than(before):
            return False
        with np.errstate(over="ignore"):  # found below
            tensors = self._module.export()
        odd = next((name for name, t in tensors.items() if not np.isfinite(t).all()), None)
        if odd is not None:
            raise LossNotFinite(
                f"weight '{odd}' is not finite as {self._given.spec.dtype} after step {self._step}"
            )
        self._best = _Best(epoch, score, loss, tensors)
        return True

    def _stops_early(self, epoch: int) -> bool:
        patience = self._values.early_stopping_epochs
        assert self._best is not None
        return patience > 0 and epoch - self._best.epoch >= patience


def _prepare(given: TrainingInput) -> Generator[LoopEvent, None, _Run]:
    torch.manual_seed(given.values.seed)
    shape = given.backbone.shape
    tensors = given.tensors
    if tensors is None:
        tensors = initial_tensors(given.spec, shape, given.values.seed)
    module = VplmModule(given.backbone, given.spec, tensors)
    limit = min(given.values.tokens_max or shape.tokens_max, shape.tokens_max)
    corpus = Corpus(given.backbone.tokenizer, limit)
    training = yield from _tokenized(corpus, given.examples)
    rows = _Rows(training, ())
    if given.validation is not None:
        validation = yield from _tokenized(corpus, given.validation)
        rows = _Rows(training, tuple(validation))
    elif given.values.validation_ratio > 0:
        rows = _drawn(given, training)
    states = BoundaryStates(module, corpus.texts, given.states_bytes_max)
    for done in states.fill():
        yield Encoding(done, len(corpus.texts), states.bytes_kept)
    run = _Run(given, module, Data(corpus, states), rows)
    yield run.plan()
    return run


def _tokenized(
    corpus: Corpus, examples: Sequence[Example]
) -> Generator[LoopEvent, None, list[CorpusRow]]:
    rows: list[CorpusRow] = []
    for some in corpus.tokenize(examples):
        rows += some
        yield Encoding(0, len(corpus.texts))
    return rows


def _drawn(given: TrainingInput, rows: Sequence[CorpusRow]) -> _Rows:
    classes = [e.label if isinstance(e, LabeledText) else 0 for e in given.examples]
    split = split_rows(classes, given.values.validation_ratio, given.values.seed)
    return _Rows([rows[row] for row in split.training], tuple(rows[r] for r in split.validation))
