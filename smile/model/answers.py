"""Heads of a mixed batch, and what each text gets back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from smile.model.kernels import Kernels
from smile.model.kernels.rows import Members
from smile.model.layout import HEAD_BIAS, HEAD_WEIGHT, POOLER_BIAS, POOLER_WEIGHT
from smile.model.loaded import HeadClass, LoadedModule, members_of
from smile.model.packing import PackedTokens
from smile.model.specs import Pooling, Task


@dataclass(frozen=True, slots=True, eq=False)
class Logits:
    """Of a sequence classification head: `values` [labels]."""

    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogits:
    """Of a token classification head: `values` [tokens, labels], special tokens included."""

    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Of an embedding head: `values` [H], of length 1."""

    values: NDArray[np.float32]


Output: TypeAlias = Logits | TokenLogits | Embedding


@dataclass(frozen=True, slots=True)
class HeadGroup:
    """The texts of one head class in a batch.

    Attributes:
        head_class: What their heads share.
        texts: Their places in the batch's row order.
        labels: Number of labels of each text's head.
        rows: int64 [rows]: what the head reads, tokens for token classification, else texts.
        sizes: Rows of each text.
        members: Whose rows they are; None for embedding heads, which have no weights.
    """

    head_class: HeadClass
    texts: tuple[int, ...]
    labels: tuple[int, ...]
    rows: Tensor
    sizes: tuple[int, ...]
    members: Members | None

    @classmethod
    def of(
        cls,
        head_class: HeadClass,
        texts: Sequence[int],
        modules: Sequence[LoadedModule],
        packed: PackedTokens,
    ) -> HeadGroup:
        """The group of `texts`, ascending; `modules` and `packed` are the whole batch's."""
        by_token = head_class.task is Task.TOKEN_CLASSIFICATION
        sizes = [packed.lengths[text] if by_token else 1 for text in texts]
        counts: dict[LoadedModule, int] = {}
        for text, size in zip(texts, sizes, strict=True):
            counts[modules[text]] = counts.get(modules[text], 0) + size
        rows = torch.tensor(texts, device=packed.ids.device)
        if by_token:
            rows = torch.isin(packed.texts, rows).nonzero().flatten()
        return cls(
            head_class=head_class,
            texts=tuple(texts),
            labels=tuple(len(modules[text].spec.head.labels) for text in texts),
            rows=rows,
            sizes=tuple(sizes),
            members=_members(counts, rows.device),
        )

    def answer(
        self, states: Tensor, packed: PackedTokens, kernels: Kernels
    ) -> Iterator[tuple[int, Output]]:
        """(place in row order, output) of each text, for last states [tokens, H]."""
        values = self._values(states, packed, kernels).cpu().numpy()
        if self.head_class.task is Task.EMBEDDING:
            yield from zip(self.texts, map(Embedding, values), strict=True)
        elif self.head_class.task is Task.SEQUENCE_CLASSIFICATION:
            for text, labels, row in zip(self.texts, self.labels, values, strict=True):
                yield text, Logits(row[:labels])
        else:
            parts = np.split(values, np.cumsum(self.sizes)[:-1])
            for text, labels, part in zip(self.texts, self.labels, parts, strict=True):
                yield text, TokenLogits(part[:, :labels])

    def _values(self, states: Tensor, packed: PackedTokens, kernels: Kernels) -> Tensor:
        """Float32, whatever the states are in."""
        if self.head_class.task is not Task.TOKEN_CLASSIFICATION:
            states = self._pooled(states, packed, kernels)
        features = states.index_select(0, self.rows).float()  # [rows, H]
        if self.members is None:
            return functional.normalize(features, dim=1)
        if self.head_class.pooling is Pooling.POOLER:
            dense = kernels.grouped.linear(features, self.members, POOLER_WEIGHT, POOLER_BIAS)
            features = dense.tanh()
        return kernels.grouped.linear(features, self.members, HEAD_WEIGHT, HEAD_BIAS)

    def _pooled(self, states: Tensor, packed: PackedTokens, kernels: Kernels) -> Tensor:
        """One state per text of the whole batch: [texts, H]."""
        if self.head_class.pooling is Pooling.MEAN:
            return kernels.dense.pool_mean(states, packed)
        return states.index_select(0, packed.offsets[:-1])


def _members(counts: Mapping[LoadedModule, int], device: torch.device) -> Members | None:
    placed = [module.head for module in counts if module.head is not None]
    if not placed:
        return None
    return members_of(placed, list(counts.values()), device)
