"""Losses against their definitions written out, one pair at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from smile.model import losses


def test_token_loss_is_the_mean_over_labelled_tokens() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, -100, 2, -100, 1])
    kept = torch.tensor([0, 2, 4])
    expected = functional.cross_entropy(logits[kept], labels[kept])
    assert losses.token_loss(logits, labels).item() == pytest.approx(expected.item())


def test_token_loss_without_labels_is_a_zero_that_back_propagates() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = losses.token_loss(logits, torch.tensor([-100, -100]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert not gradient.any()


def test_sequence_loss_of_even_logits_is_the_logarithm_of_the_class_count() -> None:
    loss = losses.sequence_loss(torch.zeros(4, 5), torch.tensor([0, 1, 2, 3]))
    assert loss.item() == pytest.approx(math.log(5))


def contrastive_by_hand(embeddings: Tensor, labels: list[int], temperature: float) -> float:
    """Khosla et al. 2020, equation 2, as sums."""
    anchors = []
    for i, label in enumerate(labels):
        positives = [p for p, other in enumerate(labels) if other == label and p != i]
        if not positives:
            continue
        scores = [math.exp(float(embeddings[i] @ e) / temperature) for e in embeddings]
        total = sum(score for a, score in enumerate(scores) if a != i)
        anchors.append(-sum(math.log(scores[p] / total) for p in positives) / len(positives))
    return sum(anchors) / len(anchors)


def test_contrastive_loss_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = functional.normalize(torch.randn(7, 4, generator=generator), dim=1)
    labels = [0, 1, 0, 2, 1, 0, 3]  # 2 and 3 have no positive
    loss = losses.contrastive_loss(embeddings, torch.tensor(labels), temperature=0.3)
    assert loss.item() == pytest.approx(contrastive_by_hand(embeddings, labels, 0.3), rel=1e-5)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_contrastive_loss_without_pairs_is_a_zero_that_back_propagates(labels: list[int]) -> None:
    raw = torch.randn(len(labels), 4, requires_grad=True)
    loss = losses.contrastive_loss(functional.normalize(raw, dim=1), torch.tensor(labels))
    (gradient,) = torch.autograd.grad(loss, raw)
    assert loss.item() == 0
    assert not gradient.any()


def test_contrastive_loss_prefers_classes_apart() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    mixed = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    near = losses.contrastive_loss(apart, labels)
    assert near < 1e-6 < losses.contrastive_loss(mixed, labels)


def test_ranking_loss_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    anchors = functional.normalize(torch.randn(4, 3, generator=generator), dim=1)
    positives = functional.normalize(torch.randn(4, 3, generator=generator), dim=1)
    expected = 0.0
    for i in range(4):
        scores = [math.exp(20 * float(anchors[i] @ positive)) for positive in positives]
        expected -= math.log(scores[i] / sum(scores)) / 4
    assert losses.ranking_loss(anchors, positives).item() == pytest.approx(expected, rel=1e-4)
