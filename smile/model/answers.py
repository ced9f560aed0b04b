"""Heads of a mixed batch, and what each text gets back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smile.model.kernels import Kernels
from smile.model.kernels.activation import Activation
from smile.model.kernels.dense import Spans
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
        spans: What the head reads, each as a mean: every token for token classification, else of
            each text all tokens or the first.
        sizes: Spans of each text.
        members: Whose spans they are; None for embedding heads, which have no weights.
    """

    head_class: HeadClass
    texts: tuple[int, ...]
    labels: tuple[int, ...]
    spans: Spans
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
        lengths = [packed.lengths[text] for text in texts]
        by_token = head_class.task is Task.TOKEN_CLASSIFICATION
        sizes = lengths if by_token else [1] * len(lengths)
        counts: dict[LoadedModule, int] = {}
        for text, size in zip(texts, sizes, strict=True):
            counts[modules[text]] = counts.get(modules[text], 0) + size
        starts = list(itertools.accumulate(packed.lengths, initial=0))
        first = [starts[text] for text in texts]
        device = packed.ids.device
        return cls(
            head_class=head_class,
            texts=tuple(texts),
            labels=tuple(len(modules[text].spec.head.labels) for text in texts),
            spans=Spans.of(_bounds(head_class, first, lengths), device),
            sizes=tuple(sizes),
            members=_members(counts, device),
        )

    def values(self, states: Tensor, kernels: Kernels) -> Tensor:
        """What the heads say of last states [tokens, H]: float32 [spans, any], whatever the states
        are in."""
        features = kernels.dense.pool(states, self.spans)  # [spans, H]
        if self.members is None:
            return kernels.dense.unit_(features)
        if self.head_class.pooling is Pooling.POOLER:
            dense = kernels.grouped.linear(features, self.members, POOLER_WEIGHT, POOLER_BIAS)
            features = kernels.dense.activate_(dense, Activation.TANH)
        return kernels.grouped.linear(features, self.members, HEAD_WEIGHT, HEAD_BIAS)

    def answers(self, values: NDArray[np.float32]) -> Iterator[tuple[int, Output]]:
        """(place in row order, output) of each text, from `values`."""
        if self.head_class.task is Task.EMBEDDING:
            yield from zip(self.texts, map(Embedding, values), strict=True)
        elif self.head_class.task is Task.SEQUENCE_CLASSIFICATION:
            for text, labels, row in zip(self.texts, self.labels, values, strict=True):
                yield text, Logits(row[:labels])
        else:
            parts = np.split(values, np.cumsum(self.sizes)[:-1])
            for text, labels, part in zip(self.texts, self.labels, parts, strict=True):
                yield text, TokenLogits(part[:, :labels])


def _bounds(
    head_class: HeadClass, first: Sequence[int], lengths: Sequence[int]
) -> list[tuple[int, int]]:
    """The spans that heads read of texts that begin at rows `first`."""
    texts = zip(first, lengths, strict=True)
    if head_class.task is Task.TOKEN_CLASSIFICATION:
        return [(at, at + 1) for start, length in texts for at in range(start, start + length)]
    if head_class.pooling is Pooling.MEAN:
        return [(start, start + length) for start, length in texts]
    return [(start, start + 1) for start in first]


def _members(counts: Mapping[LoadedModule, int], device: torch.device) -> Members | None:
    placed = [module.head for module in counts if module.head is not None]
    if not placed:
        return None
    return members_of(placed, list(counts.values()), device)
