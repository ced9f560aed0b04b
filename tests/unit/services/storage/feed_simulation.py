"""The whole feed in simulated time: real replicas' buses and hubs, a real follower and a real
resolver, over a network, a Redis and a store that are slow, stall, break and come back.

Nothing is decided by a real clock, so a seed tells everything that happens.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

from redis.exceptions import ConnectionError as RedisGone

from services.processor.requests import Asked
from services.processor.resolver import Resolver
from services.storage.feed.bus import Bus, BusTimes
from services.storage.feed.hub import Hub
from services.storage.servicer.changes import ChangeFeedServicer
from smile.errors import Aborted, Unavailable
from smile.model.specs import DType, HeadSpec, ModuleSpec, PetKind, PetSpec, Task
from smile.names import VersionName, VplmName
from smile.resources import SERVING, VersionOrigin, VplmVersion
from smile.rpc.changes import ChangeFeed
from smile.rpc.freshness import Freshness, Lookup
from smile.store.objects import Object

TTL_S = 2.0
TIMES = BusTimes(doubt_s=10.0)
WRITE_S_MAX = 8.0
SPEC = ModuleSpec(
    "toy", "ab" * 32, PetSpec(PetKind.PFEIFFER, 1, rank=2), HeadSpec(Task.EMBEDDING), DType.FLOAT16
)


class _Selector(selectors.SelectSelector):
    """Waits for nothing: time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for nothing"
        self.now += max(timeout, 0.0)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to whatever comes next."""

    def __init__(self) -> None:
        self._jumps = _Selector()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now


def now() -> float:
    return asyncio.get_running_loop().time()


class Redis:
    """One channel. Each subscriber hears all that was said, in order, and late."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.up = True
        self.frozen_until = 0.0
        self.subscriptions: list[Subscription] = []

    def stop(self) -> None:
        self.up = False
        for each in self.subscriptions:
            each.broken = True
        self.subscriptions.clear()


@dataclass
class Subscription:
    """What one client hears. Where its connection breaks, a client may come back by itself."""

    client: Client
    waiting: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    broken: bool = False

    async def subscribe(self, channel: str) -> None:
        await self.client.travel()
        self.client.redis.subscriptions.append(self)
        self.waiting.append((now(), {"type": "subscribe", "data": "1"}))

    def put(self, words: str) -> None:
        earliest = self.waiting[-1][0] if self.waiting else 0.0
        due = max(earliest, now() + self.client.redis.random.expovariate(200.0))
        self.waiting.append((due, {"type": "message", "data": words}))

    async def get_message(self, timeout: float) -> dict[str, str] | None:  # noqa: ASYNC109
        end = now() + timeout
        while True:
            frozen = self.client.redis.frozen_until
            if self.broken or not self.client.reaches:
                if self.client.redis.up and self.client.reaches and self.client.silent:
                    self.broken = False
                    self.waiting.clear()
                    await self.subscribe("again")
                else:
                    raise RedisGone("gone")
            if self.waiting and now() >= max(self.waiting[0][0], frozen):
                return self.waiting.pop(0)[1]
            if now() >= end:
                return None
            await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        if self in self.client.redis.subscriptions:
            self.client.redis.subscriptions.remove(self)


class Client:
    """One replica's way to Redis. With `silent`, it makes its subscriptions anew by itself."""

    def __init__(self, redis: Redis, *, silent: bool) -> None:
        self.redis = redis
        self.silent = silent
        self.reaches = True

    async def travel(self) -> None:
        await asyncio.sleep(self.redis.random.expovariate(500.0))
        if not self.redis.up or not self.reaches:
            raise RedisGone("gone")
        await asyncio.sleep(max(self.redis.frozen_until - now(), 0.0))

    async def publish(self, channel: str, words: str) -> None:
        await self.travel()
        for each in self.redis.subscriptions:
            if not each.broken:
                each.put(words)
        await self.travel()

    def pubsub(self) -> Subscription:
        return Subscription(self)

    async def aclose(self) -> None:
        self.reaches = False


