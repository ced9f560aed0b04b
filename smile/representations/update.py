"""One round of learning from traffic: who comes in, who goes, with rows computed here.

Runs in the background, never on a request's path. What a round returns may be published to other
processors; what they publish is taken in by `accept`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smile.representations.admission import exchange
from smile.representations.overlay import LiveTable
from smile.representations.rows import RowEncoder
from smile.representations.traffic import Counts, Weighed

ROUND_ROWS_MAX = 4_096  # computed in one round: some tens of milliseconds of one core


@dataclass(frozen=True, slots=True)
class Learned:
    """What a round changed.

    Attributes:
        keys: [n] int64, admitted; enough tenants asked for each often enough for it to be told.
        counts: [n] float32, their decayed counts.
        rows: [n, row_bytes] uint8, packed.
        evicted: How many rows went.
    """

    keys: NDArray[np.int64]
    counts: NDArray[np.float32]
    rows: NDArray[np.uint8]
    evicted: int


class Updater:
    """Keeps a live table's rows those that traffic asks for most.

    Args:
        encoder: Computes rows of the table's format and origin.
    """

    def __init__(self, live: LiveTable, counts: Counts, encoder: RowEncoder) -> None:
        self._live = live
        self._counts = counts
        self._encoder = encoder

    def round(self, rows_max: int = ROUND_ROWS_MAX) -> Learned:
        """Admits and evicts at most so many."""
        overlay = self._live.overlay
        wanted = self._absent(self._counts.frequent(), rows_max)
        plan = exchange(self._resident(), wanted, overlay.room)
        if len(plan.admit) == 0:
            return Learned(
                plan.admit, wanted.counts[:0], np.empty((0, overlay.format.row_bytes), np.uint8), 0
            )
        rows = self._encoder.packed(plan.admit, overlay.format)
        evicted = self._make_room(plan.evict)
        overlay.insert(plan.admit, rows)
        return Learned(plan.admit, wanted.counts[: len(plan.admit)], rows, evicted)

    def accept(self, told: Weighed, rows: NDArray[np.uint8]) -> int:
        """Takes in rows that another processor computed, by the same rules as one's own; returns
        how many. `told` is the most frequent first."""
        overlay = self._live.overlay
        own = self._counts.of(told.keys)
        worth = np.maximum(told.counts, own)
        order = np.argsort(-worth, kind="stable")
        wanted = self._absent(Weighed(told.keys[order], worth[order]), len(order))
        plan = exchange(self._resident(), wanted, overlay.room)
        self._make_room(plan.evict)
        mine = order[np.isin(told.keys[order], plan.admit)]
        return overlay.insert(told.keys[mine], rows[mine])

    def _resident(self) -> Weighed:
        keys = self._live.overlay.keys()
        return Weighed(keys, self._counts.of(keys))

    def _absent(self, wanted: Weighed, limit: int) -> Weighed:
        absent = np.flatnonzero(self._live.view.find(wanted.keys) < 0)[:limit]
        return Weighed(wanted.keys[absent], wanted.counts[absent])

    def _make_room(self, keys: NDArray[np.int64]) -> int:
        """Their places are free once readers of the view of before end; rows for which there is
        none yet come in at a later round."""
        gone = self._live.overlay.remove(keys)
        self._live.refresh()
        return gone
