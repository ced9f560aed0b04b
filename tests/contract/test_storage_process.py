"""Storage as its own process: what it says of itself, and what survives its death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from smile.rpc.keys import KeyKind, KeyParts, new_key
from smile.rpc.probe import Health, probe
from smile.store.objects import open_store
from smile.v1 import storage_pb2
from tests.contract.storage_world import StorageWorld

pytestmark = pytest.mark.asyncio
START_S_MAX = 30.0
POLL_S = 0.1
SERVICE_KEY = new_key(KeyKind.SERVICE).text
OPERATOR_KEY = new_key(KeyKind.OPERATOR).text


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for `condition`, with patience that ends."""
    for _ in range(int(START_S_MAX / POLL_S)):
        if await condition():
            return
        await asyncio.sleep(POLL_S)
    raise TimeoutError(f"not within {START_S_MAX} s")


@dataclass
class Process:
    """A running storage process, where it listens, and what it has logged."""

    child: asyncio.subprocess.Process
    address: str = ""
    lines: list[dict[str, object]] = field(default_factory=list)

    async def follow(self) -> None:
        assert self.child.stderr is not None
        async for line in self.child.stderr:
            event = json.loads(line)
            self.lines.append(event)
            if event["event"] == "serving":
                self.address = str(event["address"])

    async def health(self, *, ready: bool) -> Health:
        """Its health once it is as wanted, or at the end of patience."""
        found = Health(live=False, ready=False)

        async def wanted() -> bool:
            nonlocal found
            if self.address:
                found = await probe(self.address)
            return found.live and found.ready is ready

        await until(wanted)
        return found

    @property
    def whys(self) -> list[str]:
        """Why checks failed."""
        return [str(line["why"]) for line in self.lines if "why" in line]

    def world(self) -> StorageWorld:
        return StorageWorld(self.address, open_store("memory://"), OPERATOR_KEY, SERVICE_KEY)


def environment(url: str, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "SMILE_SERVICE_KEY": SERVICE_KEY,
        "SMILE_STORAGE_OPERATOR_KEY_SHA256": KeyParts.parse(OPERATOR_KEY).secret_sha256,
        "SMILE_STORAGE_PORT": "0",
        "SMILE_STORAGE_URL": url,
        **more,
    }


@asynccontextmanager
async def running(variables: dict[str, str]) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.storage", env=variables, stderr=asyncio.subprocess.PIPE
    )
    process = Process(child)
    following = asyncio.create_task(process.follow())
    try:
        yield process
    finally:
        if child.returncode is None:
            child.terminate()
        async with asyncio.timeout(START_S_MAX):
            await child.wait()
            await following


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    variables = environment(f"file://{tmp_path}/objects")
    async with running(variables) as first:
        assert await first.health(ready=True) == Health(live=True, ready=True)
        world = first.world()
        await world.create_tenant("acme")
        made = await world.commit()
        key = world.keys["acme"]
        await world.close()
        first.child.send_signal(signal.SIGKILL)
    async with running(variables) as second:
        await second.health(ready=True)
        world = second.world()
        request = storage_pb2.GetVplmRecordRequest(name=made.name)
        (found,) = await world.call("StorageService.GetVplm", request, SERVICE_KEY, "acme")
        assert found == made
        usage = storage_pb2.GetUsageRequest(name="tenants/-")
        (counted,) = await world.call("StorageService.GetUsage", usage, key)
        assert counted.vplm_count == 1
        await world.close()
    assert second.child.returncode == 0


async def test_a_directory_that_cannot_be_used_is_told_until_it_can(tmp_path: Path) -> None:
    blocker = tmp_path / "objects"
    variables = environment(f"file://{blocker}/below")
    blocker.write_text("a file where a directory should be")
    async with running(variables) as process:
        assert await process.health(ready=False) == Health(live=True, ready=False)

        async def told() -> bool:
            return bool(process.whys)

        await until(told)
        assert str(blocker) in process.whys[0]
        blocker.unlink()
        assert (await process.health(ready=True)).ready


async def test_s3_that_is_away_keeps_the_process_alive_and_unready() -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = environment(
        "s3://bucket",
        SMILE_STORAGE_S3_ENDPOINT=f"http://{host}:{port}",
        SMILE_STORAGE_S3_ACCESS_KEY="access",
        SMILE_STORAGE_S3_SECRET_KEY="do-not-log-this",
    )
    async with running(variables) as process:
        await process.health(ready=True)  # it made the bucket
        world = process.world()
        await world.create_tenant("acme")
        assert (await world.commit()).latest_version == 1
        await world.close()
        server.stop()
        assert await process.health(ready=False) == Health(live=True, ready=False)
    assert "bucket" in str(process.whys)
    assert "do-not-log-this" not in str(process.lines)


async def test_a_port_in_use_ends_the_process(tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    variables = {**environment(f"file://{tmp_path}"), "SMILE_STORAGE_PORT": str(port)}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.storage", env=variables, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await child.communicate()
    taken.close()
    await taken.wait_closed()
    assert child.returncode == 69
    assert str(port) in stderr.decode()
