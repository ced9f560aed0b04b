"""What stands in for one backbone's lower layers: its local encoder, and the rows at hand."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from services.processor.materialize.level import StandInLevel
from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.kernels import Kernels
from smile.model.materialized import LookedUp, NoRows, RowView
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.ngrams import ngrams_from
from smile.model.skip.serving import ServingEncoder
from smile.model.specs import PetSpec
from smile.representations.manifest import Origin
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


class StandIn:
    """A backbone's stand-in; implements `smile.representations.rows.RowEncoder`. Threads may share
    it; rows may be swapped at any time, and a batch that was looked up keeps those it found.

    Attributes:
        rows: Where they are looked up.

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
        file.check(backbone.digest)
        local = LocalEncoder.of(file, backbone)
        self.encoder = ServingEncoder.of(local, kernels, device, dtype)
        self.digest = file.digest
        form = file.facts.form
        self.origin = Origin(
            backbone.name, backbone.digest, file.digest, form.boundary, form.hidden
        )
        self.rows: RowSource = Fixed(NoRows(RowFormat(RowDtype.FLOAT16, form.hidden)))
        self._counts = (0, 0, 0)
        self._lock = threading.Lock()

    @property
    def boundary(self) -> int:
        """The first layer that is computed."""
        return self.encoder.form.boundary

    def check(self, pet: PetSpec) -> None:
        """Raises `FailedPrecondition` if the module stands in a layer that is replaced."""
        self.encoder.form.check_pet(pet)

    def look_up(self, mixed: MixedBatch) -> LookedUp:
        """The rows of a batch's different texts."""
        found = LookedUp.of(mixed.different.packed, self.encoder, self.rows.view)
        with self._lock:
            ngrams, hits, computed = self._counts
            self._counts = (
                ngrams + len(found.numbers),
                hits + int(np.count_nonzero(found.found)),
                computed + len(found.missing),
            )
        return found

    @torch.inference_mode()
    def packed(self, keys: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.uint8]:
        """Rows as tables store them: [n] to [n, row_bytes]; see `RowEncoder`."""
        ngrams = ngrams_from(torch.tensor(keys)).to(self.encoder.words.device)
        rows = self.encoder.rows(ngrams)
        packed: NDArray[np.uint8] = self.encoder.kernels.merge.pack_rows(rows, row_format).numpy()
        return packed

    def told(
        self, mixed: MixedBatch, found: LookedUp, counts: Sequence[int]
    ) -> tuple[Materialization, ...]:
        """What callers are told of chunks of so many texts each, in the order of the batch."""
        starts = np.cumsum([0, *counts[:-1]])
        ngrams, hits = (
            np.add.reduceat(each, starts).tolist()
            for each in (found.lengths_of(mixed), found.found_of(mixed))
        )
        return tuple(map(Materialization, itertools.repeat(self.digest), ngrams, hits))

    def restart_counts(self) -> None:
        """Count what is looked up from now on."""
        with self._lock:
            self._counts = (0, 0, 0)

    def level(self) -> StandInLevel:
        """How much was looked up, and what there is."""
        count, row_bytes = self.rows.count, self.rows.view.stores.format.row_bytes
        with self._lock:
            return StandInLevel(*self._counts, rows=count, table_bytes=count * row_bytes)
