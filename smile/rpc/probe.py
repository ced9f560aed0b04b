"""Asking a service how it is, from outside: one connection, two questions.

`python -m smile.rpc.probe [host:port]` is the health check of the container images, which have no
shell tools: exit code 0 means ready. Without an address it asks the service of its own image
(`SMILE_SERVICE`) at that service's port.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from smile.rpc.health import LIVENESS


@dataclass(frozen=True, slots=True)
class Health:
    """What a service says about itself. Not live means that it does not answer."""

    live: bool
    ready: bool


async def probe(address: str, *, timeout_s: float = 2.0) -> Health:
    """The health of the service at `address`; never raises for one that is away."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        live, ready = await asyncio.gather(
            _serving(stub, LIVENESS, timeout_s), _serving(stub, "", timeout_s)
        )
    return Health(live=live, ready=live and ready)


async def _serving(stub: health_pb2_grpc.HealthStub, service: str, timeout_s: float) -> bool:
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        response = await stub.Check(request, timeout=timeout_s)
    except grpc.aio.AioRpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def _own_address() -> str:
    service = os.environ.get("SMILE_SERVICE", "").upper()
    return f"127.0.0.1:{os.environ.get(f'SMILE_{service}_PORT', '')}"


def main() -> int:
    """Exit code 0 if the service is ready, else 1 with a line on standard error."""
    address = sys.argv[1] if len(sys.argv) > 1 else _own_address()
    health = asyncio.run(probe(address))
    if not health.ready:
        state = "live, but not ready" if health.live else "not live"
        sys.stderr.write(f"{address} is {state}\n")
    return 0 if health.ready else 1


if __name__ == "__main__":
    raise SystemExit(main())