class Store:
    """Where marks are left."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._objects: dict[str, Object] = {}
        self._tags = 0

    async def get(self, key: str) -> Object | None:
        await self._travel()
        found = self._objects.get(key)
        await self._travel()
        return found

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        data = b"".join([chunk async for chunk in chunks])
        await self._travel()
        self._put(key, data)
        await self._travel()

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        await self._travel()
        if (found := self._objects.get(key)) is None or found.etag != etag:
            raise Aborted("changed")
        self._put(key, data)
        return self._objects[key].etag

    def _put(self, key: str, data: bytes) -> None:
        self._tags += 1
        self._objects[key] = Object(data, str(self._tags))

    async def _travel(self) -> None:
        await asyncio.sleep(self._random.expovariate(300.0))


class Truth:
    """What each alias has pointed to. Every move is to a version that was never there before."""

    def __init__(self) -> None:
        self._past: dict[str, list[tuple[float, int]]] = defaultdict(lambda: [(-1.0, 1)])
        self._newest = 1

    def move(self, name: str) -> None:
        self._newest += 1
        self._past[name].append((now(), self._newest))

    def current(self, name: str) -> int:
        return self._past[name][-1][1]

    def held(self, name: str, version: int, start: float, end: float) -> bool:
        """Whether the alias pointed there at some time between."""
        past = self._past[name]
        over = [since for since, _ in past[1:]] + [float("inf")]
        return any(
            number == version and since <= end and ends >= start
            for (since, number), ends in zip(past, over, strict=True)
        )


@dataclass
class Replica:
    """One storage."""

    client: Client
    hub: Hub
    bus: Bus
    running: asyncio.Task[None]
    alive: bool = True
    held: list[object] = field(default_factory=list)


class Call:
    """A stream on its way through a network that keeps the order, and little else."""

    def __init__(self, world: World, replica: Replica) -> None:
        self._world = world
        self._parts = ChangeFeedServicer(replica.hub).WatchChanges(None, None)  # type: ignore[arg-type]
        self._replica = replica
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._pump = asyncio.create_task(self._carry())
        self._due = 0.0
        self.stalled_until = 0.0
        self.lag_s = 0.0
        world.calls.append(self)

    async def _carry(self) -> None:
        try:
            await asyncio.sleep(self._world.random.expovariate(100.0))
            async for part in self._parts:
                sent = max(now(), self.stalled_until) + self._world.random.expovariate(200.0)
                self._due = max(self._due, sent + self.lag_s)
                self._arrived.put_nowait((self._due, part))
        except Unavailable as error:
            self._arrived.put_nowait((self._due, error))
        finally:
            await self._parts.aclose()  # type: ignore[attr-defined]

    async def read(self) -> Any:
        due, part = await self._arrived.get()
        await asyncio.sleep(max(due - now(), 0.0))
        if isinstance(part, Exception):
            raise part
        return part

    def cancel(self) -> bool:
        return self._pump.cancel()

    def kill(self) -> None:
        self._pump.cancel()
        self._arrived.put_nowait((0.0, Unavailable("the connection broke")))


class World:
    """Everything, and what befalls it."""

    def __init__(self, seed: int, replicas: int = 2, vplms: int = 6) -> None:
        self.random = Random(seed)
        self.redis = Redis(self.random)
        self.store = Store(self.random)
        self.truth = Truth()
        self.calls: list[Call] = []
        self.names = [f"tenants/t/vplms/v{number}" for number in range(vplms)]
        self.freshness = Freshness()
        self.wrong: list[str] = []
        self.asked = 0
        self.covered = 0
        self.replicas = [self._replica(number) for number in range(replicas)]
        self.resolver = Resolver(self, ttl_s=TTL_S, clock=now, freshness=self.freshness)
        self._tasks: set[asyncio.Task[None]] = set()

    def _replica(self, number: int) -> Replica:
        client = Client(self.redis, silent=number % 2 == 1)
        hub = Hub(now, TIMES.doubt_s)
        bus = Bus(client, self.store, hub, times=TIMES, clock=now)  # type: ignore[arg-type]
        return Replica(client, hub, bus, asyncio.create_task(bus.run()))

    # What the follower and the resolver call.

    def unary_stream(self, path: str, **how: object) -> Callable[..., Call]:
        """The world is a channel, too: each stream goes to some replica."""
        return lambda request, timeout: Call(self, self.random.choice(self.replicas))

    async def resolve(self, name: VplmName, alias: str) -> VplmVersion:
        await asyncio.sleep(self.random.expovariate(50.0))
        number = self.truth.current(str(name))
        await asyncio.sleep(self.random.expovariate(50.0))
        return VplmVersion(f"{name}/versions/{number}", "ab" * 32, 1, SPEC, VersionOrigin.TRAINING)

    async def fetch(self, name: VplmName, alias: str) -> VplmVersion:
        return await self.resolve(name, alias)

    async def get(self, name: VersionName) -> VplmVersion:
        raise AssertionError("nobody asks for versions here")

    # What happens.

    async def ask(self) -> None:
        name = self.random.choice(self.names)
        start = now()
        known = self.resolver._known.get(asked := Asked(VplmName.parse(name), SERVING))
        old = known is not None and start - known.asked > 2 * TTL_S
        before = self.freshness.lookups[Lookup.ALIAS_REMEMBERED]
        target = await self.resolver.target(asked)
        self.asked += 1
        if old and self.freshness.lookups[Lookup.ALIAS_REMEMBERED] > before:
            self.covered += 1
        if not self.truth.held(name, target.name.number, start - TTL_S, now()):
            self.wrong.append(f"{start:.3f}: {target.name} had not been served for {TTL_S} s")

    async def write(self) -> None:
        """Move an alias through some replica, which may die anywhere on the way."""
        replica = self.random.choice([each for each in self.replicas if each.alive])
        name = self.random.choice(self.names)
        change = replica.bus.changing(name)
        await change.__aenter__()
        if replica not in self.replicas:  # it died before it could begin
            replica.held.append(change)
            return
        landing = self.random.choice((0.01, 0.01, 0.5, WRITE_S_MAX)) * self.random.random()
        if self.random.random() < 0.3:  # it dies; what it sent may still arrive
            replica.held.append(change)
            if self.random.random() < 0.7:
                asyncio.get_running_loop().call_later(landing, self.truth.move, name)
            self._replace(replica)
            return
        await asyncio.sleep(landing)
        if replica not in self.replicas:  # another change's death took it; what was sent arrives
            replica.held.append(change)
            self.truth.move(name)
            return
        self.truth.move(name)
        await asyncio.sleep(self.random.expovariate(200.0))
        await change.__aexit__(None, None, None)

    def _replace(self, replica: Replica) -> None:
        replica.alive = False
        replica.running.cancel()
        replica.client.reaches = False
        replica.hub.close()
        self.replicas[self.replicas.index(replica)] = self._replica(self.random.randrange(2))

    async def trouble(self) -> None:
        """One thing goes wrong for a while."""
        await self.random.choice(
            (self._stop_redis, self._freeze_redis, self._cut_off, *self._of_streams)
        )()

    @property
    def _of_streams(self) -> tuple[Callable[[], Coroutine[Any, Any, None]], ...]:
        return (self._break, self._stall, self._lag)

    async def _stop_redis(self) -> None:
        self.redis.stop()
        await asyncio.sleep(self.random.choice((0.0, 0.2, 5.0, 40.0)))
        self.redis.up = True

    async def _freeze_redis(self) -> None:
        self.redis.frozen_until = now() + self.random.choice((0.3, 2.0, 6.0))

    async def _cut_off(self) -> None:
        """One replica does not reach Redis; the others do."""
        replica = self.random.choice(self.replicas)
        replica.client.reaches = False
        await asyncio.sleep(self.random.choice((0.05, 1.0, 30.0)))
        replica.client.reaches = replica.alive

    async def _break(self) -> None:
        for call in self.calls[-2:]:
            call.kill()

    async def _stall(self) -> None:
        for call in self.calls[-2:]:
            call.stalled_until = now() + self.random.choice((0.5, 1.9, 4.0))

    async def _lag(self) -> None:
        """All that is said comes late, and later still, but without a gap."""
        for _ in range(3):
            for call in self.calls[-2:]:
                call.lag_s += 1.5
            await asyncio.sleep(3.0)

    async def run(self, seconds: float, *, trouble: bool) -> None:
        feed = ChangeFeed(self, self.freshness, clock=now)  # type: ignore[arg-type]
        follower = asyncio.create_task(feed.run())
        doing: list[tuple[Callable[[], Coroutine[Any, Any, None]], float]] = [
            (self.ask, 0.1),
            (self.write, 6.0),
            *([(self.trouble, 25.0)] if trouble else []),
        ]
        actors = [asyncio.create_task(self._repeat(act, every_s)) for act, every_s in doing]
        await asyncio.sleep(seconds)
        everyone = [follower, *actors, *self._tasks, *(each.running for each in self.replicas)]
        for task in everyone:
            task.cancel()
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*everyone, return_exceptions=True)
        await self.resolver.close()

    async def _repeat(self, act: Callable[[], Coroutine[Any, Any, None]], every_s: float) -> None:
        while True:
            task = asyncio.create_task(act())
            self._tasks.add(task)
            task.add_done_callback(self._done)
            await asyncio.sleep(self.random.expovariate(1.0 / every_s))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.wrong.append(repr(error))
