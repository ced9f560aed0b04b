"""How much each class counts in the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from services.trainer.data.corpus import CorpusRow
from smile.model.losses import IGNORED_LABEL
from smile.resources import ClassWeighting, HyperParameters


def class_weights(
    values: HyperParameters, labels: Sequence[str], rows: Sequence[CorpusRow]
) -> Tensor | None:
    """Weights [labels] in the order of `labels`; None where all count the same.

    Balanced weights are `targets / (classes * targets of the class)`, as scikit-learn has them;
    a class that occurs nowhere has weight 1.
    """
    if values.class_weighting is ClassWeighting.UNIFORM and not values.class_weights:
        return None
    weights = [1.0] * len(labels)
    if values.class_weighting is ClassWeighting.BALANCED:
        counts = Counter(label for row in rows for label in row.labels if label != IGNORED_LABEL)
        for index, count in counts.items():
            weights[index] = counts.total() / (len(counts) * count)
    for index, label in enumerate(labels):
        weights[index] = values.class_weights.get(label, weights[index])
    return torch.tensor(weights)
