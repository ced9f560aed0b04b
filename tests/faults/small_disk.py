"""A real file system of a few megabytes, that can be full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

DISK_KB = 32_768  # more than what a probe of the store takes
SIZES = (1 << 20, 1 << 10, 1)


def may_mount() -> bool:
    """Whether this process may mount a small file system."""
    with TemporaryDirectory() as folder:
        return mounted(Path(folder), f"size={DISK_KB}k") and unmounted(Path(folder))


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of `DISK_KB` at `folder` while it lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    assert mounted(folder, f"size={DISK_KB}k")
    try:
        yield
    finally:
        unmounted(folder)


def fill(filler: Path) -> None:
    """Take all that is left of a file system with one file."""
    with filler.open("wb", buffering=0) as file:
        for size in SIZES:
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def mounted(folder: Path, options: str) -> bool:
    """A file system in memory at `folder`; whether this process may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return os.geteuid() == 0 and _succeeds(command)


def unmounted(folder: Path) -> bool:
    return _succeeds(["umount", "-l", str(folder)])


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
