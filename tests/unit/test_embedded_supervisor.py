"""The supervisor over tiny children: start, crash, restart, give up, stop, leave nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from smile.embedded import leash
from smile.embedded.child import ChildSpec
from smile.embedded.directory import DataDirectory, write_atomically
from smile.embedded.ports import assign_ports
from smile.embedded.processes import MARK, end, is_alive, processes_of, rss_bytes
from smile.embedded.redis_server import ping, server_program, write_config
from smile.embedded.state import ChildPhase, PlatformPhase, read_state
from smile.embedded.supervisor import Board, Supervisor, SupervisorTimes
from smile.rpc.probe import Health

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
PARENT = (
    "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
)
BROKEN = "import sys; print('no such backbone', file=sys.stderr); sys.exit(78)"
TIMES = SupervisorTimes(start_s_max=20.0, stop_grace_s=1.0, probe_every_s=0.02)


@dataclass(frozen=True)
class Platform:
    """A data directory and specs of fake services in it."""

    directory: DataDirectory

    def spec(self, name: str, code: str, *, ready: bool = True) -> ChildSpec:
        async def probe() -> Health:
            return Health(live=True, ready=ready)

        return ChildSpec(
            name=name,
            address="",
            command=(sys.executable, "-c", code),
            environment={MARK: str(self.directory.root)},
            folder=self.directory.run,
            log=self.directory.log(name),
            probe=probe,
        )

    def supervisor(
        self, *stages: list[ChildSpec], times: SupervisorTimes = TIMES
    ) -> tuple[Supervisor, Board]:
        specs = [spec for stage in stages for spec in stage]
        board = Board(self.directory.state_file, self.directory.root, specs)
        return Supervisor(stages, board, times), board

    def left(self) -> list[psutil.Process]:
        return processes_of(self.directory.root)


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    directory = DataDirectory.at(tmp_path)
    directory.prepare()
    return Platform(directory)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- other processes are watched
            await asyncio.sleep(0.02)


async def session(
    supervisor: Supervisor, board: Board, meanwhile: Callable[[], Awaitable[None]]
) -> int:
    """Run the supervisor, `meanwhile` once it is up, then stop it; gives its exit code."""
    stop = asyncio.Event()
    running = asyncio.create_task(supervisor.run(stop))
    await until(lambda: board.state.phase is PlatformPhase.RUNNING)
    await meanwhile()
    stop.set()
    return await running


@pytest.mark.asyncio
async def test_starts_in_stages_and_leaves_nothing(platform: Platform) -> None:
    supervisor, board = platform.supervisor(
        [platform.spec("redis", SLEEPER)],
        [platform.spec("trainer", PARENT), platform.spec("processor", STUBBORN)],
    )

    async def look() -> None:
        assert read_state(platform.directory.state_file) == board.state
        assert {child.phase for child in board.state.children} == {ChildPhase.READY}
        await until(lambda: len(platform.left()) == 4)
        assert rss_bytes(board.child("redis").pid or 0) > 1_000_000

    assert await session(supervisor, board, look) == 0
    assert platform.left() == []
    assert read_state(platform.directory.state_file) is None


@pytest.mark.asyncio
async def test_a_child_that_exits_early_fails_the_start_and_is_quoted(platform: Platform) -> None:
    supervisor, board = platform.supervisor(
        [platform.spec("redis", SLEEPER)],
        [platform.spec("creator", SLEEPER), platform.spec("processor", BROKEN, ready=False)],
    )
    assert await supervisor.run(asyncio.Event()) == 69
    state = read_state(platform.directory.state_file)
    assert state is not None
    assert state.phase is PlatformPhase.FAILED
    assert "processor ended with exit code 78 before it was ready" in state.failure
    assert str(platform.directory.log("processor")) in state.failure
    assert state.failure.endswith("no such backbone")
    assert board.child("processor").phase is ChildPhase.FAILED
    assert platform.left() == []


@pytest.mark.asyncio
async def test_an_earlier_stage_that_ends_fails_the_start_of_a_later_one(
    platform: Platform,
) -> None:
    dies_soon = "import time; time.sleep(0.5)"
    supervisor, board = platform.supervisor(
        [platform.spec("redis", dies_soon)], [platform.spec("creator", SLEEPER, ready=False)]
    )
    assert await supervisor.run(asyncio.Event()) == 69
    assert "redis ended with exit code 0" in board.state.failure


@pytest.mark.asyncio
async def test_a_start_that_takes_too_long_names_who_is_late(platform: Platform) -> None:
    times = SupervisorTimes(start_s_max=1.5, stop_grace_s=1.0, probe_every_s=0.02)
    supervisor, board = platform.supervisor(
        [platform.spec("redis", SLEEPER), platform.spec("trainer", SLEEPER, ready=False)],
        times=times,
    )
    assert await supervisor.run(asyncio.Event()) == 69
    assert "not ready within 1.5 s: trainer is starting" in board.state.failure
    assert "redis is" not in board.state.failure
    assert platform.left() == []


@pytest.mark.asyncio
async def test_a_program_that_is_not_there_fails_the_start(platform: Platform) -> None:
    spec = platform.spec("redis", "", ready=False)
    missing = replace(spec, command=("/no/such/redis",))
    supervisor, board = platform.supervisor([missing])
    assert await supervisor.run(asyncio.Event()) == 69
    assert "redis ended with exit code 127" in board.state.failure
    assert board.state.failure.endswith("cannot run /no/such/redis: No such file or directory")


@pytest.mark.asyncio
async def test_told_to_stop_while_starting(platform: Platform) -> None:
    supervisor, board = platform.supervisor([platform.spec("redis", SLEEPER, ready=False)])
    stop = asyncio.Event()
    running = asyncio.create_task(supervisor.run(stop))
    await until(lambda: board.child("redis").pid is not None)
    stop.set()
    assert await running == 0
    assert platform.left() == []


@pytest.mark.asyncio
async def test_a_crash_is_told_and_the_child_comes_back(platform: Platform) -> None:
    supervisor, board = platform.supervisor(
        [platform.spec("redis", SLEEPER), platform.spec("processor", PARENT)]
    )
    seen: list[tuple[ChildPhase, str]] = []

    async def crash() -> None:
        first = board.child("processor").pid or 0
        await until(lambda: len(platform.left()) == 3)
        os.kill(first, signal.SIGKILL)
        await until(lambda: board.child("processor").phase is ChildPhase.CRASHED)
        seen.append((board.child("processor").phase, board.child("processor").last_exit))
        await until(lambda: board.child("processor").phase is ChildPhase.READY)
        after = board.child("processor")
        assert (after.restarts, after.last_exit) == (1, "signal SIGKILL")
        assert after.pid != first
        assert board.child("redis").restarts == 0
        await until(lambda: len(platform.left()) == 3)  # what the first one started is gone too

    await session(supervisor, board, crash)
    assert seen == [(ChildPhase.CRASHED, "signal SIGKILL")]


@pytest.mark.asyncio
async def test_a_child_that_crashes_too_often_stays_down_and_others_go_on(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smile.embedded.restarts.RestartBudget.take", _twice())
    supervisor, board = platform.supervisor(
        [platform.spec("redis", SLEEPER), platform.spec("trainer", SLEEPER)]
    )

    async def crash() -> None:
        while board.child("trainer").phase is not ChildPhase.FAILED:
            if (pid := board.child("trainer").pid) is not None and is_alive(pid):
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
        assert board.child("trainer").restarts == 2
        assert board.child("redis").phase is ChildPhase.READY
        assert board.state.phase is PlatformPhase.RUNNING

    await session(supervisor, board, crash)


@pytest.mark.asyncio
async def test_a_full_disk_does_not_end_the_supervision(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, board = platform.supervisor([platform.spec("redis", SLEEPER)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def crash() -> None:
        monkeypatch.setattr("smile.embedded.supervisor.write_state", full)
        os.kill(board.child("redis").pid or 0, signal.SIGKILL)
        await until(lambda: board.child("redis").restarts == 1)
        await until(lambda: board.child("redis").phase is ChildPhase.READY)

    assert await session(supervisor, board, crash) == 0
    assert platform.left() == []


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, os, time; from smile.embedded.child import leashed; "
        f"child = subprocess.Popen(leashed((sys.executable, '-c', {SLEEPER!r}))); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while is_alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(child)


def test_a_leash_whose_parent_is_gone_starts_nothing() -> None:
    command = [sys.executable, "-I", "-S", leash.__file__, "1", sys.executable, "-c", "print(1)"]
    if os.getpid() == 1 or os.getppid() == 1:
        command[4] = "2"
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""


def test_ending_takes_the_stubborn_too(tmp_path: Path) -> None:
    environment = {MARK: str(tmp_path)}
    ready = STUBBORN.replace("time.sleep", "print('up', flush=True); time.sleep")
    with subprocess.Popen(
        [sys.executable, "-c", ready], env=environment, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert [process.pid for process in processes_of(tmp_path)] == [child.pid]
        assert processes_of(tmp_path / "other") == []
        assert end(processes_of(tmp_path), grace_s=0.2) == 1
        assert child.wait() == -signal.SIGKILL


@pytest.mark.asyncio
async def test_redis_answers_its_password_only(platform: Platform) -> None:
    port = assign_ports(("redis",), 0)["redis"]
    path = write_config(platform.directory, port, "right")
    assert not (await ping(port, "right")).live
    process = await asyncio.create_subprocess_exec(
        server_program(), str(path), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while not (await ping(port, "right")).ready:  # noqa: ASYNC110 -- another process
                await asyncio.sleep(0.02)
        wrong = await ping(port, "wrong")
        assert (wrong.live, wrong.ready) == (True, False)
    finally:
        process.terminate()
        await process.wait()


def _twice() -> Callable[[object, float], float | None]:
    left = [0.0, 0.0]
    return lambda _budget, _now: left.pop() if left else None


def test_write_atomically_is_used_for_state(platform: Platform) -> None:
    write_atomically(platform.directory.state_file, b"{}")
    assert [path.name for path in platform.directory.run.iterdir()] == ["platform.json"]
