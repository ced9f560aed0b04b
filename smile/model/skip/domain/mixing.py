"""Rows of a domain's texts while it learns: as they will be served.

Its own where its delta table will have them, its parent's elsewhere. So the encoder learns rows
that are right beside rows that stay as they are. Which n-grams the delta will have is HMI's rule
(VLDB Journal 2025, arXiv 2504.17449): the fewest, by descending count, that cover a share alpha.
Which of these end too near to their parent's is known only once they have learned.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.packing import PackedTokens
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import EncoderForm
from smile.model.skip.ngrams import ngram_keys, ngrams_from
from smile.representations.counting import NgramCounts
from smile.representations.delta import relative_difference
from smile.representations.domains import EffectiveRows
from smile.representations.index import NgramIndex


@dataclass(frozen=True, slots=True)
class Mix:
    """Whose row each n-gram has.

    Attributes:
        parent: What the parent's texts get.
        alphas: Shares that the domain's own rows cover; each step draws one.
        index: Of the domain's n-grams.
        before: [n-grams] float64, the share of the corpus's tokens that more frequent ones cover.
        difference_min: Rows that are nearer to their parent's are the parent's as they are served;
            see `smile.representations.delta.DeltaRules`.
    """

    parent: EffectiveRows
    alphas: tuple[float, ...]
    index: NgramIndex
    before: NDArray[np.float64]
    difference_min: float = 0.0

    @classmethod
    def of(
        cls,
        parent: EffectiveRows,
        counts: NgramCounts,
        alphas: tuple[float, ...],
        difference_min: float = 0.0,
    ) -> Mix:
        """Over a corpus's n-grams, at least one."""
        before = (np.cumsum(counts.counts) - counts.counts) / counts.total
        return cls(parent, alphas, NgramIndex.build(counts.keys), before, difference_min)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all that decides which rows are whose while it learns."""
        keys, rows = self.index.entries()
        digest = hashlib.sha256(repr((self.alphas, self.parent.table_digest)).encode())
        order = np.argsort(keys)
        digest.update(keys[order].tobytes() + rows[order].tobytes() + self.before.tobytes())
        return digest.hexdigest()

    def drawn(self, seed: int, step: int) -> float:
        """The share of a step; the same for the same arguments."""
        return random.Random(f"{seed}/{step}").choice(self.alphas)  # noqa: S311 -- repeatable

    def own(self, keys: NDArray[np.int64], alpha: float) -> NDArray[np.bool_]:
        """Which n-grams have a row of the domain's own: [n]."""
        found = self.index.find(keys)
        return (found >= 0) & (self.before[found] < alpha)

    def states(
        self, encoder: LocalEncoder, packed: PackedTokens, alpha: float, least: float = 0.0
    ) -> Tensor:
        """States at the boundary, [tokens, H]; `encoder` makes the domain's rows, those alone that
        are `least` off their parent's, in lengths of these.
        """
        keys = ngram_keys(packed, encoder.outside)
        different, places = torch.unique(keys, return_inverse=True)
        own = torch.from_numpy(self.own(different.numpy(), alpha))
        made = encoder.rows(ngrams_from(different[own])).float()
        if least > 0.0:
            parents = self._parents(different[own], encoder.form.hidden)
            near = relative_difference(made.detach().numpy(), parents.numpy()) < least
            made = torch.where(torch.from_numpy(near)[:, None], parents, made)
        rows = torch.cat([made, self._parents(different[~own], encoder.form.hidden)])
        order = torch.cat([own.nonzero(), (~own).nonzero()]).squeeze(1)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        return encoder.merge(rows.index_select(0, rank[places]), packed)

    def _parents(self, keys: Tensor, hidden: int) -> Tensor:
        """[n] to [n, 3 H] float32, rounded as tables round."""
        row_format = RowFormat(RowDtype.FLOAT16, hidden)
        if len(keys) == 0:
            return torch.empty(0, 3 * hidden)
        packed = self.parent.packed(keys.numpy(), row_format)
        return torch.from_numpy(row_format.unpack(packed))


@dataclass(frozen=True, slots=True)
class AsServed:
    """What texts of a domain get, to be measured; implements `distill.measures.Below`."""

    encoder: LocalEncoder
    mix: Mix
    alpha: float

    @property
    def form(self) -> EncoderForm:
        return self.encoder.form

    def __call__(self, packed: PackedTokens, keys: Tensor | None = None) -> Tensor:
        return self.mix.states(self.encoder, packed, self.alpha, self.mix.difference_min)
