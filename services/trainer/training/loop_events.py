"""What the training loop says while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Encoding:
    """Texts tokenized or encoded so far."""

    done: int
    total: int
    bytes_kept: int = 0


@dataclass(frozen=True, slots=True)
class Planned:
    """What lies ahead, once the rows are known. `step` is above 0 where a run goes on."""

    steps_total: int
    epochs_total: int
    training_rows: int
    validation_rows: int
    texts: int
    texts_kept: int
    step: int = 0
    epoch: int = 0


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
