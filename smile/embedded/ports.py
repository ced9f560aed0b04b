"""Which port each process listens on, and whether it can be had."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Mapping

import psutil

from smile.errors import FailedPrecondition, InvalidArgument

HOST = "127.0.0.1"
PORT_MIN = 1024
PORT_MAX = 65_535
PORT_IN_USE = "PORT_IN_USE"
FREE_MIN = 20_000
FREE_COUNT = 12_000  # Linux takes ports of outgoing connections from 32,768
TRIES_MAX = 100


def assign_ports(names: tuple[str, ...], base: int) -> dict[str, int]:
    """`base`, `base + 1`, ... in the order of `names`; base 0 means any free ports.

    Raises:
        InvalidArgument: a port would be out of range.
    """
    if base == 0:
        return _free_ports(names)
    last = base + len(names) - 1
    if base < PORT_MIN or last > PORT_MAX:
        raise InvalidArgument(
            f"--port-base must be 0 (any free ports) or from {PORT_MIN} to "
            f"{PORT_MAX - len(names) + 1}, got {base}"
        )
    return {name: base + index for index, name in enumerate(names)}


def check_ports(ports: Mapping[str, int]) -> None:
    """Raise `FailedPrecondition` naming every port that is in use, for what, and by whom."""
    taken = [
        f"port {port} (for {name}) is in use{_holder(port)}"
        for name, port in ports.items()
        if not _is_free(port)
    ]
    if taken:
        raise FailedPrecondition(
            "; ".join(taken) + "; choose other ports with --port-base", reason=PORT_IN_USE
        )


def _free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """Below the range from which outgoing connections take theirs: none takes a port of ours while
    its service is being started, or started again."""
    for _ in range(TRIES_MAX):
        base = FREE_MIN + secrets.randbelow(FREE_COUNT)
        ports = {name: base + index for index, name in enumerate(names)}
        if all(_is_free(port) for port in ports.values()):
            return ports
    raise FailedPrecondition(
        f"no {len(names)} free ports in a row from {FREE_MIN} to {FREE_MIN + FREE_COUNT} in "
        f"{TRIES_MAX} tries",
        reason=PORT_IN_USE,
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _holder(port: int) -> str:
    """` by process 12 (python)` where this user may know it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN and connection.pid
            if listening and tuple(connection.laddr)[1:] == (port,):
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
