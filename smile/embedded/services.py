"""The platform's processes: their order, commands and environment."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from smile.embedded.child import ChildSpec
from smile.embedded.directory import DataDirectory
from smile.embedded.keys import PlatformSecrets
from smile.embedded.ports import HOST
from smile.embedded.processes import MARK
from smile.embedded.redis_server import ping, redis_url, server_program, write_config
from smile.embedded.state import REDIS
from smile.rpc.probe import Health, probe

SERVICES = ("storage", "creator", "trainer", "processor")
NAMES = (*SERVICES, REDIS)
STAGES = ((REDIS,), ("storage",), ("creator", "trainer", "processor"))
SUPERVISOR = "supervisor"
_NOT_FOR_CHILDREN = ("SMILE_API_KEY", "SMILE_OPERATOR_KEY", "SMILE_ENDPOINTS")


_SIGNING = {"SMILE_STORAGE_SIGNING_KEYS", "SMILE_STORAGE_SIGNING_KEYS_FILE"}


@dataclass(frozen=True, slots=True)
class PlatformConfig:
    """Everything a supervisor needs to know; it comes as JSON from who starts it.

    Attributes:
        data: The data directory, absolute.
        ports: By name of process, all of `NAMES`.
        workers: Processes that train.
        backbones: Comma-separated `name=kind:location`.
        start_s_max: How long the start may take, in seconds.
        lock_fileno: The inherited lock on the data directory.
    """

    data: Path
    ports: Mapping[str, int]
    workers: int
    backbones: str
    start_s_max: float
    lock_fileno: int


def child_specs(
    config: PlatformConfig, secrets: PlatformSecrets, inherited: Mapping[str, str]
) -> list[list[ChildSpec]]:
    """The processes in stages; writes Redis's configuration. Raises `FailedPrecondition`."""
    directory = DataDirectory(config.data)
    environment = environment_of(config, secrets, inherited)
    redis_config = write_config(directory, config.ports[REDIS], secrets.redis_password)
    commands: dict[str, tuple[str, ...]] = {
        # -P: a folder named `services` where the user stands must not be taken for ours
        name: (sys.executable, "-P", "-m", f"services.{name}")
        for name in SERVICES
    }
    commands[REDIS] = (server_program(), str(redis_config))
    probes: dict[str, Callable[[], Awaitable[Health]]] = {
        name: partial(probe, f"{HOST}:{config.ports[name]}") for name in SERVICES
    }
    probes[REDIS] = partial(ping, config.ports[REDIS], secrets.redis_password)
    return [
        [
            ChildSpec(
                name=name,
                address=f"{HOST}:{config.ports[name]}",
                command=commands[name],
                environment=environment,
                folder=directory.run,
                log=directory.log(name),
                probe=probes[name],
            )
            for name in stage
        ]
        for stage in STAGES
    ]


def environment_of(
    config: PlatformConfig, secrets: PlatformSecrets, inherited: Mapping[str, str]
) -> dict[str, str]:
    """One environment for all: what was inherited, but for credentials, and then our settings."""
    kept = {name: value for name, value in inherited.items() if name not in _NOT_FOR_CHILDREN}
    signing = {} if _SIGNING & kept.keys() else _signing(DataDirectory(config.data))
    ports = {f"SMILE_{name.upper()}_PORT": str(config.ports[name]) for name in SERVICES}
    hosts = {f"SMILE_{name.upper()}_HOST": HOST for name in SERVICES}
    return {
        **signing,
        **kept,
        **ports,
        **hosts,
        MARK: str(config.data),
        "SMILE_SERVICE_KEY": secrets.service_key,
        "SMILE_STORAGE_ADDRESS": f"{HOST}:{config.ports['storage']}",
        "SMILE_STORAGE_URL": DataDirectory(config.data).objects.as_uri(),
        "SMILE_STORAGE_OPERATOR_KEY_SHA256": secrets.operator_key_sha256,
        "SMILE_STORAGE_REDIS_URL": redis_url(config.ports[REDIS], secrets.redis_password),
        "SMILE_REDIS_URL": redis_url(config.ports[REDIS], secrets.redis_password),
        "SMILE_BACKBONES": config.backbones,
        "SMILE_TRAINER_WORKERS": str(config.workers),
    }


def _signing(directory: DataDirectory) -> dict[str, str]:
    """How records are signed, where the user has no keys of their own for that."""
    settings = {"SMILE_STORAGE_SIGNING_KEYS_FILE": str(directory.signing_keys)}
    if directory.unsigned_accepted.exists():
        settings["SMILE_STORAGE_UNSIGNED"] = "accept"
    return settings
