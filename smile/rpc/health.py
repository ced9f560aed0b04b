"""Health: ready when every declared check is, and `liveness` whatever they say.

A dependency that is away makes a service unready, so that nobody sends to it; it must never get it
restarted, which is why `liveness` is a name of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from smile.logs import get_logger

LIVENESS = "liveness"
STARTING = "starting"


@dataclass(frozen=True, slots=True)
class _Probe:
    check: str
    probe: Callable[[], Awaitable[object]]
    every_s: float
    timeout_s: float


class Readiness:
    """What this process needs before it can serve, by name. For use on its event loop only.

    Args:
        checks: Checks that begin unready; someone must call `set_ready` for each, or `watch` it.
    """

    def __init__(self, *checks: str) -> None:
        self._unready: dict[str, str] = dict.fromkeys(checks, STARTING)
        self._notes: dict[str, str] = {}
        self._probes: list[_Probe] = []
        self._changed = asyncio.Event()
        self.draining = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether requests should come here."""
        return not self._unready and not self.draining.is_set()

    @property
    def unready(self) -> dict[str, str]:
        """The checks that fail, and why."""
        return dict(self._unready)

    def expect(self, check: str) -> None:
        """Be unready until `check` passes."""
        self._unready.setdefault(check, STARTING)
        self._notify()

    def set_ready(self, check: str) -> None:
        """`check` passes."""
        if self._unready.pop(check, None) is not None:
            get_logger().info("check passed", check=check, waiting_for=sorted(self._unready))
            self._notify()

    def set_unready(self, check: str, why: str) -> None:
        """`check` fails."""
        if self._unready.get(check) != why:
            get_logger().warning("check failed", check=check, why=why)
            self._unready[check] = why
            self._notify()

    def note(self, check: str, why: str) -> None:
        """Something is amiss that keeps nobody from sending requests here; empty: no longer. Health
        tells it to those who ask for `check` by name.
        """
        if self._notes.get(check) != why:
            if why or check in self._notes:
                get_logger().info("noted", check=check, why=why)
            self._notes[check] = why
            self._notify()

    def amiss(self, check: str) -> str | None:
        """Why what was noted as `check` is amiss, empty where it is not; None: never noted."""
        return self._notes.get(check)

    def watch(
        self,
        check: str,
        probe: Callable[[], Awaitable[object]],
        *,
        every_s: float = 2.0,
        timeout_s: float = 2.0,
    ) -> None:
        """Let `check` follow `probe`, tried every `every_s` seconds; raising is failing."""
        self.expect(check)
        self._probes.append(_Probe(check, probe, every_s, timeout_s))

    async def run_probes(self) -> None:
        """Try the watched checks until cancelled."""
        async with asyncio.TaskGroup() as group:
            for probe in self._probes:
                group.create_task(self._follow(probe))

    def drain(self) -> None:
        """Be unready from now on, whatever checks say."""
        self.draining.set()
        self._notify()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change; take it before looking, so that no change is missed."""
        return self._changed

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _follow(self, probe: _Probe) -> None:
        while True:
            try:
                async with asyncio.timeout(probe.timeout_s):
                    await probe.probe()
            except Exception as error:
                self.set_unready(probe.check, str(error) or type(error).__name__)
            else:
                self.set_ready(probe.check)
            await asyncio.sleep(probe.every_s)


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """`grpc.health.v1.Health` over a `Readiness`.

    Unlike grpcio's, its watches end when draining begins, so that they do not hold up the shutdown.
    """

    def __init__(self, readiness: Readiness, services: Sequence[str]) -> None:
        self._readiness = readiness
        self._names = {"", *services}

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} is served here"
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last = None
        while True:
            changed = self._readiness.changed
            if (status := self._status(request.service)) != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            elif self._readiness.draining.is_set():
                return
            else:
                await changed.wait()

    def _status(self, service: str) -> int:
        states = health_pb2.HealthCheckResponse
        if service == LIVENESS:
            return int(states.SERVING)
        if (amiss := self._readiness.amiss(service)) is not None:
            return int(states.NOT_SERVING if amiss else states.SERVING)
        if service not in self._names:
            return int(states.SERVICE_UNKNOWN)
        return int(states.SERVING if self._readiness.ready else states.NOT_SERVING)
