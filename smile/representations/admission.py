"""Which n-grams come into a bounded table and which go. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smile.representations.traffic import Weighed

MARGIN = 1.25  # a newcomer must be worth so much more than whom it replaces: no see-saw


@dataclass(frozen=True, slots=True)
class Exchange:
    """What to change.

    Attributes:
        admit: [n] int64, keys that come in, the most frequent first.
        evict: [m] int64, keys that go to make room, the least frequent first.
    """

    admit: NDArray[np.int64]
    evict: NDArray[np.int64]


def exchange(resident: Weighed, candidates: Weighed, room: int, margin: float = MARGIN) -> Exchange:
    """Fills `room` free places with the most frequent candidates, and gives each further one the
    place of the least frequent resident, as long as that is worth clearly less.

    `candidates` are the most frequent first, and none is resident.
    """
    assert room >= 0 and margin >= 1.0, (room, margin)
    free = min(room, len(candidates))
    order = np.argsort(resident.counts, kind="stable")
    pairs = min(len(candidates) - free, len(order))
    newcomers = candidates.counts[free : free + pairs]
    better = newcomers > resident.counts[order[:pairs]] * np.float32(margin)
    swaps = pairs if better.all() else int(better.argmin())  # both run against each other
    return Exchange(candidates.keys[: free + swaps], resident.keys[order[:swaps]])
