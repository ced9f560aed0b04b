"""A benchmark's result: one JSON object, printed as the last line and recorded where asked."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from benchmarks.harness.json_types import Figures, Json, rounded
from benchmarks.harness.machine import Machine
from benchmarks.harness.targets import judged

RESULTS = Path(__file__).resolve().parents[1] / "results"
_ABOUT = ("benchmark", "quick", "partial", "targets", "seconds", "recorded", "machine")


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a benchmark found.

    Attributes:
        figures: The promised keys, and what helps to explain them.
        seconds: How long the run took.
        recorded: When it began, ISO 8601.
        partial: Whether it was broken off: some keys, or repetitions, are not there.
    """

    name: str
    quick: bool
    figures: Figures
    seconds: float
    recorded: str
    machine: Json
    partial: bool = False

    @classmethod
    def of(cls, name: str, figures: Figures, machine: Machine, *, quick: bool) -> Result:
        """A result of this moment; `took` sets the time."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(name, quick, figures, 0.0, now, machine.as_json())

    def as_json(self) -> dict[str, Json]:
        """Figures first, then what they are of."""
        kept = cast("dict[str, Json]", rounded(dict(self.figures)))
        return {
            "benchmark": self.name,
            "quick": self.quick,
            **({"partial": True} if self.partial else {}),
            **kept,
            "targets": judged(self.name, kept),
            "seconds": round(self.seconds, 1),
            "recorded": self.recorded,
            "machine": self.machine,
        }

    def write_last_line(self) -> None:
        sys.stdout.write(json.dumps(self.as_json()) + "\n")
        sys.stdout.flush()

    def record(self, folder: Path = RESULTS) -> Path:
        """Write it to `folder`, in place of the last one of its name and length; a partial one
        beside that.
        """
        folder.mkdir(parents=True, exist_ok=True)
        whole = result_path(self.name, quick=self.quick, folder=folder)
        partial = whole.with_suffix(".partial.json")
        path = partial if self.partial else whole
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
        if not self.partial:
            partial.unlink(missing_ok=True)
        return path


def result_path(name: str, *, quick: bool, folder: Path = RESULTS) -> Path:
    return folder / (f"{name}.quick.json" if quick else f"{name}.json")


def read_result(name: str, folder: Path = RESULTS) -> dict[str, Json] | None:
    """The recorded result: the full one, else the quick one, else None."""
    for quick in (False, True):
        path = result_path(name, quick=quick, folder=folder)
        if path.exists():
            found: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
            return found
    return None


def figures_of(result: dict[str, Json]) -> dict[str, Json]:
    """A recorded result without what it is of."""
    return {key: value for key, value in result.items() if key not in _ABOUT}
