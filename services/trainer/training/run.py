"""Epochs and steps of one run: its module, its rows, the best epoch so far, and its place.

Between any two events a run can be caught in a snapshot, from which another one goes on to the same
final weights, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from services.trainer.data.corpus import CorpusRow, epoch_batches
from services.trainer.data.examples import Example
from services.trainer.training.learner import Learner, learner
from services.trainer.training.loop_events import EpochDone, LoopEvent, Planned, StepDone
from services.trainer.training.objectives import Data, NothingFinite, Score, objective
from services.trainer.training.precision import Precision
from services.trainer.training.schedule import (
    build_optimizer,
    learning_rate,
    optimizer_state,
    restore,
)
from services.trainer.training.scoring import Scorer
from services.trainer.training.selection import Selector, selectable
from services.trainer.training.snapshots import BestEpoch, Gain, Snapshot
from services.trainer.training.states import MakeLower, StatesRoom
from services.trainer.training.weighting import class_weights
from smile.errors import SmileError
from smile.model.backbone import Backbone
from smile.model.initial import StoredArray
from smile.model.specs import ModuleSpec
from smile.resources import HyperParameters, TrainingStates, TrainingSummary

MIXED_SHARE = 0.5  # of an epoch's rows have states of the second kind, about
MIXED_DRAW = 1  # apart from the draw of the epoch's order


class LossNotFinite(Exception):
    """Training left the numbers: the loss or a weight is infinite or not a number."""


@dataclass(frozen=True, slots=True)
class TrainingInput:
    """All that decides a run.

    Attributes:
        tensors: Weights to start from; None for fresh ones, drawn from the seed.
        validation: Rows to validate on; None draws a share of `examples`.
        room: Where texts' states are kept between epochs.
        precision: In what the frozen weights compute.
        resume: Where an earlier run with the same input was; None starts anew.
        lower: Makes what stands in for lower layers, in `precision`, up to the module's first or
            below; None where there is nothing, then `values.states` must be exact. Where they are
            exact all the same, it is asked for when training is done, if at all.
    """

    backbone: Backbone
    spec: ModuleSpec
    values: HyperParameters
    examples: Sequence[Example]
    validation: Sequence[Example] | None = None
    tensors: Mapping[str, StoredArray] | None = None
    room: StatesRoom = field(default_factory=StatesRoom)
    precision: Precision = Precision.FLOAT32
    resume: Snapshot | None = None
    lower: MakeLower | None = None

    @property
    def second(self) -> TrainingStates | None:
        """The kind of states that texts have besides the one trained on, or where both are that
        besides exact ones; None: they have no other."""
        if self.lower is None:
            return None
        if self.values.states is TrainingStates.MATERIALIZED:
            return TrainingStates.EXACT
        return TrainingStates.MATERIALIZED


@dataclass(frozen=True, slots=True)
class Trained:
    """The weights of the best epoch in their stored dtype, and what was measured with them.

    Attributes:
        unmeasured: Why metrics on the other kind of states are left out, where that failed.
    """

    tensors: Mapping[str, StoredArray]
    metrics: Mapping[str, float]
    summary: TrainingSummary
    unmeasured: Exception | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """`training` has at least one row."""

    training: Sequence[CorpusRow]
    validation: Sequence[CorpusRow]


class Run:
    """One run over its rows, from its start or from where `given.resume` was."""

    def __init__(self, given: TrainingInput, module: Learner, data: Data, rows: Rows) -> None:
        self._given = given
        self._values = given.values
        self._module = module
        self._data = data
        self._rows = rows
        head = given.spec.head
        weights = class_weights(given.values, head.labels, rows.training)
        self._objective = objective(head, pairs=not rows.training[0].labels, weights=weights)
        self._scorer = self._made_scorer()
        self._selector = Selector(selectable(head)[given.values.selection])
        self._optimizer = build_optimizer(given.values, module.parameters())
        self._lengths = [data.corpus.length(row) for row in rows.training]
        batches = math.ceil(len(rows.training) / given.values.batch_size)
        self._epoch_steps = math.ceil(batches / given.values.accumulation_batches)
        self._step, self._epoch = 0, 1
        self._losses: list[float] = []  # of the steps of this epoch
        self._best: BestEpoch | None = None
        self._gain: Gain | None = None
        if given.resume is not None:
            self._go_on_from(given.resume)

    def plan(self) -> Planned:
        return Planned(
            steps_total=self._steps_total,
            epochs_total=self._values.epochs,
            training_rows=len(self._rows.training),
            validation_rows=len(self._rows.validation),
            texts=len(self._data.corpus.texts),
            texts_kept=self._data.states.kept,
            step=self._step,
            epoch=self._epoch if self._step else 0,
        )

    def epochs(self) -> Iterator[LoopEvent]:
        """All epochs that are left, or those up to an early stop."""
        while not self._over:
            for batches in self._steps_of_epoch()[len(self._losses) :]:
                yield self._take_step(batches)
            yield self._end_epoch()

    def result(self) -> Trained:
        """The best epoch's weights, measured again as they are stored: after rounding."""
        assert self._best is not None, "at least one epoch ran"
        module = learner(self._given.backbone, self._given.spec, self._best.tensors)
        metrics = {
            "train_loss": self._best.loss,
            "best_epoch": float(self._best.epoch),
            "steps": float(self._step),
            "train_rows": float(len(self._rows.training)),
            "validation_rows": float(len(self._rows.validation)),
        }
        summary, unmeasured = TrainingSummary(), None
        if self._rows.validation:
            score = self._scorer.told(module)
            besides, unmeasured = self._besides(module)
            metrics |= {**score.metrics, **besides}
            summary = score.summary
        summary = replace(summary, seed=self._values.seed, states=self._values.states)
        return Trained(self._best.tensors, metrics, summary, unmeasured)

    def snapshot(self) -> Snapshot:
        """Where the run is. Not to be asked for while a step is taken."""
        state = {name: t.detach().clone().numpy() for name, t in self._module.named_parameters()}
        return Snapshot(
            step=self._step,
            epoch=self._epoch,
            steps_done=len(self._losses),
            losses=tuple(self._losses),
            module=state,
            optimizer=optimizer_state(self._optimizer),
            random=torch.get_rng_state().numpy(),
            best=self._best,
            gain=self._gain,
        )

    @property
    def _steps_total(self) -> int:
        return self._epoch_steps * self._values.epochs

    @property
    def _over(self) -> bool:
        patience = self._values.early_stopping_epochs
        stalled = 0 if self._gain is None else self._epoch - 1 - self._gain.epoch
        return self._epoch > self._values.epochs or (patience > 0 and stalled >= patience)

    def _steps_of_epoch(self) -> list[list[list[CorpusRow]]]:
        """Steps of batches of rows; the same ones whenever this epoch is begun."""
        order = epoch_batches(
            self._lengths, self._values.batch_size, seed=self._values.seed, epoch=self._epoch
        )
        rows = self._rows_of_epoch()
        batches = [[rows[row] for row in batch] for batch in order]
        size = self._values.accumulation_batches
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    def _rows_of_epoch(self) -> Sequence[CorpusRow]:
        """Where states are mixed, each row has those of one kind or the other; the same ones
        whenever this epoch is begun."""
        rows = self._rows.training
        if self._values.states is not TrainingStates.MIXED:
            return rows
        random = np.random.default_rng([self._values.seed, self._epoch, MIXED_DRAW])
        drawn = random.random(len(rows)) < MIXED_SHARE
        return [
            self._data.other(row) if other else row for row, other in zip(rows, drawn, strict=True)
        ]

    def _made_scorer(self) -> Scorer:
        values, data = self._values, self._data
        scorer = Scorer(self._objective, data, self._rows.validation, values.states)
        if values.states is TrainingStates.MIXED or scorer.cheap(self._rows.training):
            return replace(scorer, second=self._given.second)
        return scorer

    def _besides(self, module: Learner) -> tuple[Mapping[str, float], Exception | None]:
        """What is only told fails nothing that was trained."""
        try:
            return self._scorer.besides(module), None
        except (SmileError, OSError, NothingFinite) as error:
            return {}, error.with_traceback(None)  # which would keep all states as long

    def _take_step(self, batches: Sequence[Sequence[CorpusRow]]) -> StepDone:
        step = self._step + 1
        rate = learning_rate(self._values, step, self._steps_total)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        try:
            loss = self._objective.backward(self._module, self._data, batches)
        except NothingFinite as error:
            raise LossNotFinite(
                f"{error} at step {step} of {self._steps_total}, learning rate {rate:.3g}"
            ) from error
        if self._values.gradient_norm_max > 0:
            torch.nn.utils.clip_grad_norm_(
                self._module.parameters(), self._values.gradient_norm_max
            )
        self._optimizer.step()
        self._step = step
        self._losses.append(loss)
        return StepDone(step, self._epoch, loss, rate)

    def _end_epoch(self) -> EpochDone:
        epoch, score = self._epoch, self._validate()
        metrics = None if score is None else score.metrics
        best = self._keep_if_best(metrics)
        before = self._gain.metrics if self._gain else None
        delta = self._values.early_stopping_delta
        if metrics is None or self._selector.gained(metrics, before, delta):
            self._gain = Gain(epoch, metrics)
        self._epoch, self._losses = epoch + 1, []
        return EpochDone(self._step, epoch, metrics or {}, best)

    def _validate(self) -> Score | None:
        if not self._rows.validation:
            return None
        try:
            return self._scorer.score(self._module)
        except NothingFinite as error:
            raise LossNotFinite(f"{error} on validation rows after step {self._step}") from error

    def _keep_if_best(self, metrics: Mapping[str, float] | None) -> bool:
        """Without validation rows the latest epoch is the best."""
        before = self._best.metrics if self._best else None
        if metrics is not None and not self._selector.better(metrics, before):
            return False
        with np.errstate(over="ignore"):  # found below
            tensors = self._module.export()
        odd = next((name for name, t in tensors.items() if not np.isfinite(t).all()), None)
        if odd is not None:
            raise LossNotFinite(
                f"weight '{odd}' is not finite as {self._given.spec.dtype} after step {self._step}"
            )
        loss = sum(self._losses) / len(self._losses)
        self._best = BestEpoch(self._epoch, loss, metrics, tensors)
        return True

    def _go_on_from(self, place: Snapshot) -> None:
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                parameter.copy_(torch.from_numpy(place.module[name]))
        restore(self._optimizer, place.optimizer)
        torch.set_rng_state(torch.from_numpy(place.random))
        self._step, self._epoch = place.step, place.epoch
        self._losses = list(place.losses)
        self._best, self._gain = place.best, place.gain
