"""Masks and their scores: what is masked, how much at most, and the way back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from smile.model.masking import masked_of, scores_of

SCORES = st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5]) | st.floats(-1, 1), min_size=1)


@given(SCORES, st.integers(1, 12))
def test_the_lowest_scores_below_zero_are_masked_and_the_first_of_equals(
    values: list[float], count_max: int
) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    below = [place for place, score in enumerate(values) if score < 0]
    expected = sorted(below, key=lambda place: (values[place], place))[:count_max]
    assert masked_of(scores, count_max).nonzero()[:, 0].tolist() == sorted(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_scores_of_a_mask_give_the_mask_again(mask: list[bool]) -> None:
    masked = torch.tensor(mask)
    scores = scores_of(masked)
    assert scores.dtype is torch.float32
    assert torch.equal(masked_of(scores, max(1, sum(mask))), masked)


def test_a_new_mask_is_one_small_step_from_masking_anything() -> None:
    scores = scores_of(torch.zeros(5, dtype=torch.bool))
    assert not masked_of(scores, 5).any()
    assert masked_of(scores - 0.02, 3).tolist() == [True] * 3 + [False] * 2
