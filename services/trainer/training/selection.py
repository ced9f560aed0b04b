"""Which validation metric decides: the best epoch and the early stop follow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smile.model.metrics import is_bio
from smile.model.specs import HeadSpec, Task
from smile.resources import Selection

LOSS = "validation_loss"

METRICS: Mapping[Task, Mapping[Selection, str]] = {
    Task.SEQUENCE_CLASSIFICATION: {
        Selection.TASK: "validation_accuracy",
        Selection.LOSS: LOSS,
        Selection.ACCURACY: "validation_accuracy",
        Selection.MACRO_F1: "validation_macro_f1",
    },
    Task.TOKEN_CLASSIFICATION: {
        Selection.TASK: "validation_token_accuracy",  # entity F1 where there are entities
        Selection.LOSS: LOSS,
        Selection.ACCURACY: "validation_token_accuracy",
        Selection.MACRO_F1: "validation_macro_f1",
        Selection.ENTITY_F1: "validation_f1",
    },
    Task.EMBEDDING: {Selection.TASK: "validation_recall_at_1", Selection.LOSS: LOSS},
}


def selectable(head: HeadSpec) -> Mapping[Selection, str]:
    """The metrics that a head's task can be selected by, by their selection."""
    metrics = dict(METRICS[head.task])
    if is_bio(head.labels):
        if head.task is Task.TOKEN_CLASSIFICATION:
            metrics[Selection.TASK] = metrics[Selection.ENTITY_F1]
    else:
        metrics.pop(Selection.ENTITY_F1, None)
    return metrics


@dataclass(frozen=True, slots=True)
class Selector:
    """Compares epochs by their validation metrics."""

    metric: str

    def better(self, metrics: Mapping[str, float], than: Mapping[str, float] | None) -> bool:
        """Whether an epoch is better; among equals, the one of lower loss is."""
        if than is None:
            return True
        mine, others = self._decisive(metrics), self._decisive(than)
        return mine > others or (mine == others and metrics[LOSS] < than[LOSS])

    def gained(
        self, metrics: Mapping[str, float], than: Mapping[str, float] | None, delta: float
    ) -> bool:
        """Whether an epoch is better by more than `delta`; with 0, whether it is better."""
        if than is None or delta == 0.0:
            return self.better(metrics, than)
        return self._decisive(metrics) > self._decisive(than) + delta

    def _decisive(self, metrics: Mapping[str, float]) -> float:
        return -metrics[LOSS] if self.metric == LOSS else metrics[self.metric]
