"""What stands in for the lower layers of a batch: rows of n-grams, looked up or computed, merged.

Looking up needs no device and may be done beside another batch; rows that no table has are computed
with the batch, each once, and rounded as tables round them. So a text's states are the same to the
bit whatever was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smile.model.batch import MixedBatch
from smile.model.kernels.merge import MergeTables
from smile.model.kernels.ngrams import ngram_kernels
from smile.model.kernels.workspace import Slot
from smile.model.ngram_rows import RowFormat, RowStore, RowStores
from smile.model.packing import PackedTokens
from smile.model.serving import ServingBackbone
from smile.model.skip.ngrams import ngram_keys, ngrams_from
from smile.model.skip.serving import ServingEncoder


class RowView(Protocol):
    """Rows that can be had, as of one moment. Never changes."""

    @property
    def stores(self) -> RowStores:
        """Where they lie."""
        ...

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """The number of each key's row in `stores` [n], new; -1 where there is none."""
        ...


class NoRows:
    """Not one row: everything is computed."""

    def __init__(self, row_format: RowFormat) -> None:
        self.stores = RowStores(row_format, ())

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        return np.full(len(keys), -1, np.int32)


@dataclass(frozen=True, slots=True)
class LookedUp:
    """The rows of a batch's different texts; implements `smile.model.batched.Lower`.

    Attributes:
        encoder: Computes what is missing.
        keys: [tokens] int64, each token's n-gram.
        numbers: [tokens] int32, the row of each: below `stores.count` one that was found, else one
            of `missing`.
        missing: [missing] int64, the different n-grams that were not found.
        stores: Where found rows lie.
    """

    encoder: ServingEncoder
    keys: NDArray[np.int64]
    numbers: NDArray[np.int32]
    missing: NDArray[np.int64]
    stores: RowStores

    @classmethod
    def of(cls, packed: PackedTokens, encoder: ServingEncoder, rows: RowView) -> LookedUp:
        """Looks up every token's n-gram."""
        keys = ngram_keys(packed, encoder.outside).cpu().numpy()
        numbers = rows.find(keys)
        stores = rows.stores
        missing = ngram_kernels().number_missing(keys, numbers, stores.count)
        return cls(encoder, keys, numbers, missing, stores)

    @property
    def boundary(self) -> int:
        return self.encoder.form.boundary

    @property
    def found(self) -> NDArray[np.bool_]:
        """[tokens], whose rows were found."""
        return self.numbers < self.stores.count

    def found_of(self, mixed: MixedBatch) -> NDArray[np.int64]:
        """How many n-grams of each text were found: [texts], in the order the batch was given."""
        starts = mixed.different.packed.offsets[:-1].cpu().numpy()
        by_place = np.add.reduceat(self.found, starts, dtype=np.int64)  # [different texts]
        return _as_given(mixed, by_place[mixed.different.places(mixed.packed).cpu().numpy()])

    def lengths_of(self, mixed: MixedBatch) -> NDArray[np.int64]:
        """How many n-grams each text has: [texts], in the order the batch was given."""
        return _as_given(mixed, np.array(mixed.packed.lengths, np.int64))

    def states(self, packed: PackedTokens, serving: ServingBackbone) -> Tensor:
        """States at the boundary [tokens, H] of the texts that were looked up."""
        kernels = serving.kernels
        encoder = self.encoder.using(kernels)
        stores = self.stores
        if len(self.missing):
            ngrams = ngrams_from(torch.from_numpy(self.missing)).to(encoder.words.device)
            made = kernels.merge.pack_rows(encoder.rows(ngrams), stores.format)
            stores = stores.plus(RowStore(made.numpy()))
        width, dtype, room = stores.format.width, encoder.dtype, kernels.room
        merged = room.take(Slot.MIDDLE, packed.tokens, width, dtype)
        x = kernels.merge.merge(self.numbers, packed, stores, _tables(encoder), merged)
        return encoder.after(x, packed, room.take(Slot.STATES, packed.tokens, width, dtype))


@dataclass(frozen=True, slots=True)
class RowsBelow:
    """Stands in for lower layers of whatever texts come, each pass looked up by itself; implements
    `smile.model.batched.Lower`.

    Attributes:
        encoder: Computes what no row is found for.
        rows: Where rows are looked up.
    """

    encoder: ServingEncoder
    rows: RowView

    @property
    def boundary(self) -> int:
        return self.encoder.form.boundary

    def states(self, packed: PackedTokens, serving: ServingBackbone) -> Tensor:
        """States at the boundary [tokens, H]."""
        return LookedUp.of(packed, self.encoder, self.rows).states(packed, serving)


def _as_given(mixed: MixedBatch, by_row: NDArray[np.int64]) -> NDArray[np.int64]:
    """[texts] in row order to the order in which the batch was given."""
    given = np.empty_like(by_row)
    given[list(mixed.order)] = by_row
    return given


def _tables(encoder: ServingEncoder) -> MergeTables:
    position, segment = encoder.position, encoder.segment[0]
    return MergeTables(position, segment, encoder.merge_norm, encoder.position_offset)
