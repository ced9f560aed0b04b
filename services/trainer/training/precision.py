"""In what numbers a training computes. What it trains is float32 either way."""

from __future__ import annotations

import enum


class Precision(enum.StrEnum):
    """BFLOAT16: kept states and products are bfloat16; sums, losses and weights float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
