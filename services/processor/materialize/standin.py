"""What stands in for one backbone's lower layers: its local encoder, and the rows at hand."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from services.processor.materialize.options import StandInPlace
from smile.errors import SmileError
from smile.logs import get_logger
from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.kernels import Kernels
from smile.model.materialized import LookedUp, NoRows, RowView
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.ngrams import ngrams_from
from smile.model.skip.serving import ServingEncoder
from smile.model.specs import PetSpec
from smile.representations.manifest import Origin
from smile.representations.snapshot import Table
from smile.resources import Materialization


@dataclass(frozen=True, slots=True)
class StandInLevel:
    """What was looked up since start, and what there is to be found.

    Attributes:
        ngrams: Asked, equal texts of a batch once.
        found: Those that had a row.
        computed: Rows computed for the others, equal ones of a batch once.
        rows: At hand now.
        table_bytes: What they take.
    """

    ngrams: int = 0
    found: int = 0
    computed: int = 0
    rows: int = 0
    table_bytes: int = 0

    def __add__(self, other: StandInLevel) -> StandInLevel:
        return StandInLevel(
            self.ngrams + other.ngrams,
            self.found + other.found,
            self.computed + other.computed,
            self.rows + other.rows,
            self.table_bytes + other.table_bytes,
        )


class StandIn:
    """A backbone's stand-in; implements `smile.representations.rows.RowEncoder`. Threads may share
    it; rows may be swapped at any time, and a batch that was looked up keeps those it found.

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
        self._format = RowFormat(RowDtype.FLOAT16, form.hidden)
        self._rows: RowView = NoRows(self._format)
        self._counts = (0, 0, 0)
        self._lock = threading.Lock()

    @property
    def boundary(self) -> int:
        """The first layer that is computed."""
        return self.encoder.form.boundary

    def check(self, pet: PetSpec) -> None:
        """Raises `FailedPrecondition` if the module stands in a layer that is replaced."""
        self.encoder.form.check_pet(pet)

    def use(self, rows: RowView) -> None:
        """Look up there from now on."""
        self._rows = rows

    def look_up(self, mixed: MixedBatch) -> LookedUp:
        """The rows of a batch's different texts."""
        found = LookedUp.of(mixed.different.packed, self.encoder, self._rows)
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
        ngrams = ngrams_from(torch.from_numpy(keys)).to(self.encoder.words.device)
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
        stores = self._rows.stores
        with self._lock:
            return StandInLevel(
                *self._counts, rows=stores.count, table_bytes=stores.count * stores.format.row_bytes
            )

    def open(self, folder: Path) -> None:
        """Look up in a table from now on; see `Table.open` for what it raises."""
        table = Table.open(folder, self.origin)
        self.use(table)
        get_logger().info(
            "table opened",
            backbone=self.origin.backbone,
            rows=table.manifest.rows,
            digest=table.digest,
        )


def stand_in(
    place: StandInPlace,
    backbone: Backbone,
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
) -> StandIn:
    """A backbone's stand-in, with the table if that can be used: without one it answers as well,
    and slower.

    Raises:
        FailedPrecondition: there is no such encoder, or it is for another backbone.
        DataCorrupted: its file is not one.
    """
    found = StandIn(artifact.read(place.encoder), backbone, kernels, device, dtype)
    if place.table is not None:
        try:
            found.open(place.table)
        except (SmileError, OSError) as error:
            why = error.message if isinstance(error, SmileError) else str(error)
            get_logger().error("a table cannot be used", folder=str(place.table), why=why)
    return found
