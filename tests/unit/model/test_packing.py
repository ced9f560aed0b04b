"""Packed order, padded order and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smile.errors import InvalidArgument
from smile.model.packing import GROUP_ROWS_MIN, PADDED_SHARE_MIN, pack


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


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60))
def test_padding_stays_small_however_lengths_are_mixed(lengths: list[int]) -> None:
    packed = pack([[1] * length for length in lengths])
    for group in packed.plan.groups:
        first, last = group.start, group.start + (group.rows - 1) * group.length
        sizes = [packed.lengths[packed.texts[packed.plan.slots[slot]]] for slot in (first, last)]
        assert sizes[0] == group.length
        least = PADDED_SHARE_MIN if group.rows > GROUP_ROWS_MIN else 0.5
        assert sizes[1] >= least * group.length


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
