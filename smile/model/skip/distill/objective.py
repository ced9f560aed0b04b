"""How far the student is from the teacher.

Near the boundary: the squared error of a state under a fixed measure of what the layers above make
of it: the mean of J^T J over the teacher's own states, where J takes a small error at the boundary
to errors of every layer's output, each in units of that output's spread (Gauss-Newton).

Through the layers: the mean squared error of every layer's output in the same units, and of the
attention scores before the softmax (SkipBERT, Wang et al., ACL 2022, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model.packing import PackedTokens
from smile.model.skip.distill.upper import UpperLayer


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one batch.

    Attributes:
        loss: What is made smaller.
        states: Mean squared error of each layer's output over its variance, the boundary's first;
            in the epochs that look at the boundary alone, only that one.
        scores: Mean squared error of the attention scores; 0 in those epochs.
    """

    loss: Tensor
    states: tuple[float, ...]
    scores: float


@dataclass(frozen=True, slots=True)
class Objective:
    """Both measures.

    Attributes:
        variances: [outputs] of the teacher's states, the boundary's first.
        root: [H, H], R with R R^T the measure at the boundary.
    """

    layers: tuple[UpperLayer, ...]
    variances: Tensor
    root: Tensor
    scores_weight: float

    @classmethod
    def of(
        cls,
        layers: tuple[UpperLayer, ...],
        samples: Sequence[tuple[PackedTokens, Tensor]],
        scores_weight: float,
        seed: int,
    ) -> Objective:
        """Measures taken on `samples`: texts and the teacher's states [tokens, outputs, H]."""
        states = torch.cat([targets for _, targets in samples])
        variances = states.var(dim=0, correction=0).mean(dim=1).clamp(min=1e-12)
        generator = torch.Generator().manual_seed(seed)
        width = states.shape[2]
        total = torch.zeros(width, width)
        for packed, targets in samples:
            gradient = _random_gradient(layers, packed, targets[:, 0], variances, generator)
            total += gradient.T @ gradient
        measure = total / states.shape[0] + torch.eye(width) / variances[0]
        values, vectors = torch.linalg.eigh(measure)
        return cls(layers, variances, vectors * values.clamp(min=0).sqrt(), scores_weight)

    def near(self, states: Tensor, targets: Tensor) -> Errors:
        """Of boundary states [tokens, H]; `targets` are [tokens, outputs, H]."""
        error = states - targets[:, 0]
        relative = float(error.detach().square().mean() / self.variances[0])
        return Errors((error @ self.root).square().mean(), (relative,), 0.0)

    def through(self, states: Tensor, targets: Tensor, packed: PackedTokens) -> Errors:
        """The same, and of what the layers above make of them."""
        parts = [(states - targets[:, 0]).square().mean() / self.variances[0]]
        scores = states.new_zeros(())
        x = states.to(self.layers[0].qkv.weight.dtype) if self.layers else states
        for index, layer in enumerate(self.layers, 1):
            with torch.no_grad():
                wanted = layer.scores(targets[:, index - 1].to(x.dtype), packed)
            x, found = layer.forward(x, packed)
            parts.append((x.float() - targets[:, index]).square().mean() / self.variances[index])
            error = torch.stack([a.error(b) for a, b in zip(found, wanted, strict=True)]).sum()
            scores = scores + error / sum(one.count for one in found) / len(self.layers)
        loss = torch.stack(parts).sum() + self.scores_weight * scores
        return Errors(loss, tuple(float(part.detach()) for part in parts), float(scores.detach()))


def _random_gradient(
    layers: tuple[UpperLayer, ...],
    packed: PackedTokens,
    states: Tensor,
    variances: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """J^T v for a random v, by token: [tokens, H]. The mean of its outer products is that of
    J^T J."""
    start = states.clone().requires_grad_()
    x = start.to(layers[0].qkv.weight.dtype) if layers else start
    total = start.sum() * 0.0
    for layer, variance in zip(layers, variances[1:], strict=True):
        x, _ = layer.forward(x, packed)
        drawn = torch.randn(x.shape, generator=generator)
        total = total + (x.float() * drawn).sum() / variance.sqrt()
    (gradient,) = torch.autograd.grad(total, start)
    return gradient
