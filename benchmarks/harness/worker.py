"""A program that computes when told to: one JSON object a line, both ways.

Compared programs are all loaded at once, each in a process of its own, and then take turns: the
ones whose turn it is not wait for a line and use no processor time.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from benchmarks.harness.json_types import Json
from smile.embedded.child import leashed
from smile.errors import FailedPrecondition

ROOT = Path(__file__).resolve().parents[2]
STOP_S_MAX = 10.0
TOLD_CHARS_MAX = 600


class Worker:
    """A running program that has said it is ready.

    Args:
        command: What to run, in the root of the repository and able to import it.
        environment: Variables besides those inherited.
        ready_s_max: How long it may take to load.
        answer_s_max: How long it may take to answer; it is killed then.
        log: Where its standard error goes.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        ready_s_max: float = 600.0,
        answer_s_max: float = 300.0,
    ) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                leashed(tuple(command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            )
        self.about: Mapping[str, Json] = {}
        self._ready_s_max = ready_s_max
        self._answer_s_max = answer_s_max

    def await_ready(self) -> None:
        """Wait until it has loaded. Raises `FailedPrecondition` with the end of its log."""
        with self._killed_after(self._ready_s_max):
            self.about = cast("Mapping[str, Json]", self._read()["ready"])

    def ask(self, operation: str) -> Mapping[str, Json]:
        """What it answers to `operation`.

        Raises:
            FailedPrecondition: it ended instead, or was killed because it took too long.
        """
        assert self._process.stdin is not None, "the process was given a pipe"
        try:
            self._process.stdin.write(json.dumps({"op": operation}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise FailedPrecondition(self._why()) from error
        with self._killed_after(self._answer_s_max):
            return self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        killing = threading.Timer(seconds, self._process.kill)
        killing.start()
        try:
            yield
        finally:
            killing.cancel()

    def _read(self) -> Mapping[str, Json]:
        assert self._process.stdout is not None, "the process was given a pipe"
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(STOP_S_MAX)
            raise FailedPrecondition(self._why())
        found: Mapping[str, Json] = json.loads(line)
        return found

    def _why(self) -> str:
        told = self._log.read_text(encoding="utf-8", errors="replace").strip()
        return f"ended with {self._process.poll()}: ...{told[-TOLD_CHARS_MAX:]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
