"""Values of the embedded platform: ports, budgets, state, secrets, directory, environment."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smile.embedded.child import bound_log, exit_text, last_lines
from smile.embedded.directory import DataDirectory, DirectoryLock, is_locked, write_atomically
from smile.embedded.keys import (
    PlatformSecrets,
    load_or_create_secrets,
    load_secrets,
    make_signing_keys,
)
from smile.embedded.ports import HOST, assign_ports, check_ports
from smile.embedded.processes import MARK
from smile.embedded.restarts import RestartBudget
from smile.embedded.services import NAMES, PlatformConfig, child_specs, environment_of
from smile.embedded.state import (
    ChildPhase,
    ChildState,
    PlatformPhase,
    PlatformState,
    read_state,
    write_state,
)
from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument
from smile.rpc.keys import KeyKind, KeyParts


def config(root: Path) -> PlatformConfig:
    return PlatformConfig(
        data=root,
        ports=assign_ports(NAMES, 7101),
        workers=3,
        backbones="toy=dir:/toy",
        start_s_max=5.0,
        lock_fileno=3,
    )


def test_ports_follow_the_base() -> None:
    assert assign_ports(("a", "b"), 7101) == {"a": 7101, "b": 7102}


def test_port_base_0_gives_different_free_ports() -> None:
    ports = assign_ports(NAMES, 0)
    assert len(set(ports.values())) == len(NAMES)
    check_ports(ports)


@pytest.mark.parametrize("base", [-1, 80, 1023, 65_535, 99_999])
def test_port_base_out_of_range_names_limit_and_value(base: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"from 1024 to 65531, got {base}"):
        assign_ports(NAMES, base)


def test_a_port_in_use_is_told_with_its_service_and_holder() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition) as refused:
            check_ports({"trainer": port})
    assert refused.value.reason == "PORT_IN_USE"
    told = f"port {port} (for trainer) is in use by process {os.getpid()}"
    assert refused.value.message.startswith(told)


def test_pauses_double_and_the_budget_ends() -> None:
    budget = RestartBudget()
    assert [budget.take(0.0) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, None]


def test_the_budget_comes_back_after_the_window() -> None:
    budget = RestartBudget(restarts_max=1, window_s=10.0)
    assert [budget.take(now) for now in (0.0, 9.9, 10.0)] == [0.5, None, 0.5]


@given(st.lists(st.floats(0, 2000), max_size=60).map(sorted))
def test_never_more_restarts_than_the_budget_in_a_window(times: list[float]) -> None:
    budget = RestartBudget()
    taken = [now for now in times if budget.take(now) is not None]
    for start in taken:
        assert sum(start <= now < start + budget.window_s for now in taken) <= budget.restarts_max


def test_state_survives_the_file(tmp_path: Path) -> None:
    child = ChildState("processor", "127.0.0.1:7104", "/x.log", ChildPhase.CRASHED, None, 2)
    state = PlatformState(
        data=str(tmp_path),
        supervisor_pid=7,
        started=datetime.now(UTC),
        phase=PlatformPhase.RUNNING,
        children=(replace(child, last_exit="signal SIGKILL", since=datetime.now(UTC)),),
    )
    write_state(tmp_path / "state", state)
    assert read_state(tmp_path / "state") == state
    assert state.addresses == {"processor": "127.0.0.1:7104"}


def test_absent_state_is_none_and_broken_state_is_told(tmp_path: Path) -> None:
    assert read_state(tmp_path / "none") is None
    (tmp_path / "broken").write_text('{"data": 1}')
    with pytest.raises(DataCorrupted, match="not a platform's state"):
        read_state(tmp_path / "broken")


def test_secrets_are_made_once_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made = load_or_create_secrets(path)
    assert load_or_create_secrets(path) == load_secrets(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyParts.parse(made.operator_key).kind is KeyKind.OPERATOR
    assert KeyParts.parse(made.service_key).kind is KeyKind.SERVICE
    assert made.operator_key not in repr(made)


def test_a_new_platform_signs_from_the_start(tmp_path: Path) -> None:
    directory = DataDirectory.at(tmp_path)
    directory.prepare()
    make_signing_keys(directory)
    made = directory.signing_keys.read_text()
    make_signing_keys(directory)
    assert directory.signing_keys.read_text() == made
    assert re.fullmatch(r"k[0-9a-f]{8}:[A-Za-z0-9_-]{43}\n", made)
    assert stat.S_IMODE(directory.signing_keys.stat().st_mode) == 0o600
    environment = environment_of(config(tmp_path), PlatformSecrets.new(), {})
    assert environment["SMILE_STORAGE_SIGNING_KEYS_FILE"] == str(directory.signing_keys)
    assert "SMILE_STORAGE_UNSIGNED" not in environment
    own = {"SMILE_STORAGE_SIGNING_KEYS": "mine:x"}
    environment = environment_of(config(tmp_path), PlatformSecrets.new(), own)
    assert "SMILE_STORAGE_SIGNING_KEYS_FILE" not in environment


def test_records_older_than_the_key_are_accepted_until_told_otherwise(tmp_path: Path) -> None:
    directory = DataDirectory.at(tmp_path)
    directory.prepare()
    (directory.objects / "identity").mkdir()
    make_signing_keys(directory)
    environment = environment_of(config(tmp_path), PlatformSecrets.new(), {})
    assert environment["SMILE_STORAGE_UNSIGNED"] == "accept"
    directory.unsigned_accepted.unlink()
    make_signing_keys(directory)
    environment = environment_of(config(tmp_path), PlatformSecrets.new(), {})
    assert "SMILE_STORAGE_UNSIGNED" not in environment


def test_secrets_that_cannot_be_read_are_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text("{}")
    with pytest.raises(DataCorrupted, match="restore it from a backup"):
        load_or_create_secrets(path)
    assert path.read_text() == "{}"


def test_a_data_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match=r"is not writable .*--data") as refused:
        DataDirectory.at(tmp_path / "file" / "data").prepare()
    assert refused.value.reason == "DATA_NOT_WRITABLE"


def test_a_data_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    directory = DataDirectory.at(tmp_path / "new" / "data")
    directory.prepare()
    assert stat.S_IMODE(directory.root.stat().st_mode) == 0o700


def test_one_lock_at_a_time(tmp_path: Path) -> None:
    directory = DataDirectory.at(tmp_path)
    assert not is_locked(directory)
    directory.prepare()
    lock = DirectoryLock.acquire(directory.lock_file)
    assert lock is not None
    assert is_locked(directory)
    assert DirectoryLock.acquire(directory.lock_file) is None
    lock.release()
    assert not is_locked(directory)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_environment_holds_no_credential_of_a_person(tmp_path: Path) -> None:
    secrets = PlatformSecrets.new()
    inherited = {"PATH": "/bin", "SMILE_API_KEY": "x", "SMILE_OPERATOR_KEY": "y"}
    environment = environment_of(config(tmp_path), secrets, inherited)
    assert environment["PATH"] == "/bin"
    assert environment[MARK] == str(tmp_path)
    assert environment["SMILE_TRAINER_PORT"] == "7103"
    assert not {"SMILE_API_KEY", "SMILE_OPERATOR_KEY"} & environment.keys()
    assert secrets.operator_key not in environment.values()


def test_redis_is_local_durable_and_keeps_its_password_out_of_the_process_list(
    tmp_path: Path,
) -> None:
    directory = DataDirectory.at(tmp_path)
    directory.prepare()
    secrets = PlatformSecrets.new()
    stages = child_specs(config(tmp_path), secrets, {})
    redis = stages[0][0]
    text = Path(redis.command[-1]).read_text()
    for line in ("bind 127.0.0.1", "appendonly yes", "maxmemory-policy noeviction"):
        assert line in text.splitlines()
    assert stat.S_IMODE(Path(redis.command[-1]).stat().st_mode) == 0o600
    assert secrets.redis_password not in json.dumps(redis.command)
    assert [[spec.name for spec in stage] for stage in stages] == [
        ["redis"],
        ["storage"],
        ["creator", "trainer", "processor"],
    ]


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit code 0"), (78, "exit code 78"), (-9, "signal SIGKILL")]
)
def test_exit_text(code: int, text: str) -> None:
    assert exit_text(code) == text


def test_last_lines_and_bounded_logs(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_lines(log) == ""
    bound_log(log)
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert last_lines(log, lines_max=2) == "line 98\nline 99"
    bound_log(log, bytes_max=10_000)
    assert log.stat().st_size > 0
    bound_log(log, bytes_max=100)
    assert log.stat().st_size == 0
    assert (tmp_path / "x.log.1").read_text().endswith("line 99\n")
