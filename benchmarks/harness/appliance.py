"""Storage and creator alone, as processes over one object store: what models are kept with."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.platforms import QUIET
from smile import AsyncClient
from smile.embedded.child import last_lines, leashed
from smile.embedded.keys import PlatformSecrets
from smile.embedded.ports import HOST, assign_ports
from smile.errors import FailedPrecondition
from smile.rpc.probe import probe

SERVICES = ("storage", "creator")
START_S_MAX = 120.0
STOP_S_MAX = 30.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Store:
    """An object store and how storage reaches it.

    Attributes:
        url: `file:` or `s3:`.
        settings: Environment variables of storage for it.
    """

    url: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Appliance:
    """Running storage and creator."""

    endpoints: str
    operator_key: str

    def client(self, key: str) -> AsyncClient:
        return AsyncClient(key, endpoints=self.endpoints)


@contextmanager
def appliance(store: Store, backbones: str, logs: Path) -> Iterator[Appliance]:
    """Storage and creator on free ports, ready, ended on leaving.

    Raises:
        FailedPrecondition: one ended or was not ready in time; the message has its log's end.
    """
    secrets = PlatformSecrets.new()
    ports = assign_ports(SERVICES, 0)
    environment = {
        **os.environ,
        **QUIET,
        **store.settings,
        **{f"SMILE_{name.upper()}_PORT": str(port) for name, port in ports.items()},
        **{f"SMILE_{name.upper()}_HOST": HOST for name in ports},
        "SMILE_SERVICE_KEY": secrets.service_key,
        "SMILE_STORAGE_ADDRESS": f"{HOST}:{ports['storage']}",
        "SMILE_STORAGE_URL": store.url,
        "SMILE_STORAGE_OPERATOR_KEY_SHA256": secrets.operator_key_sha256,
        "SMILE_BACKBONES": backbones,
    }
    with ExitStack() as stack:
        for name, port in ports.items():
            stack.enter_context(_service(name, port, environment, logs / f"{name}.log"))
        endpoints = ",".join(f"{name}={HOST}:{port}" for name, port in ports.items())
        yield Appliance(endpoints, secrets.operator_key)


@contextmanager
def _service(name: str, port: int, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    with log.open("ab") as out:
        process = subprocess.Popen(
            leashed((sys.executable, "-P", "-m", f"services.{name}")),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        until = time.monotonic() + START_S_MAX
        while not asyncio.run(probe(f"{HOST}:{port}")).ready:
            if process.poll() is not None or time.monotonic() > until:
                raise FailedPrecondition(f"{name} is not ready; its log: {last_lines(log)}")
            time.sleep(POLL_S)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
