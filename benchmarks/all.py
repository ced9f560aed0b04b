"""Every benchmark in order: `python -m benchmarks.all [--quick] [--record] [--only NAME ...]`.

Each runs in a process of its own, so that one that fails leaves the others alone. The large fleet
is created once, by `density`, and used again. A table against the targets comes last.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness.json_types import Json
from benchmarks.harness.targets import TARGETS, judged

EXIT_FAILED = 1
FULL_S_MAX = 1_800.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A benchmark, and about how many minutes it takes on two cores, in full and quick."""

    name: str
    minutes: float
    minutes_quick: float


ENTRIES = (
    Entry("eviction", 1.0, 0.3),
    Entry("forming", 1.0, 0.5),
    Entry("peers", 7.0, 2.0),
    Entry("rpc", 2.5, 1.0),
    Entry("fairness", 4.5, 2.0),
    Entry("density", 9.0, 2.0),
    Entry("smile_demo", 4.5, 1.0),
    Entry("pipeline", 3.0, 1.0),
    Entry("cliff", 5.0, 2.5),
)


def main() -> int:
    """Exit code 0 if every benchmark ran, whatever it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all")
    parser.add_argument("--quick", action="store_true", help="each in under five minutes")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results")
    parser.add_argument("--only", nargs="+", choices=[entry.name for entry in ENTRIES])
    given = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    entries = [entry for entry in ENTRIES if _wanted(entry, given.only)]
    minutes = sum(entry.minutes_quick if given.quick else entry.minutes for entry in entries)
    console.print(f"{len(entries)} benchmarks, about {minutes:.0f} minutes")
    flags = [flag for flag in ("quick", "record") if getattr(given, flag)]
    results: dict[str, Mapping[str, Json] | None] = {}
    with tempfile.TemporaryDirectory(prefix="smile-bench-fleet-") as fleet:
        for entry in entries:
            minutes = entry.minutes_quick if given.quick else entry.minutes
            console.rule(f"{entry.name}, about {minutes:g} min")
            results[entry.name] = run(entry.name, [f"--{flag}" for flag in flags], Path(fleet))
    show(Console(highlight=False), results)
    return EXIT_FAILED if None in results.values() else 0


def run(name: str, flags: Sequence[str], fleet: Path) -> Mapping[str, Json] | None:
    """A benchmark's last line; None if it failed."""
    started = time.monotonic()
    command = (sys.executable, "-m", f"benchmarks.{name}", *flags, "--fleet", str(fleet))
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=FULL_S_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"{name} took more than {FULL_S_MAX:.0f} s and was ended\n")
        return None
    lines = done.stdout.splitlines()
    sys.stderr.write(f"{name}: {time.monotonic() - started:.0f} s, exit code {done.returncode}\n")
    if done.returncode or not lines:
        return None
    found: Mapping[str, Json] = json.loads(lines[-1])
    return found


def show(console: Console, results: Mapping[str, Mapping[str, Json] | None]) -> None:
    """The figures against what was promised."""
    table = Table("benchmark", "key", "target", "measured", "met")
    for name, result in results.items():
        if result is None:
            table.add_row(name, "", "", "failed", "no")
            continue
        rows = judged(name, result)
        if not rows:
            table.add_row(name, "", "", "see its result", "")
        for target in TARGETS.get(name, ()):
            measured = result.get(target.key)
            shown = f"{measured:.4g}" if isinstance(measured, int | float) else str(measured)
            met = {True: "yes", False: "NO", None: "not measured"}[target.met(measured)]
            bound = f"{target.bound} {target.value:g}"
            table.add_row(name, target.key, bound, shown, met)
    console.print(table)


def _wanted(entry: Entry, only: Sequence[str] | None) -> bool:
    if only:
        return entry.name in only
    return importlib.util.find_spec(f"benchmarks.{entry.name}") is not None


if __name__ == "__main__":
    sys.exit(main())
