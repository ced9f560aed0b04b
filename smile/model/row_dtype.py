"""How rows of n-grams are stored, apart from numpy for those who only name it."""

from __future__ import annotations

import enum


class RowDtype(enum.StrEnum):
    """How a row's numbers are stored."""

    FLOAT16 = "float16"
    INT8 = "int8"
