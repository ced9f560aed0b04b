"""The command line of every benchmark: measure, print one JSON line, record."""

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

from benchmarks.harness.json_types import Figures
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
    """

    quick: bool = False
    fleet: Path | None = None
    console: Console = field(default_factory=_console)

    def say(self, sentence: str) -> None:
        """One line on standard error."""
        self.console.print(Text(sentence))

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
    try:
        result = measured(name, measure, run)
    except SmileError as error:
        run.say(f"{name} failed: {error.message} ({error.reason})")
        return EXIT_FAILED
    except KeyboardInterrupt:
        run.say("interrupted; everything has been stopped")
        return EXIT_INTERRUPTED
    if given.record:
        run.say(f"recorded in {result.record()}")
    result.write_last_line()
    return 0


def measured(name: str, measure: Measure, run: Run) -> Result:
    """The result of one run, with the machine as it was before."""
    machine = Machine.describe()
    if not machine.idle:
        run.say(
            f"warning: this machine is not idle (load {machine.load}, expected at most "
            f"{LOAD_IDLE_MAX}): figures will be off"
        )
    empty = Result.of(name, {}, machine, quick=run.quick)
    started = time.monotonic()
    figures = measure(run)
    return replace(empty, figures=figures, seconds=time.monotonic() - started)


def script(name: str, measure: Measure) -> None:
    """For the end of a benchmark's module: this process is the benchmark's, its log included."""
    configure("benchmark", LogLevel.WARNING, LogFormat.CONSOLE)
    sys.exit(main(name, measure))
