"""Storage and creator alone, as processes over one object store: what models are kept with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.platforms import QUIET, running
from smile import AsyncClient
from smile.embedded.keys import PlatformSecrets
from smile.embedded.ports import HOST, assign_ports

SERVICES = ("storage", "creator")


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
            address = f"{HOST}:{port}"
            stack.enter_context(running(name, address, environment, logs / f"{name}.log"))
        endpoints = ",".join(f"{name}={HOST}:{port}" for name, port in ports.items())
        yield Appliance(endpoints, secrets.operator_key)
