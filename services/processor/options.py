"""What the engine is built with."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from smile.model.sources import BackboneSource


class Device(enum.StrEnum):
    """Where batches are computed. `cuda` follows the same code path and is unmeasured."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which backbones to serve, where, and with how many CPU threads (0: torch chooses)."""

    sources: tuple[BackboneSource, ...]
    device: Device = Device.CPU
    threads: int = 0
