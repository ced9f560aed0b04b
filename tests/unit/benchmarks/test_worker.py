from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.harness.worker import Worker
from benchmarks.peers.runners.protocol import Requests
from smile.errors import FailedPrecondition

PROGRAM = """
import sys
from benchmarks.peers.runners.protocol import answering, serve

def load(requests):
    print("a library's chatter")
    if requests.vplms < 0:
        raise SystemExit("it cannot be loaded")
    seen = []
    run = answering(seen.extend, requests.batches())
    return {"texts": len(requests.ids)}, {"run": run, "seen": lambda: {"seen": seen}}

serve(load)
"""


def _requests(folder: Path, vplms: int) -> Path:
    requests = Requests(
        model="",
        ids=[[1], [2, 3], [4], [5], [6]],
        adapter_of=[0, 1, 0, 1, 0],
        adapters=2,
        batch=2,
        first_layer=3,
        layers=6,
        labels=2,
        vplms=vplms,
    )
    path = folder / "requests.json"
    path.write_text(json.dumps(asdict(requests)))
    return path


def test_a_worker_answers_when_told_and_ends_with_its_input(tmp_path: Path) -> None:
    command = (sys.executable, "-c", PROGRAM, str(_requests(tmp_path, vplms=1)))
    with Worker(command, log=tmp_path / "log") as worker:
        worker.await_ready()
        assert worker.about == {"texts": 5}
        seconds = worker.ask("run")["seconds"]
        assert isinstance(seconds, float) and 0 <= seconds < 1
        assert worker.ask("seen") == {"seen": [0, 1, 2, 3, 4]}
    assert "chatter" in (tmp_path / "log").read_text()


def test_a_worker_that_cannot_load_is_told_with_its_reason(tmp_path: Path) -> None:
    command = (sys.executable, "-c", PROGRAM, str(_requests(tmp_path, vplms=-1)))
    with (
        Worker(command, log=tmp_path / "log") as worker,
        pytest.raises(FailedPrecondition, match="it cannot be loaded"),
    ):
        worker.await_ready()


def test_a_worker_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "sys.stdout.write('{\"ready\": {}}\\n'); sys.stdout.flush()\n"
        "sys.stdin.readline(); time.sleep(60)\n"
    )
    command = (sys.executable, "-c", program)
    with Worker(command, log=tmp_path / "log", answer_s_max=0.3) as worker:
        worker.await_ready()
        with pytest.raises(FailedPrecondition, match="ended with -9"):
            worker.ask("run")
