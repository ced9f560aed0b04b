"""Heads of a mixed batch, and what each text gets back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from smile.model.grouped import Segments
from smile.model.heads import pool
from smile.model.layout import HEAD_BIAS, HEAD_WEIGHT
from smile.model.loaded import LoadedModule
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
class HeadClass:
    """What heads must share for one product to serve them all."""

    task: Task
    pooling: Pooling
    labels_width: int

    @classmethod
    def of(cls, module: LoadedModule) -> HeadClass:
        head = module.spec.head
        return cls(head.task, head.pooling, module.labels_width)


@dataclass(frozen=True, slots=True)
class HeadGroup:
    """The texts of one head class in a batch.

    Attributes:
        head_class: What their heads share.
        texts: Their places in the batch's row order.
        labels: Number of labels of each text's head.
        rows: int64 [rows]: what the head reads, tokens for token classification, else texts.
        sizes: Rows of each text.
        segments: Whose rows they are.
    """

    head_class: HeadClass
    texts: tuple[int, ...]
    labels: tuple[int, ...]
    rows: Tensor
    sizes: tuple[int, ...]
    segments: Segments

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
        rows_of: dict[LoadedModule, int] = {}
        for text, size in zip(texts, sizes, strict=True):
            rows_of[modules[text]] = rows_of.get(modules[text], 0) + size
        rows = torch.tensor(texts, device=packed.ids.device)
        if by_token:
            rows = torch.isin(packed.texts, rows).nonzero().flatten()
        return cls(
            head_class=head_class,
            texts=tuple(texts),
            labels=tuple(len(modules[text].spec.head.labels) for text in texts),
            rows=rows,
            sizes=tuple(sizes),
            segments=Segments.of(
                [module.weights for module in rows_of], list(rows_of.values()), rows.device
            ),
        )

    def answer(self, states: Tensor, packed: PackedTokens) -> Iterator[tuple[int, Output]]:
        """(place in row order, output) of each text, for last states [tokens, H]."""
        values = self._values(states, packed).cpu().numpy()
        if self.head_class.task is Task.EMBEDDING:
            yield from zip(self.texts, map(Embedding, values), strict=True)
        elif self.head_class.task is Task.SEQUENCE_CLASSIFICATION:
            for text, labels, row in zip(self.texts, self.labels, values, strict=True):
                yield text, Logits(row[:labels])
        else:
            parts = np.split(values, np.cumsum(self.sizes)[:-1])
            for text, labels, part in zip(self.texts, self.labels, parts, strict=True):
                yield text, TokenLogits(part[:, :labels])

    def _values(self, states: Tensor, packed: PackedTokens) -> Tensor:
        if self.head_class.task is not Task.TOKEN_CLASSIFICATION:
            states = pool(states, packed, self.head_class.pooling)
        features = states.index_select(0, self.rows)  # [rows, H]
        if self.head_class.task is Task.EMBEDDING:
            return functional.normalize(features, dim=1)
        return self.segments.product(features, HEAD_WEIGHT) + self.segments.vectors(HEAD_BIAS)
