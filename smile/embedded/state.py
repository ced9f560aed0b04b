"""What the supervisor tells the world: one JSON file, replaced whole at every change."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from smile.embedded.directory import write_atomically
from smile.errors import DataCorrupted

REDIS = "redis"  # the one child that is no service


class PlatformPhase(enum.StrEnum):
    """Life of a platform."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


class ChildPhase(enum.StrEnum):
    """Life of one supervised process."""

    WAITING = "waiting"  # not started yet
    STARTING = "starting"  # runs, not ready since it was started
    READY = "ready"  # was ready since it was started; `smile status` asks how it is now
    CRASHED = "crashed"  # ended by itself; starts again after a pause
    FAILED = "failed"  # ended by itself too often; stays down
    STOPPED = "stopped"  # ended because it was told to


@dataclass(frozen=True, slots=True)
class ChildState:
    """One supervised process. `last_exit`: how it last ended by itself, kept after a restart."""

    name: str
    address: str
    log: str
    phase: ChildPhase = ChildPhase.WAITING
    pid: int | None = None
    restarts: int = 0
    last_exit: str = ""
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class PlatformState:
    """The platform as its supervisor sees it. `failure` is set where the start failed."""

    data: str
    supervisor_pid: int
    started: datetime
    phase: PlatformPhase
    children: tuple[ChildState, ...]
    failure: str = ""

    @property
    def addresses(self) -> Mapping[str, str]:
        """`host:port` by service name."""
        return {child.name: child.address for child in self.children}

    @property
    def endpoints(self) -> str:
        """The services' addresses as `SMILE_ENDPOINTS` and the SDK take them."""
        return ",".join(
            f"{child.name}={child.address}" for child in self.children if child.name != REDIS
        )


_ADAPTER = TypeAdapter(PlatformState)


def write_state(path: Path, state: PlatformState) -> None:
    """Publish `state`."""
    write_atomically(path, _ADAPTER.dump_json(state, indent=2))


def read_state(path: Path) -> PlatformState | None:
    """The last published state, None where there is none. Raises `DataCorrupted`."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        raise DataCorrupted(
            f"{path} is not a platform's state ({error.error_count()} faults); remove it if no "
            f"platform runs on this directory"
        ) from error
