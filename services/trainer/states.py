"""States below the first PET layer, computed once per distinct text, kept within a byte limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.trainer.corpus import TokenIds, token_batches
from smile.model.packing import PackedTokens, pack
from smile.model.reference import VplmModule

ENCODED_TOKENS_MAX = 8192  # tokens of one pass through the lower layers
FLOAT_BYTES = 4


@dataclass(slots=True)
class BoundaryStates:
    """Boundary states of texts; those that do not fit the limit are computed when asked for.

    The states depend on the frozen lower layers alone, so any module of the same first PET layer
    shares them.
    """

    module: VplmModule
    texts: Sequence[TokenIds]
    bytes_max: int
    bytes_kept: int = 0
    _kept: dict[int, Tensor] = field(default_factory=dict)  # text to [tokens, H]

    @property
    def kept(self) -> int:
        """Texts whose states are kept."""
        return len(self._kept)

    def fill(self) -> Iterator[int]:
        """Computes what fits, longest texts first; yields the number of texts done."""
        if self.module.boundary == 0:
            return  # embeddings alone: cheaper to compute than to keep
        lengths = [len(ids) for ids in self.texts]
        batches = self._fitting(lengths)
        # One block for all that stays: scattered among short-lived ones, it would fragment the heap
        # to more than twice its size.
        kept = torch.empty(
            sum(lengths[text] for batch in batches for text in batch),
            self.module.backbone.shape.hidden,
        )
        start = 0
        for batch in batches:
            states, packed = self._compute(batch)
            place = kept[start : start + packed.tokens]
            place.copy_(states)
            self._kept.update(zip(batch, place.split(packed.lengths), strict=True))
            start += packed.tokens
            self.bytes_kept += states.nbytes
            yield self.kept

    def _fitting(self, lengths: Sequence[int]) -> list[list[int]]:
        """Batches of texts, longest first, as many as the limit allows."""
        token_bytes = self.module.backbone.shape.hidden * FLOAT_BYTES
        batches: list[list[int]] = []
        left = self.bytes_max
        for batch in token_batches(lengths, ENCODED_TOKENS_MAX):
            size = sum(lengths[text] for text in batch) * token_bytes
            if size <= left:
                batches.append(batch)
                left -= size
        return batches

    def of(self, texts: Sequence[int]) -> tuple[Tensor, PackedTokens]:
        """States [tokens, H] of texts in the given order, and their tokens."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if len(missing) == len(texts):
            return self._compute(texts)
        found = dict(self._kept_of(texts))
        if missing:
            states, packed = self._compute(missing)
            found.update(zip(missing, states.split(packed.lengths), strict=True))
        packed = pack([self.texts[text] for text in texts])
        return torch.cat([found[text] for text in texts]), packed

    def _kept_of(self, texts: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        return ((text, self._kept[text]) for text in texts if text in self._kept)

    def _compute(self, texts: Sequence[int]) -> tuple[Tensor, PackedTokens]:
        packed = pack([self.texts[text] for text in texts])
        return self.module.boundary_states(packed), packed
