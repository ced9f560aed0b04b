"""Children get what the C library reads at their start."""

from __future__ import annotations

import os
import subprocess
import sys

from services.trainer.worker.memory import TUNABLES, release_free_memory, tame_children

TELL = "import os; print(os.environ.get('GLIBC_TUNABLES'))"


def told() -> str:
    return subprocess.run(
        [sys.executable, "-c", TELL], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_children_keep_no_freed_blocks_apart() -> None:
    assert told() == "None"
    try:
        tame_children()
        assert told() == TUNABLES
    finally:
        os.unsetenv("GLIBC_TUNABLES")


def test_free_memory_is_given_back_without_harm() -> None:
    kept = bytes(1 << 20)
    release_free_memory()
    assert kept.count(0) == 1 << 20
