"""The activations that kernels know."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Activation(enum.StrEnum):
    """GELU is the exact one, by the error function."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"
    SILU = "silu"
    TANH = "tanh"


NUMBERS: Mapping[Activation | None, int] = {  # as activations.h has them
    None: -1,
    Activation.GELU: 0,
    Activation.GELU_TANH: 1,
    Activation.RELU: 2,
    Activation.SILU: 3,
    Activation.TANH: 4,
}
