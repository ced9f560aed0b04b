"""Worker processes are kept alive, and are gone when their supervisor is."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.trainer.supervisor import SupervisorSettings, supervised

pytestmark = pytest.mark.asyncio
WRITE_PID = "import os, pathlib; pathlib.Path(r'{folder}', str(os.getpid())).touch()"
FOREVER = "import time; time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def settings(folder: Path, *rest: str, workers: int = 1, end_s: float = 5.0) -> SupervisorSettings:
    code = "; ".join((*rest[:-1], WRITE_PID.format(folder=folder), rest[-1]))
    command = [sys.executable, "-S", "-c", code]
    return SupervisorSettings(command, workers, restart_s=0.1, restart_s_max=0.4, end_s=end_s)


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_workers_run_while_supervised(tmp_path: Path) -> None:
    async with supervised(settings(tmp_path, FOREVER, workers=2)):
        await until(lambda: len(pids(tmp_path)) == 2)
        assert all(map(alive, pids(tmp_path)))
    assert not any(map(alive, pids(tmp_path)))


async def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    async with supervised(settings(tmp_path, FOREVER)):
        await until(lambda: len(pids(tmp_path)) == 1)
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        await until(lambda: len(pids(tmp_path)) == 2)


async def test_a_worker_that_cannot_start_is_tried_ever_more_rarely(tmp_path: Path) -> None:
    started = time.monotonic()
    async with supervised(settings(tmp_path, "raise SystemExit(1)")):
        await until(lambda: len(pids(tmp_path)) == 4)
    assert time.monotonic() - started >= 0.1 + 0.2 + 0.4


async def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    async with supervised(settings(tmp_path, STUBBORN, FOREVER, end_s=0.3)):
        await until(lambda: len(pids(tmp_path)) == 1)
    assert not alive(pids(tmp_path)[0])


async def test_no_workers_is_a_choice(tmp_path: Path) -> None:
    async with supervised(settings(tmp_path, FOREVER, workers=0)):
        await asyncio.sleep(0.2)
    assert pids(tmp_path) == []
