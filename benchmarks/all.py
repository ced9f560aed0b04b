"""Every benchmark in order:

    python -m benchmarks.all [--quick] [--record] [--only NAME ...] [--from NAME] [--fleet FOLDER]

Each runs in a session of its own and within a time: one that fails, or is ended, leaves the others
alone and nothing behind. The large fleet is created once, by `density`, and used again; with
`--fleet` it is kept for the next run, too. A table against the targets comes last.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness.command import EXIT_FAILED, EXIT_INTERRUPTED
from benchmarks.harness.json_types import Json
from benchmarks.harness.targets import TARGETS, judged

SLACK = 3.0  # a benchmark may take so many times what it usually takes
GRACE_S = 60.0  # to stop its platform in


@dataclass(frozen=True, slots=True)
class Entry:
    """A benchmark, and about how many minutes it takes on two cores, in full and quick."""

    name: str
    minutes: float
    minutes_quick: float

    def minutes_of(self, *, quick: bool) -> float:
        return self.minutes_quick if quick else self.minutes


ENTRIES = (
    Entry("eviction", 1.0, 0.3),
    Entry("forming", 1.0, 0.5),
    Entry("training", 26.0, 3.0),
    Entry("training_states", 7.0, 2.5),
    Entry("index", 4.0, 1.5),
    Entry("storage", 2.0, 1.0),
    Entry("peers", 5.5, 2.0),
    Entry("materialized", 8.0, 3.0),
    Entry("skip_sweep", 12.0, 2.0),
    Entry("skip_speed", 4.0, 1.5),
    Entry("domains", 40.0, 4.0),
    Entry("rpc", 2.0, 1.0),
    Entry("fairness", 4.5, 2.0),
    Entry("density", 6.0, 1.5),
    Entry("smile_demo", 5.5, 1.5),
    Entry("pipeline", 2.5, 1.5),
    Entry("cliff", 6.0, 3.0),
)
NAMES = tuple(entry.name for entry in ENTRIES)


def main() -> int:
    """Exit code 0 if every benchmark ran, whatever it found."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all")
    parser.add_argument("--quick", action="store_true", help="each in under five minutes")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these alone")
    parser.add_argument("--from", dest="first", choices=NAMES, help="this and those after it")
    parser.add_argument("--fleet", type=Path, help="folder of vPLMs to make or to use again")
    given = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    entries = wanted(given.only, given.first)
    minutes = sum(entry.minutes_of(quick=given.quick) for entry in entries)
    console.print(f"{len(entries)} benchmarks, about {minutes:.0f} minutes")
    flags = tuple(f"--{flag}" for flag in ("quick", "record") if getattr(given, flag))
    results: dict[str, Mapping[str, Json] | None] = {}
    with ExitStack() as stack:
        made = stack.enter_context(tempfile.TemporaryDirectory(prefix="smile-bench-all-"))
        fleet = given.fleet or Path(made) / "fleet"
        fleet.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            minutes = entry.minutes_of(quick=given.quick)
            console.rule(f"{entry.name}, about {minutes:g} min")
            command = (sys.executable, "-m", f"benchmarks.{entry.name}", *flags)
            results[entry.name] = run((*command, "--fleet", str(fleet)), Path(made), minutes)
    show(Console(highlight=False), results)
    return EXIT_FAILED if None in results.values() else 0


def wanted(only: Sequence[str] | None, first: str | None) -> list[Entry]:
    """The benchmarks to run, in order."""
    start = NAMES.index(first) if first else 0
    return [
        entry
        for entry in ENTRIES[start:]
        if (entry.name in only if only else importlib.util.find_spec(f"benchmarks.{entry.name}"))
    ]


def run(command: Sequence[str], scratch: Path, minutes: float) -> Mapping[str, Json] | None:
    """A benchmark's last line; None if it failed or took far longer than `minutes`.

    What it writes to temporary folders lies below `scratch`. Whatever way this ends, even by an
    interrupt, the benchmark's processes have ended.
    """
    seconds_max = SLACK * minutes * 60.0
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    try:
        out, _ = process.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"it took more than {seconds_max:.0f} s and is ended\n")
        out = ""
    finally:
        end(process)
    took_s = time.monotonic() - started
    sys.stderr.write(f"{took_s:.0f} s, exit code {process.returncode}\n")
    lines = out.splitlines()
    if process.returncode or not lines:
        return None
    found: Mapping[str, Json] = json.loads(lines[-1])
    return found


def end(process: subprocess.Popen[str], grace_s: float = GRACE_S) -> None:
    """SIGTERM, upon which a benchmark stops its platform; then SIGKILL to all of its session.

    Platforms are tied to their benchmark and end with it even if that is killed.
    """
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; everything has been stopped\n")
        sys.exit(EXIT_INTERRUPTED)
