"""One supervised process: start it tied to this one, watch it, end it with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smile import limits
from smile.embedded import leash
from smile.rpc.probe import Health

LOG_BYTES_MAX = 16 * limits.MIB
LOG_LINES_SHOWN = 20
GROUP_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run and how to ask it whether it is ready."""

    name: str
    address: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    log: Path
    probe: Callable[[], Awaitable[Health]]


class Child:
    """A running process that leads a process group of its own. Make it with `start`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, spec: ChildSpec) -> Child:
        """Run `spec`, its output appended to its log. Raises `OSError`."""
        with spec.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *leashed(spec.command),
                env=dict(spec.environment),
                cwd=spec.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # not a session: what is nice gives way to all of the platform
            )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> str:
        """Wait for its end, end what it left behind, and tell how it ended."""
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        return exit_text(code)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and after the grace SIGKILL to its whole group."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
        self._signal_group(signal.SIGKILL)
        async with asyncio.timeout(GROUP_GRACE_S):
            await self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def leashed(command: tuple[str, ...]) -> tuple[str, ...]:
    """`command` in a form that dies with the process that starts it."""
    return (sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command)


def exit_text(code: int) -> str:
    """`exit code 3`, or `signal SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def last_lines(log: Path, *, lines_max: int = LOG_LINES_SHOWN) -> str:
    """The end of a log, read from its last 64 KiB."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * limits.KIB))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines_max:])


def bound_log(log: Path, *, bytes_max: int = LOG_BYTES_MAX) -> None:
    """Move a log that has grown beyond the limit to `.1` and go on with an empty one.

    Copied and cut rather than renamed: its writer appends to the open file and needs no signal.
    """
    try:
        if log.stat().st_size > bytes_max:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
    except FileNotFoundError:
        return
