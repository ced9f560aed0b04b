"""N-gram dropout: learning from n-grams with neighbours left out, as shorter ones will serve.

Every different trigram of a batch is drawn once, as a table has it or not: with `share` it gives
way to its bigram, and that with `share` again to its unigram. With a half, which is the default, a
half are trigrams and a quarter each of the others: about what held-out news finds of a table made
from other news.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smile.model.skip.ngrams import ANY, ID_BITS

SEEDS = 2**62


def shortened(keys: Tensor, share: float, seed: int, step: int) -> Tensor:
    """Keys of trigrams [tokens] to those that serve them; the same for the same arguments."""
    different, places = torch.unique(keys, return_inverse=True)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % SEEDS)
    drawn = torch.rand(2, len(different), generator=generator) < share
    no_right, no_left = drawn[0], drawn[0] & drawn[1]
    different = torch.where(no_right, different | ANY, different)
    different = torch.where(no_left, different | (ANY << 2 * ID_BITS), different)
    return different.index_select(0, places)
