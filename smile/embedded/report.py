"""How a platform is: processes, health and memory, asked now."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from smile.embedded import processes
from smile.embedded.directory import DataDirectory
from smile.embedded.keys import load_secrets
from smile.embedded.launch import last_failure, running
from smile.embedded.redis_server import ping
from smile.embedded.services import SUPERVISOR
from smile.embedded.state import REDIS, ChildPhase, ChildState, PlatformState
from smile.rpc.probe import Health, probe

_AWAY = Health(live=False, ready=False)


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """One process. `last_exit`: how it last ended by itself; `rss_bytes`: its children too."""

    name: str
    phase: ChildPhase
    address: str
    pid: int | None
    live: bool
    ready: bool
    restarts: int
    last_exit: str
    rss_bytes: int
    log: str


@dataclass(frozen=True, slots=True)
class PlatformReport:
    """The platform on one data directory; no services where it does not run."""

    data: str
    running: bool
    services: tuple[ServiceReport, ...] = ()
    failure: str = ""

    @property
    def ready(self) -> bool:
        """Whether every process runs and says that it is ready."""
        return self.running and all(service.ready for service in self.services)

    @property
    def rss_bytes(self) -> int:
        """Resident memory of all processes, in bytes. Pages they share count once for each."""
        return sum(service.rss_bytes for service in self.services)


async def report(data: Path) -> PlatformReport:
    """Ask every process of the platform on `data`. Raises `DataCorrupted`."""
    directory = DataDirectory.at(data)
    state = running(data)
    if state is None:
        return PlatformReport(str(directory.root), running=False, failure=last_failure(data))
    healths = await asyncio.gather(*(_health(directory, child) for child in state.children))
    services = [
        _service(child, health) for child, health in zip(state.children, healths, strict=True)
    ]
    return PlatformReport(
        str(directory.root),
        running=True,
        services=(_supervisor(directory, state), *services),
        failure=state.failure,
    )


async def _health(directory: DataDirectory, child: ChildState) -> Health:
    if child.pid is None:
        return _AWAY
    if child.name == REDIS:
        port = int(child.address.rpartition(":")[2])
        return await ping(port, load_secrets(directory.secrets_file).redis_password)
    return await probe(child.address)


def _service(child: ChildState, health: Health) -> ServiceReport:
    return ServiceReport(
        name=child.name,
        phase=child.phase,
        address=child.address,
        pid=child.pid,
        live=health.live,
        ready=health.ready,
        restarts=child.restarts,
        last_exit=child.last_exit,
        rss_bytes=processes.rss_bytes(child.pid) if child.pid else 0,
        log=child.log,
    )


def _supervisor(directory: DataDirectory, state: PlatformState) -> ServiceReport:
    alive = processes.is_alive(state.supervisor_pid)
    return ServiceReport(
        name=SUPERVISOR,
        phase=ChildPhase.READY if alive else ChildPhase.FAILED,
        address="",
        pid=state.supervisor_pid,
        live=alive,
        ready=alive,
        restarts=0,
        last_exit="",
        rss_bytes=processes.rss_bytes(state.supervisor_pid, below=False) if alive else 0,
        log=str(directory.log(SUPERVISOR)),
    )
