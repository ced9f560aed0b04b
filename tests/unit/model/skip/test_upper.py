"""The error of attention scores: its value and its gradient, where texts are filled up, too."""

from __future__ import annotations

import pytest
import torch

from smile.model.backbone import Backbone
from smile.model.packing import LengthGroup, pack
from smile.model.skip.distill.upper import Scores, upper_layers

LENGTHS = (7, 5, 3)


def group(*, filled_up: bool) -> LengthGroup:
    mask = torch.zeros(len(LENGTHS), 1, 1, 7)
    for row, length in enumerate(LENGTHS):
        mask[row, ..., length:] = float("-inf")
    return LengthGroup(len(LENGTHS), 7, 0, mask if filled_up else None)


@pytest.mark.parametrize("filled_up", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_error_is_a_sum_over_pairs_of_tokens(dtype: torch.dtype, *, filled_up: bool) -> None:
    torch.manual_seed(1)
    values, target = torch.randn(2, len(LENGTHS), 4, 7, 7).to(dtype)
    values.requires_grad_()
    one = group(filled_up=filled_up)
    found = Scores(one, values).error(Scores(one, target))
    (gradient,) = torch.autograd.grad(0.3 * found, values)
    pairs = torch.zeros_like(values)
    for row, length in enumerate(LENGTHS if filled_up else [7] * len(LENGTHS)):
        pairs[row, :, :length, :length] = 1
    expected = ((values - target) * pairs).float().square().sum()
    (expected_gradient,) = torch.autograd.grad(0.3 * expected, values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    tolerance = 1e-6 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)
    assert Scores(one, values).count == float(pairs.sum())


def test_layers_are_the_backbones(toy: Backbone) -> None:
    packed = pack([[2, 50, 51, 52, 3], [2, 60, 3], [2, 61, 62, 63, 3]])
    x = toy.embed(packed)
    for ours, theirs in zip(upper_layers(toy, 0, torch.float32), toy.layers, strict=True):
        y, scores = ours.forward(x, packed)
        torch.testing.assert_close(y, theirs.forward(x, packed), atol=1e-5, rtol=0)
        alone = ours.scores(x, packed)
        assert all(torch.equal(a.values, b.values) for a, b in zip(scores, alone, strict=True))
        x = y
