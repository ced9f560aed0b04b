"""Keeps the platform's processes running: stage by stage up, each restarted on a crash, and down.

Until every process has been ready once, one that ends fails the whole start. After that a crash is
recorded, and the process comes back within its restart budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smile.embedded.child import Child, ChildSpec, bound_log, last_lines
from smile.embedded.restarts import RestartBudget
from smile.embedded.state import (
    ChildPhase,
    ChildState,
    PlatformPhase,
    PlatformState,
    write_state,
)
from smile.logs import get_logger

EXIT_START_FAILED = 69


@dataclass(frozen=True, slots=True)
class SupervisorTimes:
    """How long things may take, in seconds."""

    start_s_max: float = 180.0
    stop_grace_s: float = 15.0
    probe_every_s: float = 0.2
    log_check_every_s: float = 5.0


class Board:
    """The published state: every change is written at once."""

    def __init__(self, path: Path, data: Path, specs: Sequence[ChildSpec]) -> None:
        self._path = path
        self.state = PlatformState(
            data=str(data),
            supervisor_pid=os.getpid(),
            started=datetime.now(UTC),
            phase=PlatformPhase.STARTING,
            children=tuple(ChildState(spec.name, spec.address, str(spec.log)) for spec in specs),
        )
        self._publish()

    def phase(self, phase: PlatformPhase, failure: str = "") -> None:
        self.state = replace(self.state, phase=phase, failure=failure or self.state.failure)
        self._publish()

    def child(self, name: str) -> ChildState:
        return next(child for child in self.state.children if child.name == name)

    def update(self, child: ChildState) -> None:
        """Replace the child of that name; a change of phase counts from now."""
        if child.phase is not self.child(child.name).phase:
            child = replace(child, since=datetime.now(UTC))
        children = tuple(child if old.name == child.name else old for old in self.state.children)
        self.state = replace(self.state, children=children)
        self._publish()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _publish(self) -> None:
        """A disk that is full must not end the supervision."""
        try:
            write_state(self._path, self.state)
        except OSError as error:
            get_logger().error("state not written", path=str(self._path), why=error.strerror)


class Supervisor:
    """Runs stages of processes: each stage is ready before the next one starts."""

    def __init__(
        self, stages: Sequence[Sequence[ChildSpec]], board: Board, times: SupervisorTimes
    ) -> None:
        self._stages = stages
        self._board = board
        self._times = times
        self._children: dict[str, Child] = {}
        self._tending: list[asyncio.Task[None]] = []
        self._started = False
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, stop: asyncio.Event) -> int:
        """Keep the platform up until `stop`; gives the exit code, with everything ended."""
        stopping = asyncio.create_task(stop.wait())
        logs = asyncio.create_task(self._bound_logs())
        try:
            failure = await self._come_up(stopping)
            if failure:
                get_logger().error("start failed", failure=failure)
                self._board.phase(PlatformPhase.FAILED, failure)
                return EXIT_START_FAILED
            await stopping
            return 0
        finally:
            stopping.cancel()
            logs.cancel()
            await self._stop()

    async def _come_up(self, stopping: asyncio.Task[bool]) -> str:
        """Wait until all are ready or it is time to stop; otherwise gives what went wrong."""
        starting = asyncio.create_task(self._start())
        first: set[asyncio.Future[Any]] = {starting, stopping, self._failed}
        await asyncio.wait(
            first, timeout=self._times.start_s_max, return_when=asyncio.FIRST_COMPLETED
        )
        starting.cancel()
        if stopping.done():
            return ""
        if self._failed.done():
            return self._failed.result()
        return "" if self._started else self._too_slow()

    async def _start(self) -> None:
        for stage in self._stages:
            readies = [asyncio.Event() for _ in stage]
            for spec, ready in zip(stage, readies, strict=True):
                self._tending.append(asyncio.create_task(self._tend(spec, ready)))
            await asyncio.gather(*(ready.wait() for ready in readies))
        self._started = True
        self._board.phase(PlatformPhase.RUNNING)

    async def _tend(self, spec: ChildSpec, ready: asyncio.Event) -> None:
        """Run one process for as long as its budget allows."""
        budget = RestartBudget()
        while True:
            ended = await self._run_once(spec, ready)
            child = replace(self._board.child(spec.name), pid=None, last_exit=ended)
            pause_s = budget.take(time.monotonic()) if self._started else None
            get_logger().error("child ended", child=spec.name, how=ended, again_in_s=pause_s)
            if pause_s is None:
                self._board.update(replace(child, phase=ChildPhase.FAILED))
                if not (self._started or self._failed.done()):
                    self._failed.set_result(_told(spec, ended))
                return
            self._board.update(replace(child, phase=ChildPhase.CRASHED))
            await asyncio.sleep(pause_s)
            self._board.update(replace(child, restarts=child.restarts + 1))

    async def _run_once(self, spec: ChildSpec, ready: asyncio.Event) -> str:
        """Start the process, note when it becomes ready, and tell how it ended."""
        try:
            child = await Child.start(spec)
        except OSError as error:
            return f"no start ({error.strerror})"
        self._children[spec.name] = child
        self._board.update(
            replace(self._board.child(spec.name), phase=ChildPhase.STARTING, pid=child.pid)
        )
        noting = asyncio.create_task(self._note_ready(spec, ready))
        try:
            return await child.wait()
        finally:
            noting.cancel()

    async def _note_ready(self, spec: ChildSpec, ready: asyncio.Event) -> None:
        while not (await spec.probe()).ready:  # noqa: ASYNC110 -- another process is asked
            await asyncio.sleep(self._times.probe_every_s)
        self._board.update(replace(self._board.child(spec.name), phase=ChildPhase.READY))
        ready.set()

    async def _stop(self) -> None:
        """End all, last stage first."""
        failed = self._board.state.phase is PlatformPhase.FAILED
        if not failed:
            self._board.phase(PlatformPhase.STOPPING)
        for task in self._tending:
            task.cancel()
        await asyncio.gather(*self._tending, return_exceptions=True)
        for stage in reversed(self._stages):
            await asyncio.gather(*(self._stop_child(spec) for spec in stage))
        if not failed:
            self._board.remove()

    async def _stop_child(self, spec: ChildSpec) -> None:
        child = self._children.get(spec.name)
        if child is None:
            return
        with contextlib.suppress(TimeoutError):
            await child.stop(self._times.stop_grace_s)
        state = replace(self._board.child(spec.name), pid=None)
        if state.phase is not ChildPhase.FAILED:
            state = replace(state, phase=ChildPhase.STOPPED)
        self._board.update(state)

    async def _bound_logs(self) -> None:
        while True:
            for stage in self._stages:
                for spec in stage:
                    bound_log(spec.log)
            await asyncio.sleep(self._times.log_check_every_s)

    def _too_slow(self) -> str:
        late = [
            child
            for child in self._board.state.children
            if child.phase in (ChildPhase.WAITING, ChildPhase.STARTING)
        ]
        told = "; ".join(
            f"{child.name} is {child.phase}, log {child.log} ends:\n{last_lines(Path(child.log))}"
            for child in late
        )
        return f"not ready within {self._times.start_s_max:g} s: {told}"


def _told(spec: ChildSpec, ended: str) -> str:
    lines = last_lines(spec.log) or "(nothing was written)"
    return f"{spec.name} ended with {ended} before it was ready; its log {spec.log} ends:\n{lines}"
