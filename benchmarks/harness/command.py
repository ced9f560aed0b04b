"""The command line of every benchmark: measure, print one JSON line, record.

A run that is broken off, or fails, does the same with what it has kept so far, marked as partial:
nothing reads it as a result.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.machine import LOAD_IDLE_MAX, Machine
from benchmarks.harness.result import Result
from smile.errors import DeadlineExceeded, SmileError
from smile.logs import LogFormat, LogLevel, configure

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def _console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Run:
    """How a benchmark is run, and where it tells how it gets on.

    Attributes:
        quick: Fewer and shorter repetitions of the same thing; the same keys.
        fleet: Folder of a platform's data to make or to use again; None for one of its own.
        kept: What was measured so far, of benchmarks that say so.
    """

    quick: bool = False
    fleet: Path | None = None
    console: Console = field(default_factory=_console)
    kept: dict[str, Json] = field(default_factory=dict)

    def say(self, sentence: str) -> None:
        """One line on standard error."""
        self.console.print(Text(sentence))

    def keep(self, figures: Figures) -> None:
        """Has figures told even if the run goes no further."""
        self.kept.update(figures)

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A progress bar; call what it gives after each step."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)

    @asynccontextmanager
    async def phase(
        self, what: str, total: int, seconds_max: float
    ) -> AsyncIterator[Callable[[], None]]:
        """As `steps`, within a time.

        Raises:
            DeadlineExceeded: it took longer; the message names the phase and its limit.
        """
        with self.steps(what, total) as done:
            try:
                async with asyncio.timeout(seconds_max):
                    yield done
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"'{what}' took more than {seconds_max:.0f} s and was ended"
                ) from error

    def choose(self, full: int, quick: int) -> int:
        return quick if self.quick else full


Measure = Callable[[Run], Figures]


def main(name: str, measure: Measure, arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark as the command line says; gives the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="under five minutes, the same keys")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results")
    parser.add_argument("--fleet", type=Path, help="folder of vPLMs to make or to use again")
    given = parser.parse_args(arguments)
    run = Run(quick=given.quick, fleet=given.fleet)
    started, before = time.monotonic(), _before(name, run)
    try:
        figures, code = measure(run), 0
    except SmileError as error:
        run.say(f"{name} failed: {error.message} ({error.reason})")
        figures, code = run.kept, EXIT_FAILED
    except KeyboardInterrupt:
        run.say("interrupted; everything has been stopped")
        figures, code = run.kept, EXIT_INTERRUPTED
    if figures or not code:
        seconds = time.monotonic() - started
        result = replace(before, figures=figures, seconds=seconds, partial=code != 0)
        if given.record:
            what = "what it had measured so far is" if result.partial else "recorded"
            run.say(f"{what} in {result.record()}")
        result.write_last_line()
    return code


def _before(name: str, run: Run) -> Result:
    """A result without figures, with the machine as it is before the run."""
    machine = Machine.describe()
    if not machine.idle:
        run.say(
            f"warning: this machine is not idle (load {machine.load}, expected at most "
            f"{LOAD_IDLE_MAX}): figures will be off"
        )
    return Result.of(name, {}, machine, quick=run.quick)


def script(name: str, measure: Measure) -> None:
    """For the end of a benchmark's module: this process is the benchmark's, its log included."""
    configure("benchmark", LogLevel.WARNING, LogFormat.CONSOLE)
    sys.exit(main(name, measure))
