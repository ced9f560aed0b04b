"""Centred trigrams of packed tokens, and the 64-bit keys that stand for them.

A key holds three token ids of 21 bits each: `left << 42 | centre << 21 | right`. A neighbour
outside the text is the pad token; a neighbour that a fallback leaves out is `ANY`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smile.model.packing import PackedTokens

ID_BITS = 21
ANY = (1 << ID_BITS) - 1  # no token: vocabularies are smaller


def ngrams_of(packed: PackedTokens, pad: int) -> Tensor:
    """Left, centre and right token id of every token: [tokens, 3] int64. Texts share none.

    Args:
        pad: Stands for a neighbour outside the text.
    """
    ids = packed.ids
    found = torch.full((packed.tokens, 3), pad, dtype=torch.int64, device=ids.device)
    found[:, 1] = ids
    found[1:, 0] = ids[:-1]
    found[:-1, 2] = ids[1:]
    found[packed.offsets[:-1], 0] = pad
    found[packed.offsets[1:] - 1, 2] = pad
    return found


def keys_of(ngrams: Tensor) -> Tensor:
    """[n, 3] int64 to [n] int64; see the module."""
    return (ngrams[:, 0] << 2 * ID_BITS) | (ngrams[:, 1] << ID_BITS) | ngrams[:, 2]


def ngrams_from(keys: Tensor) -> Tensor:
    """[n] int64 to [n, 3] int64: what `keys_of` was given."""
    return torch.stack([keys >> 2 * ID_BITS, (keys >> ID_BITS) & ANY, keys & ANY], dim=1)


def ngram_keys(packed: PackedTokens, pad: int) -> Tensor:
    """The key of every token's trigram: [tokens] int64."""
    return keys_of(ngrams_of(packed, pad))
