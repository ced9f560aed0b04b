"""Packed order, padded order and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smile.errors import InvalidArgument
from smile.model.packing import GROUP_SCORES_MAX, pack


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_slots_and_tokens_are_inverse(lengths: list[int]) -> None:
    packed = pack([list(range(length)) for length in lengths])
    plan = packed.plan
    there = torch.arange(packed.tokens).index_select(0, plan.slots)
    assert torch.equal(there.index_select(0, plan.tokens), torch.arange(packed.tokens))
    assert plan.tokens.unique().numel() == packed.tokens


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_masks_hide_padding_and_nothing_else(lengths: list[int]) -> None:
    packed = pack([[1] * length for length in lengths])
    for group in packed.plan.groups:
        rows = slice(group.start, group.start + group.rows * group.length)
        texts = packed.texts[packed.plan.slots[rows]].view(group.rows, group.length)
        assert (texts == texts[:, :1]).all()  # a row never holds two texts
        shown = torch.ones(group.rows, group.length, dtype=torch.bool)
        if group.mask is not None:
            shown = group.mask[:, 0, 0] == 0
        sizes = [packed.lengths[int(text)] for text in texts[:, 0]]
        assert shown.sum(1).tolist() == sizes
        assert max(sizes) == group.length
    assert sum(group.rows for group in packed.plan.groups) == len(lengths)


def test_positions_and_texts_follow_the_given_order() -> None:
    packed = pack([[5, 6, 7], [8], [9, 9]])
    assert packed.ids.tolist() == [5, 6, 7, 8, 9, 9]
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert packed.texts.tolist() == [0, 0, 0, 1, 2, 2]
    assert packed.offsets.tolist() == [0, 3, 4, 6]
    assert packed.lengths == (3, 1, 2)


def test_one_length_needs_no_rearrangement() -> None:
    assert pack([[1, 2], [3, 4]]).plan.in_order
    assert not pack([[1, 2, 3], [3, 4, 5], [6, 7]]).plan.in_order


def test_long_texts_are_split_so_that_scores_stay_bounded() -> None:
    packed = pack([[1] * 300] * 20)
    for group in packed.plan.groups:
        assert group.rows * group.length**2 <= GROUP_SCORES_MAX
    assert len(packed.plan.groups) > 1
    assert packed.plan.in_order


def test_moving_to_a_device_keeps_every_field() -> None:
    packed = pack([[1, 2, 3], [4, 5]])
    moved = packed.to(torch.device("cpu"))
    assert torch.equal(moved.ids, packed.ids)
    assert moved.lengths == packed.lengths
    assert [group.length for group in moved.plan.groups] == [3]


@pytest.mark.parametrize("texts", [[], [[]], [[1], []]])
def test_nothing_to_pack_is_refused(texts: list[list[int]]) -> None:
    with pytest.raises(InvalidArgument, match="at least 1 token"):
        pack(texts)
