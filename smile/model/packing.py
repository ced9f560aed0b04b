"""Texts laid end to end: the only form in which the backbone sees tokens.

No row is padded to a longer neighbour. Attention alone needs texts apart: native kernels go by the
texts' offsets, and for the others `AttentionPlan` groups texts by similar length, once per batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from smile.errors import InvalidArgument

PADDED_SHARE_MIN = 0.8  # a text joins a group if it fills at least this share of its row
GROUP_ROWS_MIN = 4  # smaller groups take shorter texts too: a launch costs more than padding


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Texts of similar length, which attention computes in one batched product.

    Attributes:
        rows: Texts in the group.
        length: Tokens of its longest text.
        start: Where its `rows * length` slots begin in the padded order.
        mask: [rows, 1, 1, length] float32, 0 at tokens and -inf at padding; None without padding.
    """

    rows: int
    length: int
    start: int
    mask: Tensor | None

    def to(self, device: torch.device) -> LengthGroup:
        """The same group on another device."""
        return replace(self, mask=None if self.mask is None else self.mask.to(device))


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How packed tokens move into groups of similar length and back.

    Attributes:
        groups: Longest first.
        slots: [sum of rows * length] int64: the packed token each slot holds; padding holds its
            text's first token, which the mask hides.
        tokens: [tokens] int64: the slot of each packed token, so that
            `packed = padded.index_select(0, tokens)`.
        rows: [texts] int64: the text of each row of all groups.
        in_order: Slots are the packed tokens themselves: nothing to move.
    """

    groups: tuple[LengthGroup, ...]
    slots: Tensor
    tokens: Tensor
    rows: Tensor
    in_order: bool

    def to(self, device: torch.device) -> AttentionPlan:
        """The same plan on another device."""
        return AttentionPlan(
            tuple(group.to(device) for group in self.groups),
            self.slots.to(device),
            self.tokens.to(device),
            self.rows.to(device),
            self.in_order,
        )


@dataclass(frozen=True)
class PackedTokens:
    """Token ids of several texts, end to end.

    Attributes:
        ids: [tokens] int64.
        positions: [tokens] int64, each token's 0-based place in its own text.
        texts: [tokens] int64, the index of each token's text.
        offsets: [texts + 1] int64, where each text begins; the last is the number of tokens.
        lengths: Tokens of each text.
    """

    ids: Tensor
    positions: Tensor
    texts: Tensor
    offsets: Tensor
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.ids.shape[0]

    @cached_property
    def plan(self) -> AttentionPlan:
        """Grouping for attention where no kernel of variable lengths is at hand."""
        return plan_attention(self.lengths).to(self.ids.device)

    def to(self, device: torch.device) -> PackedTokens:
        """The same tokens on another device."""
        if device == self.ids.device:
            return self
        return PackedTokens(
            self.ids.to(device),
            self.positions.to(device),
            self.texts.to(device),
            self.offsets.to(device),
            self.lengths,
        )


def pack(texts: Sequence[Sequence[int]]) -> PackedTokens:
    """Token ids of each text, special tokens included, laid end to end in the given order.

    Raises:
        InvalidArgument: no texts, or a text without tokens.
    """
    lengths = tuple(len(ids) for ids in texts)
    if not lengths or min(lengths) == 0:
        raise InvalidArgument(f"pack needs texts of at least 1 token, got lengths {lengths[:10]}")
    offsets = _offsets(lengths)
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return PackedTokens(
        ids=torch.tensor(list(itertools.chain.from_iterable(texts)), dtype=torch.int64),
        positions=torch.arange(int(offsets[-1])) - offsets[index],
        texts=index,
        offsets=offsets,
        lengths=lengths,
    )


def plan_attention(lengths: Sequence[int]) -> AttentionPlan:
    """Groups texts of similar length; `lengths` are in packed order."""
    offsets = _offsets(lengths)
    order = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    groups: list[LengthGroup] = []
    slots: list[Tensor] = []
    tokens = torch.empty(int(offsets[-1]), dtype=torch.int64)
    start = 0
    for members in _similar(order, lengths):
        length = lengths[members[0]]
        place = torch.arange(length)  # [length]
        present = place < torch.tensor([lengths[text] for text in members])[:, None]
        packed = offsets[members][:, None] + place * present  # [rows, length]
        slot = start + torch.arange(len(members) * length).view(len(members), length)
        tokens[packed[present]] = slot[present]
        slots.append(packed.flatten())
        groups.append(LengthGroup(len(members), length, start, _mask(present)))
        start += len(members) * length
    all_slots = torch.cat(slots)
    in_order = torch.equal(all_slots, torch.arange(len(all_slots)))
    return AttentionPlan(tuple(groups), all_slots, tokens, torch.tensor(order), in_order)


def _offsets(lengths: Sequence[int]) -> Tensor:
    """Where each text begins, and where the last ends: [texts + 1] int64."""
    return torch.tensor(list(itertools.accumulate(lengths, initial=0)))


def _similar(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cuts texts, longest first, into groups whose rows are mostly filled."""
    groups: list[list[int]] = []
    for text in order:
        if groups:
            longest = lengths[groups[-1][0]]
            filled = lengths[text] >= PADDED_SHARE_MIN * longest
            small = len(groups[-1]) < GROUP_ROWS_MIN and lengths[text] * 2 >= longest
            if filled or small:
                groups[-1].append(text)
                continue
        groups.append([text])
    return groups


def _mask(present: Tensor) -> Tensor | None:
    """[rows, length] bool to an additive mask; None where nothing is hidden."""
    if bool(present.all()):
        return None
    mask = torch.zeros(present.shape).masked_fill_(~present, float("-inf"))
    return mask[:, None, None, :]
