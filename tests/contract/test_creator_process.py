"""The creator as a process: what it says at start, and without storage."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import smile
from smile.model.toy import write_toy_backbone
from smile.rpc.keys import KeyKind, new_key
from smile.rpc.probe import Health, probe

COMMAND = [sys.executable, "-m", "services.creator"]
SERVICE_KEY = new_key(KeyKind.SERVICE).text
TENANT_KEY = f"smile_acme_k{'a' * 15}_{'s' * 43}"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment(folder: Path, port: int) -> dict[str, str]:
    write_toy_backbone(folder / "toy")
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "SMILE_SERVICE_KEY": SERVICE_KEY,
        "SMILE_CREATOR_PORT": str(port),
        "SMILE_STORAGE_ADDRESS": "127.0.0.1:1",
        "SMILE_BACKBONES": f"toy=dir:{folder / 'toy'}",
    }


@contextmanager
def running(variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(COMMAND, env=variables, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def log_until(process: subprocess.Popen[str], words: str) -> str:
    """What the process has logged by the line with these words; the test's timeout bounds it."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"the process ended without saying '{words}': {''.join(lines)}")


async def health_within(port: int, seconds: float) -> Health:
    """The health once the process is live."""
    end = time.monotonic() + seconds
    while True:
        found = await probe(f"127.0.0.1:{port}", timeout_s=1.0)
        if found.live or time.monotonic() > end:
            return found


@pytest.mark.asyncio
async def test_without_storage_it_lives_unready_and_refuses_with_unavailable(
    tmp_path: Path,
) -> None:
    port = free_port()
    with running(environment(tmp_path, port)) as process:
        assert await health_within(port, 20) == Health(live=True, ready=False)
        endpoints = f"creator=127.0.0.1:{port}"
        async with smile.AsyncClient(TENANT_KEY, endpoints=endpoints) as client:
            with pytest.raises(smile.Unavailable):
                await client.backbones(timeout=20)
        log = await asyncio.to_thread(log_until, process, "storage at 127.0.0.1:1 does not answer")
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=15)
        assert process.returncode == 0
        assert SERVICE_KEY not in log + rest and TENANT_KEY not in log + rest


def test_bad_settings_are_told_at_once_and_end_it_with_78(tmp_path: Path) -> None:
    variables = {**environment(tmp_path, 0), "SMILE_CREATOR_PORT": "x", "SMILE_BACKBONES": "?"}
    del variables["SMILE_SERVICE_KEY"]
    ended = subprocess.run(COMMAND, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 78
    for name in ("SMILE_CREATOR_PORT", "SMILE_BACKBONES", "SMILE_SERVICE_KEY"):
        assert name in ended.stderr


def test_a_port_in_use_ends_it_with_69(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            COMMAND,
            env=environment(tmp_path, port),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    assert ended.returncode == 69
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
