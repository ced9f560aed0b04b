"""`smile up`, `status` and `down` as typed: what stays, what is refused, what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import smile
from smile.embedded import running
from smile.embedded.directory import DataDirectory, DirectoryLock
from smile.embedded.keys import load_secrets
from smile.embedded.processes import processes_of
from tests.e2e.platforms import LABELS, command, rows, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose platform, if any, is gone afterwards."""
    folder = tmp_path / "my data"
    yield folder
    command("down", "--data", str(folder))
    assert processes_of(folder) == []


def up(data: Path, backbones: str, *more: str) -> subprocess.CompletedProcess[str]:
    return command("up", "--data", str(data), "--port-base", "0", "--backbones", backbones, *more)


def exports(printed: str) -> dict[str, str]:
    """What the `export` lines set."""
    lines = [line for line in printed.splitlines() if line.startswith("export ")]
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def test_a_restart_keeps_tenants_keys_models_and_jobs(data: Path, backbones: str) -> None:
    first = up(data, backbones)
    assert first.returncode == 0, first.stderr
    printed = exports(first.stdout)
    assert printed.keys() == {"SMILE_ENDPOINTS", "SMILE_API_KEY"}
    key = printed["SMILE_API_KEY"]
    with smile.Client(key, endpoints=printed["SMILE_ENDPOINTS"]) as client:
        client.create_vplm("mood", backbone="toy", pet=smile.Pfeiffer(8), labels=LABELS)
        client.upload_dataset("texts", rows())
        job = client.wait(client.train("mood", "texts", epochs=2), timeout=120)
        until(lambda: client.infer("mood", "a day").version == job.version, "the new version")
        before = client.infer("mood", "a good day")

    down = command("down", "--data", str(data))
    assert (down.returncode, down.stderr.strip()) == (0, "stopped")
    assert processes_of(data) == []
    assert command("status", "--data", str(data)).returncode == 8

    second = up(data, backbones)
    assert second.returncode == 0, second.stderr
    assert exports(second.stdout).keys() == {"SMILE_ENDPOINTS"}
    assert "smile keys create --tenant default" in second.stderr
    with smile.Client(key, endpoints=exports(second.stdout)["SMILE_ENDPOINTS"]) as client:
        after = client.infer("mood", "a good day")
        assert (after.version, after.digest) == (before.version, before.digest)
        assert after.predictions == before.predictions
        assert client.job(job).state is smile.JobState.SUCCEEDED
        assert [dataset.name for dataset in client.datasets()] == ["tenants/default/datasets/texts"]

    operator = load_secrets(DataDirectory.at(data).secrets_file).operator_key
    environment = {**exports(second.stdout), "SMILE_API_KEY": operator}
    another = command("keys", "create", "--tenant", "default", environment=environment)
    assert another.returncode == 0, another.stderr
    assert "smile_default_" in another.stdout


def test_up_json_is_for_programs(data: Path, backbones: str) -> None:
    done = up(data, backbones, "--output", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["environment"]["SMILE_API_KEY"].startswith("smile_default_")
    assert (done.stderr, found["phase"]) == ("", "running")


def test_a_port_in_use_is_told_before_anything_starts(data: Path, backbones: str) -> None:
    base = 21_700
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 2))
        taken.listen()
        done = command(
            "up", "--data", str(data), "--port-base", str(base), "--backbones", backbones
        )
    assert done.returncode == 6
    assert f"port {base + 2} (for trainer) is in use" in done.stderr
    assert not list(DataDirectory.at(data).logs.iterdir())


def test_a_data_directory_that_cannot_be_written(tmp_path: Path, backbones: str) -> None:
    (tmp_path / "file").write_text("")
    done = up(tmp_path / "file" / "data", backbones)
    assert (done.returncode, "is not writable" in done.stderr) == (6, True)


def test_a_data_directory_that_another_holds(data: Path, backbones: str) -> None:
    directory = DataDirectory.at(data)
    directory.prepare()
    lock = DirectoryLock.acquire(directory.lock_file)
    assert lock is not None
    done = up(data, backbones)
    lock.release()
    assert (done.returncode, "DATA_LOCKED" in done.stderr) == (6, True)


def test_a_backbone_that_is_not_there(data: Path) -> None:
    done = up(data, "mine=dir:/no/such/folder")
    assert done.returncode == 6
    assert "backbone 'mine': no directory /no/such/folder" in done.stderr
    assert not data.exists()


def test_a_service_that_does_not_start_is_quoted_and_all_is_stopped(
    data: Path, backbones: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMILE_PROCESSOR_BATCH_TOKENS_MAX", "many")
    done = up(data, backbones)
    assert done.returncode == 6
    assert "processor ended with exit code 78" in done.stderr
    assert "SMILE_PROCESSOR_BATCH_TOKENS_MAX='many'" in done.stderr
    assert str(data / "logs" / "processor.log") in done.stderr
    assert processes_of(data) == []
    later = command("status", "--data", str(data))
    assert (later.returncode, "the last start failed" in later.stderr) == (8, True)


def test_down_where_nothing_runs(data: Path) -> None:
    done = command("down", "--data", str(data))
    assert (done.returncode, "nothing runs" in done.stderr) == (0, True)


def test_a_killed_supervisor_takes_all_with_it_and_up_works_again(
    data: Path, backbones: str
) -> None:
    assert up(data, backbones).returncode == 0
    state = running(data)
    assert state is not None
    os.kill(state.supervisor_pid, signal.SIGKILL)
    until(lambda: processes_of(data) == [], "the end of every process")
    assert command("status", "--data", str(data)).returncode == 8
    again = up(data, backbones)
    assert again.returncode == 0, again.stderr


def test_foreground_ends_with_ctrl_c(data: Path, backbones: str) -> None:
    with _foreground(data, backbones) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert processes_of(data) == []


def test_foreground_killed_takes_the_platform_with_it(data: Path, backbones: str) -> None:
    with _foreground(data, backbones) as process:
        process.kill()
        process.wait()
        until(lambda: processes_of(data) == [], "the end of every process")


def test_interrupted_while_starting_leaves_nothing(data: Path, backbones: str) -> None:
    with _command(data, backbones) as process:
        until(lambda: len(processes_of(data)) > 1, "the first processes")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert processes_of(data) == []


def test_works_in_a_folder_that_has_its_own_services(
    data: Path, backbones: str, tmp_path: Path
) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "__init__.py").write_text("raise SystemExit('not ours')")
    arguments = ("up", "--data", "here", "--port-base", "0", "--backbones", backbones)
    done = command(*arguments, cwd=tmp_path)
    try:
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "here" / "secrets.json").exists()
    finally:
        command("down", "--data", "here", cwd=tmp_path)
    assert processes_of(tmp_path / "here") == []


@contextmanager
def _foreground(data: Path, backbones: str) -> Iterator[subprocess.Popen[bytes]]:
    """`smile up --foreground`, ready."""
    with _command(data, backbones, "--foreground") as process:
        until(
            lambda: (state := running(data)) is not None and state.phase == "running",
            "the platform ready",
        )
        time.sleep(1.0)  # past the first key
        yield process


@contextmanager
def _command(data: Path, backbones: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    smile_program = str(Path(sys.executable).parent / "smile")
    arguments = ("up", "--data", str(data), "--port-base", "0", "--backbones", backbones, *more)
    with subprocess.Popen(
        [smile_program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            if psutil.pid_exists(process.pid) and process.poll() is None:
                process.kill()
