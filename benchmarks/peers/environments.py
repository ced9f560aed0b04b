"""A virtual environment for each competitor, made when first needed and kept in a cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smile.errors import FailedPrecondition

FOLDER = Path(__file__).resolve().parent
COMPLETE = ".complete"
INSTALL_S_MAX = 900
LINES_SHOWN = 5


def cache() -> Path:
    """Where environments are kept: below `XDG_CACHE_HOME`."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "smile" / "benchmarks"


def python_of(name: str) -> Path:
    """The interpreter of the environment that `requirements-NAME.txt` describes.

    Raises:
        FailedPrecondition: it cannot be made, with the end of what pip said.
    """
    requirements = FOLDER / f"requirements-{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache() / f"{name}-{digest}"
    python = folder / "bin" / "python"
    with _locked(name):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(folder))
            _run(str(python), "-m", "pip", "install", "-q", "-r", str(requirements))
            (folder / COMPLETE).touch()
    return python


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One process at a time makes an environment; others wait."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FailedPrecondition(f"{command[2:5]} took more than {INSTALL_S_MAX} s") from error
    if done.returncode:
        told = "\n".join(done.stderr.strip().splitlines()[-LINES_SHOWN:])
        raise FailedPrecondition(f"{' '.join(command[1:5])} failed: {told}")
