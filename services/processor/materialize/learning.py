"""Rows at hand: a table's, which never changes, and beside it those that traffic asks for most.

Traffic is heard on the request path, which is one append; counting, computing rows and deciding who
comes in and who goes is done in rounds, in the background.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.processor.materialize.domains import ServedDomains
from services.processor.materialize.options import LearningOptions
from smile.errors import DataCorrupted
from smile.logs import get_logger
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.representations import manifest
from smile.representations.manifest import TableManifest
from smile.representations.overlay import LiveTable, Overlay, TableView
from smile.representations.rows import RowEncoder
from smile.representations.snapshot import Table
from smile.representations.traffic import Counts, Weighed
from smile.representations.update import Learned, Updater

HEARD_MAX = 256  # batches; what is heard while so many wait to be counted pushes out the oldest
SAMPLED = 64  # rows of a table that are computed here, to compare
DIFFERENCE_MAX = 0.05  # of the largest number; another precision makes a tenth of this


@dataclass(frozen=True, slots=True)
class Heard:
    """What a batch asked.

    Attributes:
        keys: [tokens] int64, the n-grams of its different texts.
        starts: [different texts + 1], where the n-grams of each begin.
        places: Which of the different texts each text is.
        tenants: Who asked each text.
        own: [tokens], whose rows are a domain's own: nothing to learn, what is learned are general
            rows. None: no token's.
    """

    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    places: NDArray[np.int64]
    tenants: tuple[str, ...]
    own: NDArray[np.bool_] | None = None


class LiveRows:
    """Threads may share it; only one at a time may call `round`, `open` and `accept`.

    Args:
        encoder: Computes rows.
        options: What to learn.
        domains: Those that these rows are the general ones of; None: none.
    """

    def __init__(
        self,
        encoder: RowEncoder,
        options: LearningOptions,
        domains: ServedDomains | None = None,
    ) -> None:
        self._encoder = encoder
        self.domains = domains or ServedDomains(encoder.origin)
        self._options = options
        self._counts = Counts(options.rules, learning=options.on)
        self._heard: deque[Heard] = deque(maxlen=HEARD_MAX)
        self._live = self._over(None, RowFormat(RowDtype.FLOAT16, encoder.origin.width))

    @property
    def encoder(self) -> RowEncoder:
        """What computes rows."""
        return self._encoder

    @property
    def view(self) -> TableView:
        """The rows of now."""
        return self._live.view

    @property
    def table(self) -> Table | None:
        """What was opened last."""
        return self._live.table

    @property
    def count(self) -> int:
        """Rows of now."""
        live = self._live
        return len(live.overlay) + (0 if live.table is None else live.table.manifest.rows)

    @property
    def format(self) -> RowFormat:
        """How rows are stored."""
        return self._live.overlay.format

    @property
    def learning(self) -> bool:
        return self._counts.learning

    def switch(self, *, learning: bool) -> None:
        """Learn from now on, or no longer."""
        self._counts.switch(learning=learning)
        self._heard.clear()

    def forget(self) -> None:
        """What was heard so far was nobody's question."""
        self._heard.clear()
        self._counts.forget()

    def expect(self, stated: TableManifest) -> None:
        """Rows are rounded as this table's from now on, whether or not it can be opened: so answers
        are the same before and after. What was learned in another format is gone.

        Raises:
            FailedPrecondition: its rows are of another origin.
        """
        stated.origin.check(self._encoder.origin)
        if stated.dtype in tuple(RowDtype):
            row_format = RowFormat(RowDtype(stated.dtype), self._encoder.origin.width)
            if row_format != self.format:
                self._live = self._over(None, row_format)

    def open(self, folder: Path) -> Table:
        """Look up in this snapshot from now on; what was learned stays. All of it is read, and
        checked, first: at about a gigabyte a second.

        Raises:
            FailedPrecondition: there is none, or its rows are of another origin.
            DataCorrupted: a file is not what was written, or rows are not those of their n-grams.
        """
        table = Table.open(folder, self._encoder.origin, verify=True)
        self._check_rows(table)
        overlay = self._live.overlay
        if table.format == overlay.format:
            overlay.remove(table.keys)
            self._live = LiveTable(table, overlay)
        else:
            self._live = self._over(table, table.format)
        get_logger().info("table opened", rows=table.manifest.rows, digest=table.digest)
        if why := table.manifest.origin.same_bits(self._encoder.origin):
            get_logger().warning(
                "a table's rows may differ in their last bits from those computed here",
                table=str(folder),
                why=why,
            )
        return table

    def newer(self, folder: Path) -> bool:
        """Whether another snapshot lies there now than was opened. Raises as `manifest.read`."""
        return self.table is None or manifest.read(folder).digest != self.table.digest

    def hear(self, heard: Heard) -> None:
        """A batch asked for n-grams."""
        if self._counts.learning:
            self._heard.append(heard)

    def round(self) -> Learned:
        """Counts what was heard, and changes rows by it."""
        while self._heard:
            self._count(self._heard.popleft())
        return self._updater().round()

    def accept(self, told: Weighed, rows: NDArray[np.uint8]) -> int:
        """Rows that another processor computed, the most frequent first; how many came in."""
        return self._updater().accept(told, rows)

    def learned(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8]]:
        """Keys, counts and rows of all that was learned and is at hand."""
        live = self._live.overlay.view
        keys = self._live.overlay.keys()
        places = live.index.find(keys)
        keys, places = keys[places >= 0], places[places >= 0]
        return keys, self._counts.of(keys), live.store.rows[places]

    def _updater(self) -> Updater:
        return Updater(self._live, self._counts, self._encoder)

    def _over(self, table: Table | None, row_format: RowFormat) -> LiveTable:
        return LiveTable(table, Overlay(row_format, self._options.bytes_max))

    def _count(self, heard: Heard) -> None:
        """Every different text of a tenant once. What the table has is not for learning."""
        if (table := self.table) is not None:
            unknown = table.find(heard.keys) < 0
        else:
            unknown = np.ones(len(heard.keys), bool)
        if heard.own is not None:
            unknown &= ~heard.own
        texts_of: dict[str, set[int]] = {}
        for tenant, place in zip(heard.tenants, heard.places.tolist(), strict=True):
            texts_of.setdefault(tenant, set()).add(place)
        spans = [
            slice(start, stop)
            for start, stop in zip(heard.starts[:-1], heard.starts[1:], strict=True)
        ]
        for tenant, texts in texts_of.items():
            asked = [heard.keys[spans[text]][unknown[spans[text]]] for text in texts]
            self._counts.observe(np.concatenate(asked), tenant)

    def _check_rows(self, table: Table) -> None:
        """A few rows against those computed here. Raises `DataCorrupted`."""
        count = len(table.keys)
        chosen = np.unique(np.linspace(0, count - 1, min(SAMPLED, count)).astype(np.int64))
        own = table.format.unpack(self._encoder.packed(table.keys[chosen], table.format))
        stored = table.format.unpack(table.store.rows[chosen])
        most = float(np.abs(own).max(initial=0.0))
        with np.errstate(invalid="ignore"):
            close = np.abs(own - stored) <= DIFFERENCE_MAX * max(most, 1e-6)
        if not close.all():
            wrong = int((~close.all(axis=1)).sum())
            raise DataCorrupted(
                f"the table at {table.folder}: {wrong} of {len(chosen)} rows are not those of "
                f"their n-grams"
            )
