"""One way to serve: health, reflection, limits, the guard around handlers, and an orderly end.

async def serve_creator(settings: CreatorSettings) -> None:
    ...build collaborators...
    await serve([Service(servicer, add_..., "smile.v1.CreatorService")], settings=settings, ...)

run(serve_creator(load(CreatorSettings)))
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from smile.config import ServiceSettings, misspelt
from smile.logs import get_logger
from smile.rpc.access import declared_access
from smile.rpc.auth import Authenticator
from smile.rpc.budget import CallBytes
from smile.rpc.health import HealthServicer, Readiness
from smile.rpc.interceptors import Guard
from smile.rpc.windows import WINDOWS

__all__ = [
    "PortUnavailable",
    "Readiness",
    "RunningServer",
    "Service",
    "build_server",
    "run",
    "serve",
]

EXIT_UNAVAILABLE = 69
PING_INTERVAL_MIN_MS = (
    30_000  # half of what clients keep alive with; more often is answered with GOAWAY
)
CONNECTION_AGE_MS_MAX = 600_000
CONNECTION_GRACE_MS = 600_000
HEALTH_RPCS_SPARE = 64


class PortUnavailable(Exception):
    """The address to listen on cannot be had."""


@dataclass(frozen=True, slots=True)
class Service:
    """A servicer, the generated function that adds it to a server, and its full name."""

    servicer: object
    add: Callable[[Any, Any], None]
    full_name: str


class RunningServer:
    """A server bound to its port; `start` it, and `stop` it in order."""

    def __init__(
        self, server: grpc.aio.Server, port: int, settings: ServiceSettings, readiness: Readiness
    ) -> None:
        self._server = server
        self._settings = settings
        self._readiness = readiness
        self._probes: asyncio.Task[None] | None = None
        self.port = port

    @property
    def address(self) -> str:
        """`host:port` for clients on this machine."""
        return _address(self._settings.host, self.port)

    async def start(self) -> None:
        """Take calls and begin to follow the watched checks."""
        await self._server.start()
        self._probes = asyncio.create_task(self._readiness.run_probes())
        get_logger().info("serving", address=self.address)

    async def stop(self, grace_s: float | None = None) -> None:
        """Say NOT_SERVING, take no new calls, let those inside end; cut what outlasts it."""
        self._readiness.drain()
        await asyncio.sleep(0)  # watchers of health hear it while their connection is whole
        await self._server.stop(self._settings.drain_s if grace_s is None else grace_s)
        if self._probes is not None:
            self._probes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probes
            self._probes = None
        get_logger().info("stopped", address=self.address)


def build_server(
    services: Sequence[Service],
    *,
    settings: ServiceSettings,
    authenticator: Authenticator,
    readiness: Readiness,
) -> RunningServer:
    """A server of `services`, bound to `settings.host:settings.port` (0: any free port).

    Raises:
        AccessUndeclared: an RPC of theirs does not say who may call it.
        PortUnavailable: the address is in use or not this machine's.
    """
    names = [service.full_name for service in services]
    guard = Guard(
        declared_access(names),
        authenticator,
        settings.concurrent_rpcs_max,
        CallBytes(settings.call_bytes_max),
    )
    server = grpc.aio.server(
        options=_options(settings),
        maximum_concurrent_rpcs=2 * settings.concurrent_rpcs_max + HEALTH_RPCS_SPARE,
    )
    for service in services:
        service.add(service.servicer, guard)
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(readiness, names), guard)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    listed = reflection.aio.ReflectionServicer([*names, health_name, reflection.SERVICE_NAME])
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(listed, guard)
    server.add_generic_rpc_handlers((guard,))
    return RunningServer(server, _bind(server, settings), settings, readiness)


async def serve(
    services: Sequence[Service],
    *,
    settings: ServiceSettings,
    authenticator: Authenticator,
    readiness: Readiness,
    lifespan: AbstractAsyncContextManager[object] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the drain short.

    `lifespan` is entered once the port answers (unready until then) and left after the last call
    ended. A port that cannot be had ends the process with exit code 69 and one sentence.
    """
    readiness.expect("start")
    for name, meant in misspelt(type(settings)).items():
        get_logger().warning("no such setting", variable=name, meant=meant)
    try:
        server = build_server(
            services, settings=settings, authenticator=authenticator, readiness=readiness
        )
    except PortUnavailable as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EXIT_UNAVAILABLE) from None
    signals = _Signals()
    with signals:
        await server.start()
        try:
            async with lifespan or contextlib.nullcontext():
                readiness.set_ready("start")
                await signals.first.wait()
                await _drain(server, signals)
        finally:
            await server.stop(0)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` to its end, on uvloop where it is installed."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


class _Signals(contextlib.AbstractContextManager["_Signals"]):
    """Counts SIGTERM and SIGINT while entered."""

    _NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def __enter__(self) -> _Signals:
        for number in self._NUMBERS:
            asyncio.get_running_loop().add_signal_handler(number, self._received, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._NUMBERS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _received(self, number: signal.Signals) -> None:
        get_logger().info("signal received", signal=signal.Signals(number).name)
        (self.second if self.first.is_set() else self.first).set()


async def _drain(server: RunningServer, signals: _Signals) -> None:
    draining = asyncio.create_task(server.stop())
    impatient = asyncio.create_task(signals.second.wait())
    await asyncio.wait({draining, impatient}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        await server.stop(0)
    impatient.cancel()
    await draining


def _options(settings: ServiceSettings) -> list[tuple[str, int]]:
    return [
        *WINDOWS,
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a second server on a port must fail, not share it
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS_MAX),
        ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
    ]


def _bind(server: grpc.aio.Server, settings: ServiceSettings) -> int:
    address = _address(settings.host, settings.port)
    try:
        _check_free(settings.host, settings.port)
        return server.add_insecure_port(address)
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise PortUnavailable(
            f"cannot listen on {address}: {(why or 'the address cannot be had').lower()}"
        ) from error


def _check_free(host: str, port: int) -> None:
    """Raise `OSError` where the address cannot be had, before gRPC does so with pages of log."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
