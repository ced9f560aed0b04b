"""Running benchmarks one after the other: which, and that nothing of them is left."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import all as every

CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}]); {then}"
SLEEPS = (
    "import pathlib, os, time; pathlib.Path('{file}').write_text(str(os.getpid())); time.sleep(60)"
)


def test_all_are_wanted_or_those_named_or_those_from_one_on() -> None:
    assert [entry.name for entry in every.wanted(None, None)] == list(every.NAMES)
    assert [entry.name for entry in every.wanted(["cliff", "rpc"], None)] == ["rpc", "cliff"]
    assert [entry.name for entry in every.wanted(None, "pipeline")] == ["pipeline", "cliff"]
    assert [entry.name for entry in every.wanted(["rpc"], "pipeline")] == []


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    program = "import os; print('chatter'); print('{\"folder\": \"' + os.environ['TMPDIR'] + '\"}')"
    found = every.run((sys.executable, "-c", program), tmp_path, 1.0)
    assert found == {"folder": str(tmp_path)}


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "pass"])
def test_a_benchmark_that_fails_has_no_result(tmp_path: Path, program: str) -> None:
    assert every.run((sys.executable, "-c", program), tmp_path, 1.0) is None


@pytest.mark.parametrize("then", ["time.sleep(60)", "time.sleep(1); raise SystemExit(1)"])
def test_nothing_outlives_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    file = tmp_path / "pid"
    program = CHILD.format(inner=SLEEPS.format(file=file), then=then)
    monkeypatch.setattr(every, "SLACK", 1.0)
    started = time.monotonic()
    assert every.run((sys.executable, "-c", program), tmp_path, 3.0 / 60) is None
    assert time.monotonic() - started < 30
    pid = int(file.read_text())
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")
