"""What the end-to-end tests do with a platform of real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import smile
from smile.embedded import PlatformState, running
from smile.embedded.directory import DataDirectory
from smile.embedded.keys import load_secrets
from smile.embedded.state import ChildState

WAIT_S = 60.0
LABELS = ("good", "bad")


def rows(count: int = 60) -> list[dict[str, str]]:
    """Texts that even the toy backbone can tell apart."""
    words = {"good": "win happy love star", "bad": "war cold sad hate"}
    return [
        {"text": f"{words[label]} {index % 7} day", "label": label}
        for index, label in zip(range(count), LABELS * count, strict=False)
    ]


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = WAIT_S) -> None:
    """Wait for a condition outside of this process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for: {what}"
        time.sleep(0.05)


def command(
    *arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`smile ARGUMENTS`, as a person would run it."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "smile"), *arguments],
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@dataclass
class Platform:
    """A running platform and what tests do with it."""

    data: Path
    state: PlatformState
    _tenants: int = field(default=0)

    @property
    def endpoints(self) -> str:
        return self.state.endpoints

    def new_key(self) -> str:
        """The key of a fresh tenant."""
        self._tenants += 1
        secrets = load_secrets(DataDirectory.at(self.data).secrets_file)
        with smile.Client(secrets.operator_key, endpoints=self.endpoints) as operator:
            return operator.create_tenant(f"tenant-{self._tenants}").key

    def client(self, key: str | None = None) -> smile.Client:
        return smile.Client(key or self.new_key(), endpoints=self.endpoints)

    def child(self, name: str) -> ChildState:
        state = running(self.data)
        assert state is not None, "the supervisor is gone"
        return next(child for child in state.children if child.name == name)

    def kill(self, name: str) -> None:
        pid = self.child(name).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def workers(self) -> list[psutil.Process]:
        """The trainer's worker processes."""
        trainer = psutil.Process(self.child("trainer").pid)
        return [
            process
            for process in trainer.children(recursive=True)
            if "services.trainer.worker" in " ".join(process.cmdline())
        ]

    def status(self) -> tuple[int, dict[str, dict[str, object]]]:
        """Exit code of `smile status`, and its services by name."""
        done = command("status", "--data", str(self.data), "--output", "json")
        services = json.loads(done.stdout)["services"]
        return done.returncode, {service["name"]: service for service in services}
