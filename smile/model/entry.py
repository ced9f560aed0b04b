"""Where a module's first op acts inside its first PET layer.

All before it is frozen and depends on a text alone, so a trainer computes it once per text, and
back-propagation need not enter it. An adapter behind the feed-forward block leaves its whole layer
to what is computed once.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import torch
from torch import Tensor

from smile.model.backbone import Layer, LayerOps
from smile.model.packing import PackedTokens
from smile.model.specs import PetKind


class Entry(enum.Enum):
    """The first op's place, and what is kept of a text in front of it.

    - LAYER: at the first products; the layer's input [tokens, H];
    - ATTENTION: behind the attention block; its output and its residual side by side
      [tokens, 2 H];
    - FEEDFORWARD: behind the feed-forward block, by an op that reads the block's output and
      residual as their sum alone, and changes that; the sum [tokens, H].
    """

    LAYER = enum.auto()
    ATTENTION = enum.auto()
    FEEDFORWARD = enum.auto()


ENTRIES: Mapping[PetKind, Entry] = {
    PetKind.PFEIFFER: Entry.FEEDFORWARD,
    PetKind.HOULSBY: Entry.ATTENTION,
}


def entry_of(kind: PetKind) -> Entry:
    """Where modules of a kind begin to act."""
    return ENTRIES.get(kind, Entry.LAYER)


def entered(entry: Entry, layer: Layer, x: Tensor, packed: PackedTokens) -> Tensor:
    """What is kept, from the layer's input [tokens, H]."""
    if entry is Entry.LAYER:
        return x
    y, residual = layer.attended(x, packed)
    if entry is Entry.ATTENTION:
        return torch.cat([y, residual], dim=1)
    y, residual = layer.fed(y, residual)
    return y + residual


def left(entry: Entry, layer: Layer, states: Tensor, ops: LayerOps) -> Tensor:
    """The layer's output [rows, H] from what was kept of any rows; not of Entry.LAYER."""
    assert entry is not Entry.LAYER, "nothing of the layer was computed"
    if entry is Entry.ATTENTION:
        y, residual = states.chunk(2, dim=1)
        return layer.finished(*layer.fed(y, residual, ops), ops)
    return layer.finished(states, states.new_zeros(()), ops)
