"""How well a module does on validation rows: with the states it is trained on, and with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.trainer.data.corpus import CorpusRow
from services.trainer.training.learner import Learner
from services.trainer.training.objectives import Data, Objective, Score
from smile.resources import TrainingStates

# A pass over texts that training does not need: nothing beside its own passes.
OTHER_TOKENS_SHARE_MAX = 0.25


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores modules on validation rows, at least one.

    Attributes:
        states: Those trained on. Of mixed ones a metric is the mean of both kinds', and the tables
            of classes are those of exact ones.
        second: Which the second kind is where texts have two, else None.
    """

    objective: Objective
    data: Data
    rows: Sequence[CorpusRow]
    states: TrainingStates
    second: TrainingStates | None = None

    def score(self, module: Learner) -> Score:
        """What epochs are compared by. Raises `NothingFinite`."""
        first = self._of(module, self.rows)
        if self.states is not TrainingStates.MIXED:
            return first
        return _mean(first, self._of(module, self._others))

    def told(self, module: Learner) -> Score:
        """The same, of mixed states with those of each kind by `{metric}_{kind}`. Raises
        `NothingFinite`."""
        first = self._of(module, self.rows)
        if self.states is not TrainingStates.MIXED or self.second is None:
            return first
        other = self._of(module, self._others)
        each = {**_named(first, TrainingStates.EXACT), **_named(other, self.second)}
        mean = _mean(first, other)
        return replace(mean, metrics={**mean.metrics, **each})

    def besides(self, module: Learner) -> Mapping[str, float]:
        """By `{metric}_{kind}` the metrics on the kind of states that was not trained on; none
        where there is no other, or both were.

        Raises:
            NothingFinite: a loss is no number.
            SmileError, OSError: what the states are made of cannot be had.
        """
        if self.second is None or self.states is TrainingStates.MIXED:
            return {}
        return _named(self._of(module, self._others), self.second)

    def cheap(self, training: Sequence[CorpusRow]) -> bool:
        """Whether asking for the second kind's states is next to nothing beside the training."""
        own, given = (sum(map(self.data.length, rows)) for rows in (self.rows, training))
        return own <= OTHER_TOKENS_SHARE_MAX * given

    @property
    def _others(self) -> Sequence[CorpusRow]:
        return [self.data.other(row) for row in self.rows]

    def _of(self, module: Learner, rows: Sequence[CorpusRow]) -> Score:
        return self.objective.evaluate(module, self.data, rows)


def _mean(one: Score, other: Score) -> Score:
    pairs = {name: (value, other.metrics[name]) for name, value in one.metrics.items()}
    return replace(one, metrics={name: (a + b) / 2 for name, (a, b) in pairs.items()})


def _named(score: Score, kind: TrainingStates) -> Mapping[str, float]:
    return {f"{name}_{kind}": value for name, value in score.metrics.items()}
