"""A row encoder without a model: every number of a row follows from its key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from smile.model.ngram_rows import RowFormat
from smile.representations.manifest import Origin

WIDTH = 6
ORIGIN = Origin("toy", "b" * 64, "e" * 64, 1, WIDTH)


@dataclass
class FakeEncoder:
    """Implements `smile.representations.rows.RowEncoder`; counts what it was asked."""

    origin: Origin = ORIGIN
    shift: float = 0.0
    fails_at: int | None = None
    asked: int = field(default=0, init=False)

    def numbers(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n] to [n, 3 WIDTH]."""
        place = np.arange(1, 3 * self.origin.width + 1)
        waves: NDArray[np.float64] = np.sin(keys[:, None] % 99_991 * place)
        return (waves + self.shift).astype(np.float32)

    def packed(self, keys: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.uint8]:
        self.asked += len(keys)
        if self.fails_at is not None and self.asked > self.fails_at:
            raise OSError(28, "No space left on device")
        return row_format.pack(self.numbers(keys))


def word_ids(texts: Sequence[str]) -> list[list[int]]:
    """Ids by words: CLS 1, SEP 2, words by their characters' sum."""
    return [[1, *(3 + sum(map(ord, word)) % 997 for word in text.split()), 2] for text in texts]
