"""How much was looked up in place of lower layers."""

from __future__ import annotations

from dataclasses import dataclass


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
