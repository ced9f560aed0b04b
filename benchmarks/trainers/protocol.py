"""What a trainer is given and what it tells: one JSON file in, one JSON line out. Standard library
only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Lesson:
    """What every trainer learns.

    Attributes:
        model: The backbone's directory.
        labels: The classes' names; rows have their indices.
        tokens_max: Longer texts are cut.
        batch: Texts of a step.
    """

    model: str
    labels: Sequence[str]
    texts: Sequence[str]
    classes: Sequence[int]
    held_out_texts: Sequence[str]
    held_out_classes: Sequence[int]
    tokens_max: int
    batch: int
    epochs: int
    learning_rate: float
    seed: int

    @classmethod
    def read(cls, path: str) -> Lesson:
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


@dataclass
class Clock:
    """Time and memory from when everything was imported and loaded, and what was reached when.

    Attributes:
        loaded_bytes: Resident memory at the start, weights included.
        epochs: Seconds since the start and held-out accuracy at the end of each epoch.
    """

    loaded_bytes: int
    started: float = field(default_factory=time.perf_counter)
    epochs: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def start(cls) -> Clock:
        with contextlib.suppress(OSError):  # then loading's own peak counts, too
            Path("/proc/self/clear_refs").write_text("5")
        return cls(_status_bytes("VmRSS"))

    def epoch(self, accuracy: float) -> None:
        """An epoch has ended, its evaluation included."""
        self.epochs.append((time.perf_counter() - self.started, accuracy))

    def figures(self) -> Mapping[str, object]:
        peak = _status_bytes("VmHWM")
        return {
            "epochs": self.epochs,
            "loaded_bytes": self.loaded_bytes,
            "peak_bytes": peak - self.loaded_bytes,
            "peak_bytes_absolute": peak,
        }


def tell(figures: Mapping[str, object], lines: int) -> None:
    """The answer, on the descriptor that `only_answers` gave."""
    with os.fdopen(lines, "w", encoding="utf-8") as out:
        out.write(json.dumps(dict(figures)) + "\n")


def only_answers() -> int:
    """Where the answer goes; whatever a library prints goes to standard error from now on."""
    lines = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return lines


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
