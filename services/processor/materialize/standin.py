"""What stands in for one backbone's lower layers: its local encoder, and the rows at hand."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from services.processor.materialize.domains import InDomains, ServedDomains
from services.processor.materialize.level import StandInLevel
from services.processor.requests import Chunk
from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.kernels import Kernels
from smile.model.materialized import LookedUp, NoRows, RowView
from smile.model.ngram_rows import RowFormat
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.rows import EncoderRows
from smile.model.specs import ModuleSpec
from smile.representations.domains import DomainTree
from smile.representations.manifest import GENERAL
from smile.resources import Materialization


class RowSource(Protocol):
    """Where rows are looked up; what it gives may be another view at any time."""

    @property
    def view(self) -> RowView: ...
    @property
    def count(self) -> int:
        """Rows of now."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same rows."""

    view: RowView

    @property
    def count(self) -> int:
        return self.view.stores.count


@dataclass(frozen=True, slots=True)
class Found:
    """What was looked up of a batch.

    Attributes:
        digest: Of the local encoder.
        tree: The domains it was looked up in.
        own: [tokens], whose rows are a domain's own, not general ones.
    """

    lower: LookedUp
    digest: str
    tree: DomainTree
    own: NDArray[np.bool_]

    def told(self, mixed: MixedBatch, chunks: Sequence[Chunk]) -> tuple[Materialization, ...]:
        """What callers are told of each of the batch's chunks."""
        starts = np.cumsum([0, *(len(chunk.texts) for chunk in chunks[:-1])])
        ngrams, hits = (
            np.add.reduceat(each, starts).tolist()
            for each in (self.lower.lengths_of(mixed), self.lower.found_of(mixed))
        )
        return tuple(
            Materialization(
                self.digest,
                asked,
                found,
                chunk.domain,
                self.tree.digest(self.tree.number(chunk.domain or GENERAL)),
            )
            for chunk, asked, found in zip(chunks, ngrams, hits, strict=True)
        )


class StandIn:
    """A backbone's stand-in; implements `smile.representations.rows.RowEncoder`. Threads may share
    it; rows may be swapped at any time, and a batch that was looked up keeps those it found.

    Attributes:
        rows: Where they are looked up.
        domains: What stands before them in domains.

    Args:
        file: The local encoder's, of this very backbone.
        backbone: Whose word and position embeddings it uses.
        kernels: Of `dtype` on `device`.

    Raises:
        FailedPrecondition: the encoder is for another backbone.
    """

    def __init__(
        self,
        file: EncoderFile,
        backbone: Backbone,
        kernels: Kernels,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._made = EncoderRows.on(file, backbone, kernels, device, dtype)
        self.encoder = self._made.encoder
        self.digest = file.digest
        self.origin = self._made.origin
        self.rows: RowSource = Fixed(NoRows(self._made.format))
        self.domains = ServedDomains(self.origin)
        self._counts = (0, 0, 0)
        self._lock = threading.Lock()

    @property
    def boundary(self) -> int:
        """The first layer that is computed."""
        return self.encoder.form.boundary

    def check(self, spec: ModuleSpec) -> None:
        """Raises `FailedPrecondition` if the module stands in a layer that is replaced, or its
        domain is not served.
        """
        self.encoder.form.check_pet(spec.pet)
        self.domains.check(spec.domain)

    def look_up(self, mixed: MixedBatch) -> Found:
        """The rows of a batch's different texts; each is marked with its domain, if any is."""
        tree, different, view = self.domains.tree, mixed.different, self.rows.view
        numbers = [tree.number(mark or GENERAL) for mark in different.marks]
        if any(numbers):
            within = tree.view(view, set(numbers))
            domains = np.repeat(np.array(numbers, np.int32), different.packed.lengths)
            lower = LookedUp.of(different.packed, self.encoder, InDomains(within, domains))
            own = lower.found & (lower.numbers >= within.general_rows)
        else:
            lower = LookedUp.of(different.packed, self.encoder, view)
            own = np.zeros(len(lower.keys), bool)
        self._count(lower)
        return Found(lower, self.digest, tree, own)

    def _count(self, found: LookedUp) -> None:
        with self._lock:
            ngrams, hits, computed = self._counts
            self._counts = (
                ngrams + len(found.numbers),
                hits + int(np.count_nonzero(found.found)),
                computed + len(found.missing),
            )

    def packed(self, keys: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.uint8]:
        """See `RowEncoder`."""
        return self._made.packed(keys, row_format)

    def restart_counts(self) -> None:
        """Count what is looked up from now on."""
        with self._lock:
            self._counts = (0, 0, 0)

    def level(self) -> StandInLevel:
        """How much was looked up, and what there is."""
        count = self.rows.count + sum(table.manifest.rows for table in self.domains.tree.tables)
        row_bytes = self.rows.view.stores.format.row_bytes
        with self._lock:
            return StandInLevel(*self._counts, rows=count, table_bytes=count * row_bytes)
