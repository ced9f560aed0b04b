"""The real platform, every service a process, and further processors beside it to compare."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness.command import Run
from smile import AsyncClient
from smile.backbone_config import BACKBONES_DEFAULT
from smile.embedded import PlatformOptions, PlatformState, start, stop
from smile.embedded.child import last_lines, leashed
from smile.embedded.directory import DataDirectory
from smile.embedded.keys import load_secrets
from smile.embedded.ports import HOST, assign_ports
from smile.embedded.processes import rss_bytes
from smile.embedded.services import NAMES, PlatformConfig, environment_of
from smile.errors import FailedPrecondition
from smile.limits import GIB
from smile.rpc.probe import probe

Settings = Mapping[str, str]

START_S_MAX = 120.0
STOP_S_MAX = 30.0
QUIET: Settings = {"SMILE_LOG_LEVEL": "warning"}
ROOMY: Settings = {**QUIET, "SMILE_PROCESSOR_HOST_BYTES_MAX": str(8 * GIB)}


@dataclass(frozen=True, slots=True)
class ProcessorProcess:
    """One processor: where it listens, and its process."""

    endpoints: str
    pid: int

    def client(self, key: str) -> AsyncClient:
        """A client that asks this processor. It opens its channels when first used."""
        return AsyncClient(key, endpoints=self.endpoints)

    @property
    def rss_bytes(self) -> int:
        return rss_bytes(self.pid)

    @property
    def cpu_s(self) -> float:
        """Processor time it has used since its start."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


@dataclass(frozen=True, slots=True)
class Platform:
    """A running platform."""

    data: Path
    state: PlatformState

    @property
    def operator_key(self) -> str:
        return load_secrets(DataDirectory.at(self.data).secrets_file).operator_key

    @property
    def processor(self) -> ProcessorProcess:
        """The platform's own."""
        return self.service("processor")

    def service(self, name: str) -> ProcessorProcess:
        """One of the platform's services, by name."""
        child = next(child for child in self.state.children if child.name == name)
        assert child.pid is not None, "a running platform's service has a process"
        return ProcessorProcess(self.state.endpoints, child.pid)

    @property
    def rss_bytes(self) -> int:
        """Of all processes; pages that they share count once for each."""
        return rss_bytes(self.state.supervisor_pid)

    @contextmanager
    def another_processor(self, name: str, settings: Settings) -> Iterator[ProcessorProcess]:
        """One more processor on the same storage, ready, and ended on leaving.

        Raises:
            FailedPrecondition: it ended or was not ready in time; the message has its log's end.
        """
        (port,) = assign_ports(("processor",), 0).values()
        log = DataDirectory.at(self.data).log(f"processor-{name}")
        environment = {**self._environment(), **settings, "SMILE_PROCESSOR_PORT": str(port)}
        with running("processor", f"{HOST}:{port}", environment, log) as process:
            yield ProcessorProcess(_with_processor(self.state, f"{HOST}:{port}"), process.pid)

    def _environment(self) -> dict[str, str]:
        """What the platform's own services were started with."""
        directory = DataDirectory.at(self.data)
        ports = {name: int(self.state.addresses[name].rpartition(":")[2]) for name in NAMES}
        config = PlatformConfig(
            data=directory.root,
            ports=ports,
            workers=1,
            backbones=BACKBONES_DEFAULT,
            start_s_max=START_S_MAX,
            lock_fileno=0,
        )
        inherited = {**os.environ, **QUIET}
        return environment_of(config, load_secrets(directory.secrets_file), inherited)


@contextmanager
def platform(data: Path, settings: Settings = ROOMY) -> Iterator[Platform]:
    """A platform on free ports over `data`, which ends with this process even if that is killed."""
    try:
        with _environment(settings):
            state = start(PlatformOptions(data=data, port_base=0, leashed=True))
        yield Platform(data, state)
    finally:
        stop(data)


@contextmanager
def platform_of(run: Run, settings: Settings = ROOMY) -> Iterator[Platform]:
    """A platform in a folder of its own that is removed afterwards, or on the run's fleet."""
    with ExitStack() as stack:
        folder = run.fleet
        if folder is None:
            made = tempfile.TemporaryDirectory(prefix="smile-bench-")
            folder = Path(stack.enter_context(made))
        run.say("starting the platform: redis, storage, creator, trainer, processor")
        yield stack.enter_context(platform(folder / "data", settings))


@contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """Services read their settings from the environment they inherit."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def running(
    service: str, address: str, environment: Settings, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A service as a process that ends with this one, ready at `address`, ended on leaving.

    Raises:
        FailedPrecondition: it ended or was not ready in time; the message has its log's end.
    """
    with log.open("ab") as out:
        process = subprocess.Popen(
            leashed((sys.executable, "-P", "-m", f"services.{service}")),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        _await_ready(process, service, address, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes], service: str, address: str, log: Path) -> None:
    until = time.monotonic() + START_S_MAX
    with ThreadPoolExecutor(1) as beside:  # whoever waits may run an event loop of its own
        while not beside.submit(asyncio.run, probe(address)).result().ready:
            if process.poll() is not None or time.monotonic() > until:
                raise FailedPrecondition(f"the {service} is not ready; its log: {last_lines(log)}")
            time.sleep(0.2)


def _with_processor(state: PlatformState, address: str) -> str:
    entries = (entry.partition("=") for entry in state.endpoints.split(","))
    return ",".join(
        f"{name}={address if name == 'processor' else there}" for name, _, there in entries
    )
