"""Finding and ending what belongs to a platform, also after its supervisor is gone.

Every process of a platform carries the data directory in its environment, children of children
included, so none can be missed and a process id used again by a stranger is never touched.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

MARK = "SMILE_EMBEDDED_DATA"
KILL_S_MAX = 5.0
POLL_S = 0.05


def processes_of(root: Path) -> list[psutil.Process]:
    """The processes of the platform on `root`, its supervisor included, this process never."""
    return [process for process in psutil.process_iter() if _belongs(process, str(root))]


def rss_bytes(pid: int, *, below: bool = True) -> int:
    """Resident memory of a process, with all `below` it, in bytes; 0 when it is gone."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in (first, *(first.children(recursive=True) if below else ())):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def end(processes: Iterable[psutil.Process], *, grace_s: float) -> int:
    """SIGTERM, and SIGKILL to those alive after the grace; gives how many there were."""
    found = list(processes)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    alive = wait_gone(found, timeout_s=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait_gone(alive, timeout_s=KILL_S_MAX)
    return len(found)


def wait_gone(processes: Iterable[psutil.Process], *, timeout_s: float) -> list[psutil.Process]:
    """Wait for their ends; gives those that still run. Zombies, whoever should reap them, ended."""
    until = time.monotonic() + timeout_s
    alive = [process for process in processes if _runs(process)]
    while alive and time.monotonic() < until:
        time.sleep(POLL_S)
        alive = [process for process in alive if _runs(process)]
    return alive


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return _runs(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _belongs(process: psutil.Process, root: str) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        return bool(process.environ().get(MARK) == root and process.is_running())
    except (psutil.Error, OSError):
        return False
