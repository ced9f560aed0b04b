"""Where rows come from: whatever computes them. No torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from smile.model.ngram_rows import RowFormat
from smile.representations.manifest import Origin


class RowEncoder(Protocol):
    """Computes rows; the same for an n-gram whenever and beside whatever it is asked."""

    @property
    def origin(self) -> Origin:
        """Whose rows they are."""
        ...

    def packed(self, keys: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.uint8]:
        """Rows as tables store them: [n] to [n, row_bytes]; n is at least 1."""
        ...
