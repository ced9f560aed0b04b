"""Processes of a platform under test: borne by the nursery, struck by failpoints, borne again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from smile.rpc.probe import probe
from tests.faults.failpoints import Failpoints
from tests.faults.nursery import Order

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0  # a machine may be starved
POLL_S = 0.005


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another process does, with patience that ends."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:g} s for: {what}")
        await asyncio.sleep(POLL_S)


class Nursery:
    """Where processes are borne; closing it ends them all."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._ask("") == "ready"

    def bear(self, order: Order) -> int:
        """The process id."""
        return int(self._ask(f"{order.to_json()}\n"))

    def _ask(self, words: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(words)
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(10)


@dataclass
class Child:
    """One process of a role, that may die and come back in the same place with the same settings.

    Attributes:
        port: Where it listens; 0 for those that do not. Held while the child is dead.
    """

    nursery: Nursery
    role: str
    settings: dict[str, str]
    folder: Path
    port: int
    points: Failpoints = field(init=False)
    pid: int = 0
    _watch: int = -1
    _place: socket.socket | None = None

    def __post_init__(self) -> None:
        self.points = Failpoints.create(self.folder / f"{self.role}-{self.port}-{id(self)}.points")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.points.file.with_suffix(".log")

    def bear(self) -> None:
        assert not self.alive, f"{self.role} lives already"
        self._forget()
        order = Order(self.role, self.settings, str(self.points.file), str(self.log))
        self.pid = self.nursery.bear(order)
        with contextlib.suppress(ProcessLookupError):  # it died at once
            self._watch = os.pidfd_open(self.pid)

    async def start(self) -> None:
        """Bear it, and wait until it is ready."""
        self.bear()
        await self.ready()

    async def ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (await probe(self.address)).ready:
            assert self.alive, f"{self.role} died: {self.log.read_text()[-2000:]}"
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.role} is not ready: {self.log.read_text()[-2000:]}")
            await asyncio.sleep(POLL_S)

    @property
    def alive(self) -> bool:
        if self._watch < 0:
            return False
        return not select.select([self._watch], [], [], 0)[0]

    @property
    def stopped(self) -> bool:
        """Whether it was halted by SIGSTOP."""
        if not self.alive:
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False  # it died just now
        return state == "T"

    def send(self, number: signal.Signals) -> None:
        """A signal, to it alone."""
        if self._watch >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._watch, number)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.dead()

    async def dead(self) -> None:
        await until(lambda: not self.alive, f"the end of {self.role}")
        self._forget()

    async def end(self) -> None:
        """Asked to end, in order."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        await self.dead()

    def _forget(self) -> None:
        if self._watch >= 0:
            os.close(self._watch)
            self._watch = -1

    async def close(self) -> None:
        if self.alive:
            await self.kill()
        self._forget()
        if self._place is not None:
            self._place.close()

    @classmethod
    def listening(cls, nursery: Nursery, role: str, settings: dict[str, str], folder: Path) -> Self:
        """A child with a port of its own, which nobody else can get while it is dead."""
        place = socket.socket()
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        child = cls(nursery, role, settings, folder, int(place.getsockname()[1]))
        child._place = place
        child.settings[f"SMILE_{role.upper()}_PORT"] = str(child.port)
        return child
