"""The training loss of each task: pure functions of model outputs and targets.

Every loss is a mean, so its size does not depend on the batch, and a batch that holds nothing to
learn from (every token ignored, no pair of equal labels) gives a zero that still back-propagates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from smile.model.metrics import IGNORED_LABEL

__all__ = ["IGNORED_LABEL", "contrastive_loss", "ranking_loss", "sequence_loss", "token_loss"]

CONTRASTIVE_TEMPERATURE = 0.1
RANKING_SCALE = 20.0


def sequence_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits [texts, labels] against class indices [texts].

    Args:
        weights: How much a text of each class counts in the mean [labels]; None: all the same.
    """
    return functional.cross_entropy(logits, labels, weights)


def token_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits [tokens, labels]; tokens labelled -100 do not count.

    Args:
        weights: How much a token of each class counts in the mean [labels]; None: all the same.
    """
    total = functional.cross_entropy(
        logits, labels, weights, ignore_index=IGNORED_LABEL, reduction="sum"
    )
    counted = labels != IGNORED_LABEL
    if weights is None:
        return total / counted.sum().clamp(min=1)
    weighed = weights[labels[counted]].sum()
    return total / torch.where(weighed > 0, weighed, 1.0)


def contrastive_loss(
    embeddings: Tensor, labels: Tensor, *, temperature: float = CONTRASTIVE_TEMPERATURE
) -> Tensor:
    """Supervised contrastive loss over one labelled batch.

    Every other text of an anchor's label is a positive, every other text stands in the denominator.
    Anchors without a positive are left out of the mean.

    Source: Khosla et al. 2020, "Supervised Contrastive Learning", equation 2 (`L_out`).

    Args:
        embeddings: [texts, hidden], L2-normalised.
        labels: [texts] class indices.
        temperature: divides the cosine similarities.
    """
    texts = len(labels)
    itself = torch.eye(texts, dtype=torch.bool, device=embeddings.device)
    similarity = embeddings @ embeddings.T / temperature  # [texts, texts]
    others = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min / 2)
    log_share = similarity - others.logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    positives = positive.sum(1)  # [texts]
    per_anchor = -log_share.masked_fill(~positive, 0.0).sum(1) / positives.clamp(min=1)
    return per_anchor.sum() / (positives > 0).sum().clamp(min=1)


def ranking_loss(anchors: Tensor, positives: Tensor, *, scale: float = RANKING_SCALE) -> Tensor:
    """Multiple negatives ranking loss: row i of `anchors` belongs to row i of `positives`.

    The other rows' positives are an anchor's negatives.

    Source: Henderson et al. 2017, "Efficient Natural Language Response Suggestion", section 4.4.

    Args:
        anchors: [pairs, hidden], L2-normalised.
        positives: [pairs, hidden], L2-normalised.
        scale: multiplies the cosine similarities.
    """
    similarity = anchors @ positives.T * scale  # [pairs, pairs]
    return functional.cross_entropy(similarity, torch.arange(len(anchors), device=anchors.device))
