"""Starting and stopping a platform from outside: what `smile up` and `smile down` do."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from smile.backbone_config import BACKBONES_DEFAULT
from smile.config import inherited_environment
from smile.embedded import processes
from smile.embedded.child import last_lines, leashed
from smile.embedded.directory import DataDirectory, DirectoryLock, is_locked
from smile.embedded.keys import load_or_create_secrets, make_signing_keys
from smile.embedded.ports import assign_ports, check_ports
from smile.embedded.redis_server import server_program
from smile.embedded.services import NAMES, SUPERVISOR, PlatformConfig
from smile.embedded.state import PlatformPhase, PlatformState, read_state
from smile.errors import FailedPrecondition
from smile.model.sources import describe, parse_sources

DATA_LOCKED = "DATA_LOCKED"
SERVICE_START_FAILED = "SERVICE_START_FAILED"
POLL_S = 0.1
STOP_S_MAX = 90.0
LEFTOVER_GRACE_S = 10.0

Progress = Callable[[PlatformState], None]


@dataclass(frozen=True, slots=True)
class PlatformOptions:
    """How to start a platform.

    Attributes:
        data: Where everything is kept.
        port_base: First of five ports in a row; 0 means any free ports.
        workers: Processes that train.
        backbones: Comma-separated `name=kind:location`.
        start_s_max: How long the start may take, in seconds.
        leashed: The platform ends with the process that starts it, even if that is killed.
    """

    data: Path
    port_base: int = 7101
    workers: int = 1
    backbones: str = BACKBONES_DEFAULT
    start_s_max: float = 180.0
    leashed: bool = False


def running(data: Path) -> PlatformState | None:
    """The platform that holds the data directory now, if any. Raises `DataCorrupted`."""
    directory = DataDirectory.at(data)
    return read_state(directory.state_file) if is_locked(directory) else None


def last_failure(data: Path) -> str:
    """Why the last start failed; empty if it did not."""
    state = read_state(DataDirectory.at(data).state_file)
    return state.failure if state is not None else ""


def start(options: PlatformOptions, on_progress: Progress | None = None) -> PlatformState:
    """Start a platform and wait until all of it is ready; on failure everything is ended again.

    Raises:
        InvalidArgument: a port or a backbone is malformed.
        FailedPrecondition: reason DATA_NOT_WRITABLE, DATA_LOCKED, PORT_IN_USE, REDIS_NOT_INSTALLED,
            a backbone is absent or no such model, or SERVICE_START_FAILED with the process and
            the end of its log.
    """
    directory = DataDirectory.at(options.data)
    for source in parse_sources(options.backbones):
        describe(source.locate())
    ports = assign_ports(NAMES, options.port_base)
    server_program()
    directory.prepare()
    lock = DirectoryLock.acquire(directory.lock_file)
    if lock is None:
        raise FailedPrecondition(
            f"the data directory {directory.root} is locked by another running platform; stop it "
            f"with 'smile down --data {directory.root}' or choose another with --data",
            reason=DATA_LOCKED,
        )
    try:
        processes.end(processes.processes_of(directory.root), grace_s=LEFTOVER_GRACE_S)
        check_ports(ports)
        load_or_create_secrets(directory.secrets_file)
        make_signing_keys(directory)
        directory.state_file.unlink(missing_ok=True)
        config = PlatformConfig(
            data=directory.root,
            ports=ports,
            workers=options.workers,
            backbones=options.backbones,
            start_s_max=options.start_s_max,
            lock_fileno=lock.fileno,
        )
        supervisor = _spawn(config, directory, leashed_to_us=options.leashed)
    finally:
        lock.release()
    return _await_ready(supervisor, directory, on_progress)


def stop(data: Path) -> bool:
    """End the platform on the data directory, or what a dead one left; False if nothing ran.

    Raises:
        FailedPrecondition: it holds the directory, and is not on this machine.
    """
    directory = DataDirectory.at(data)
    supervisors = [
        process for process in processes.processes_of(directory.root) if _is_supervisor(process)
    ]
    for process in supervisors:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    alive = processes.wait_gone(supervisors, timeout_s=STOP_S_MAX)
    left = processes.end(
        [*alive, *processes.processes_of(directory.root)], grace_s=LEFTOVER_GRACE_S
    )
    if is_locked(directory):
        raise FailedPrecondition(
            f"the data directory {directory.root} is locked by a process that is not a platform of "
            f"this user on this machine",
            reason=DATA_LOCKED,
        )
    directory.state_file.unlink(missing_ok=True)
    return bool(supervisors or left)


def _spawn(
    config: PlatformConfig, directory: DataDirectory, *, leashed_to_us: bool
) -> subprocess.Popen[bytes]:
    command: tuple[str, ...] = (
        *(sys.executable, "-P", "-m", "smile.embedded"),
        TypeAdapter(PlatformConfig).dump_json(config).decode(),
    )
    with directory.log(SUPERVISOR).open("ab") as log:
        return subprocess.Popen(
            leashed(command) if leashed_to_us else command,
            env={**inherited_environment(), processes.MARK: str(directory.root)},
            cwd=directory.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A platform of ours shares our session, so that what gives way in it gives way to us.
            start_new_session=not leashed_to_us,
            process_group=0 if leashed_to_us else None,
            pass_fds=(config.lock_fileno,),
        )


def _await_ready(
    supervisor: subprocess.Popen[bytes], directory: DataDirectory, on_progress: Progress | None
) -> PlatformState:
    """Follow the state file until the platform runs. Whatever interrupts this ends the platform."""
    try:
        while supervisor.poll() is None:
            state = read_state(directory.state_file)
            if state is not None:
                if on_progress is not None:
                    on_progress(state)
                if state.phase is PlatformPhase.RUNNING:
                    _reap_in_time(supervisor)
                    return state
            time.sleep(POLL_S)
    except BaseException:
        supervisor.terminate()
        supervisor.wait()
        raise
    state = read_state(directory.state_file)
    log = directory.log(SUPERVISOR)
    failure = state.failure if state is not None else ""
    raise FailedPrecondition(
        f"the platform did not start and was stopped again: "
        f"{failure or f'the supervisor ended; its log {log} ends:' + last_lines(log)}",
        reason=SERVICE_START_FAILED,
    )


def _reap_in_time(supervisor: subprocess.Popen[bytes]) -> None:
    """Whenever it ends, no zombie stays in a caller that lives longer."""
    threading.Thread(target=supervisor.wait, name="reap-supervisor", daemon=True).start()


def _is_supervisor(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "smile.embedded" in process.cmdline()
    return False
