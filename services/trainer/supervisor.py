"""Keeps worker processes alive: started, watched, started again with back-off, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.trainer.worker.memory import tame_children
from smile.logs import get_logger


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """How workers are run.

    Attributes:
        command: The worker's command line.
        workers: Processes kept alive.
        restart_s: First pause before a dead one is replaced; doubles up to `restart_s_max`.
        healthy_s: A worker that lived this long was no failed start.
        end_s: Time to give back a job before a worker is killed.
    """

    command: Sequence[str]
    workers: int
    restart_s: float = 0.5
    restart_s_max: float = 30.0
    healthy_s: float = 30.0
    end_s: float = 20.0


def worker_command() -> list[str]:
    """The command line of a worker that ends with this process."""
    safe = ["-P"] if sys.flags.safe_path else []  # as this process was started
    return [sys.executable, *safe, "-m", "services.trainer.worker", "--parent", str(os.getpid())]


@asynccontextmanager
async def supervised(settings: SupervisorSettings) -> AsyncIterator[None]:
    """Workers run while this is entered."""
    tame_children()
    keeping = [
        asyncio.create_task(_keep_alive(settings, number)) for number in range(settings.workers)
    ]
    try:
        yield
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)


async def _keep_alive(settings: SupervisorSettings, number: int) -> None:
    pause_s = settings.restart_s
    while True:
        started = time.monotonic()
        code = await _run_one(settings, number)
        lived_s = time.monotonic() - started
        if lived_s >= settings.healthy_s:
            pause_s = settings.restart_s
        get_logger().error(
            "worker died", worker=number, code=code, lived_s=lived_s, again_in_s=pause_s
        )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, settings.restart_s_max)


async def _run_one(settings: SupervisorSettings, number: int) -> int:
    process = await asyncio.create_subprocess_exec(
        *settings.command, stdin=asyncio.subprocess.DEVNULL
    )
    get_logger().info("worker started", worker=number, pid=process.pid)
    try:
        return await process.wait()
    finally:
        await _end(process, settings.end_s)


async def _end(process: asyncio.subprocess.Process, end_s: float) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(end_s):
            await process.wait()
    except TimeoutError:
        get_logger().warning("worker does not end, killing it", pid=process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
