"""Masks while they are trained: a real score per entry, below zero where the entry is masked.

Zhao et al. 2020 (arXiv 2004.12406), with one more rule: a mask may have so many entries and no
more, so the lowest scores win. A stored mask says which entries, not how nearly the others: scores
start from it again at the same small distance on either side of zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

START = 0.01  # five steps of AdamW at the platform's default rate


def scores_of(masked: Tensor) -> Tensor:
    """Scores [entries] in float32 that `masked_of` turns into `masked` [entries] again."""
    return torch.where(masked, -START, START)


def masked_of(scores: Tensor, count_max: int) -> Tensor:
    """The masked entries, bool [entries]: the `count_max` lowest scores below zero.

    Among equal scores the first entries are masked, so the answer is the same everywhere.
    """
    masked = scores < 0
    if int(masked.sum()) <= count_max:
        return masked
    last = scores.kthvalue(count_max).values
    masked = scores < last
    ties = (scores == last).nonzero()[: count_max - int(masked.sum())]
    masked[ties] = True
    return masked
