"""What the engine is built with."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.processor.materialize.options import LearningOptions, StandInPlace
from smile.model.sources import BackboneSource


class Device(enum.StrEnum):
    """Where batches are computed. `cuda` follows the same code path and is unmeasured."""

    CPU = "cpu"
    CUDA = "cuda"


class Precision(enum.StrEnum):
    """What weights and states are kept in. Sums, softmax, norms and heads are float32 in both."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class KernelSource(enum.StrEnum):
    """Which kernels compute: native ones where a compiler is at hand, or torch's alone."""

    AUTO = "auto"
    NATIVE = "native"
    EAGER = "eager"


class Eviction(enum.StrEnum):
    """Which modules leave memory first; `benchmarks.eviction` compares."""

    S3_FIFO = "s3_fifo"
    LRU = "lru"


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """Memory for modules.

    Attributes:
        host_bytes_max: In the host's memory.
        device_bytes_max: On the device; of the host's, where they are the same.
        pinned_share: Part of either that pinned modules may take.
        eviction: Which policy.
        disk_bytes_max: Of modules that memory has no room for, on local disk.
        disk_folder: Where; None: where the system keeps temporary files.
    """

    host_bytes_max: int
    device_bytes_max: int
    pinned_share: float
    eviction: Eviction
    disk_bytes_max: int = 0
    disk_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which backbones to serve, where and how.

    Attributes:
        sources: The backbones.
        device: Where.
        threads: CPU threads of a stream; 0 lets torch choose.
        precision: Of weights and states.
        kernels: Which kernels.
        stand_ins: What stands in for the lower layers of which backbones.
        learning: What these learn from traffic.
    """

    sources: tuple[BackboneSource, ...]
    device: Device = Device.CPU
    threads: int = 0
    precision: Precision = Precision.FLOAT32
    kernels: KernelSource = KernelSource.AUTO
    stand_ins: Mapping[str, StandInPlace] = field(default_factory=dict)
    learning: LearningOptions = field(default_factory=LearningOptions)
