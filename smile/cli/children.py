"""Commands whose work runs in a process of its own, which says how far it is on standard output.

The command line itself needs no torch; such a process does. It writes one JSON object a line:
progress while it runs, and `result` or `error` at its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smile import errors
from smile.cli.command import Session
from smile.cli.output import Json
from smile.errors import FailedPrecondition, Internal, SmileError

LOG_CHARS_MAX = 500  # of what the process wrote to standard error last
EXIT_REFUSED = 1


def result_of(
    module: str, arguments: Sequence[str], on_said: Callable[[Mapping[str, Json]], None]
) -> Mapping[str, Json]:
    """Runs `python -m module` and returns its result; it ends if this is interrupted.

    Raises:
        SmileError: what the process was refused with.
        FailedPrecondition: what it needs is not installed.
        Internal: it ended without a word; the message has the end of its log.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            result = _listened(process, on_said)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        told = log.read()
    if result is not None:
        return result
    if "ModuleNotFoundError" in told:
        raise FailedPrecondition(
            "this needs the model's libraries; install smile-platform[embedded]",
            reason="EMBEDDED_NOT_INSTALLED",
        )
    raise Internal(f"{module} ended with {code}: {told[-LOG_CHARS_MAX:].strip()}")


def _listened(
    process: subprocess.Popen[str], on_said: Callable[[Mapping[str, Json]], None]
) -> Mapping[str, Json] | None:
    """What the process says at its end; None if it says nothing."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            said: dict[str, Json] = json.loads(line)
            if (result := said.get("result")) is not None:
                assert isinstance(result, dict)
                return result
            if (error := said.get("error")) is not None:
                assert isinstance(error, dict)
                raise _error(error)
            on_said(said)
    return None


def _error(told: Mapping[str, Json]) -> SmileError:
    """An error of the process as this one's."""
    kind = getattr(errors, str(told.get("class")), None)
    metadata = told.get("metadata")
    made = kind if isinstance(kind, type) and issubclass(kind, SmileError) else SmileError
    facts = (
        {key: str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    )
    return made(str(told["message"]), reason=str(told["reason"]), metadata=facts)


def given(**options: object) -> list[str]:
    """Options that were given, as such a process takes them."""
    return [
        f"--{name.replace('_', '-')}={value}"
        for name, value in options.items()
        if value is not None
    ]


@contextmanager
def bars(
    session: Session, phases: Mapping[str, str]
) -> Iterator[Callable[[Mapping[str, Json]], None]]:
    """A bar for each phase that is heard of, with its text, on a terminal; nothing elsewhere.

    For work that keeps its place: who interrupts it is told so.
    """
    try:
        with _bars(session, phases) as show:
            yield show
    except KeyboardInterrupt:
        session.note("interrupted: the same command goes on from where its place was kept last")
        raise


@contextmanager
def _bars(
    session: Session, phases: Mapping[str, str]
) -> Iterator[Callable[[Mapping[str, Json]], None]]:
    if session.json or not session.err.is_terminal:
        yield lambda said: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=session.err) as progress:
        tasks = {
            phase: progress.add_task(text, total=None, told="", visible=False)
            for phase, text in phases.items()
        }

        def show(said: Mapping[str, Json]) -> None:
            event = said.get("event", said)
            if not isinstance(event, dict):
                return
            phase = str(event.get("phase", event.get("step")))
            if phase not in tasks:
                return
            done, total = (float(str(event[name])) for name in ("done", "total"))
            told = (
                f"epoch {event['epoch']}, error {event['loss']:.4f}" if event.get("epoch") else ""
            )
            progress.update(
                tasks[phase], completed=done, total=total or None, told=told, visible=True
            )

        yield show
