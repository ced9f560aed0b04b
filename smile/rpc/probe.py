"""Ask a service for its health: `python -m smile.rpc.probe [host:port] [name]`.

For container health checks, which have no shell tools. Without an address it asks the service this
image runs (`SMILE_SERVICE`) at its own port. Exit code 0 means SERVING, 1 anything else.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 2.0


def probe(address: str, name: str = "") -> bool:
    """Whether the named health entry at `address` says SERVING within two seconds."""
    request = health_pb2.HealthCheckRequest(service=name)
    with grpc.insecure_channel(address) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            sys.stderr.write(f"{address}: {error}\n")
            return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def _own_address() -> str:
    service = os.environ.get("SMILE_SERVICE", "").upper()
    return f"127.0.0.1:{os.environ.get(f'SMILE_{service}_PORT', '')}"


def main() -> int:
    address = sys.argv[1] if len(sys.argv) > 1 else _own_address()
    name = sys.argv[2] if len(sys.argv) > 2 else ""
    return 0 if probe(address, name) else 1


if __name__ == "__main__":
    raise SystemExit(main())
