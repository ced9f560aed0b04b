"""How replicas of storage tell one another what changes: one channel of Redis.

Who changes something says so first, on the channel; who cannot be heard there leaves a mark in the
object store first, which all replicas look at before each beat. So a beat that came back, by a look
that saw no new mark, means that nothing begun before it is unknown here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from services.storage import keys
from services.storage.feed.hub import Hub
from smile.errors import Aborted, SmileError, Unavailable
from smile.logs import get_logger
from smile.store.objects import ObjectStore
from smile.store.redis import Redis, reaching_redis

CHANNEL = "smile:changes"
_CHANGED, _BEAT = "c", "b"
_CLEAR = b"clear "  # what is put in a mark's place once it has spoken for long enough


@dataclass(frozen=True, slots=True)
class BusTimes:
    """Seconds. `doubt_s`: no single write takes longer; `mark_s`: how long a mark speaks for the
    changes after it; `quiet_s`: without a beat of its own for so long, a replica hears nothing.
    """

    doubt_s: float = 60.0
    mark_s: float = 20.0
    beat_s: float = 0.5
    quiet_s: float = 3.0
    say_s: float = 1.0  # one attempt to say something
    again_s: float = 0.5  # between attempts to subscribe, and to speak after failing


class Bus:
    """Says what changes here and hears what changes anywhere; `run` it beside the server.

    Args:
        client: Redis; closed by `run` at its end.
        store: Where marks are left.
        hub: Who is told.
    """

    def __init__(
        self,
        client: Redis,
        store: ObjectStore,
        hub: Hub,
        *,
        times: BusTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._store = store
        self._hub = hub
        self._times = times or BusTimes()
        self._clock = clock
        self._id = uuid.uuid4().hex
        self._mute_until = float("-inf")
        self._marked_at = float("-inf")
        self._marking = asyncio.Lock()
        self._seen: str | None = None  # the tag of what lay in the marks' place
        self._looked = False
        self._mistrusted_until = float("-inf")
        self._said: dict[str, float] = {}  # beats on their way, and when they were begun
        self._heard_at = 0.0
        self._told_live: bool | None = None  # what the log says of us

    @asynccontextmanager
    async def changing(self, name: str) -> AsyncIterator[None]:
        """See `Announcer`."""
        if not await self._say(f"{_CHANGED}{name}"):
            await self._leave_mark()
        try:
            yield
        finally:
            await self._say(f"{_CHANGED}{name}")

    async def run(self) -> None:
        """Listen and beat until cancelled, which ends the connections to Redis, too."""
        try:
            await self._keep_listening()
        finally:
            await self._client.aclose()

    async def _keep_listening(self) -> None:
        while True:
            try:
                await self._listen()
            except (SmileError, RedisError, TimeoutError) as error:
                if self._told_live is not False:
                    get_logger().warning("change feed lost", why=str(error) or "silence")
                self._told_live = False
            finally:
                self._hub.lose()
            await asyncio.sleep(self._times.again_s)

    async def _say(self, words: str) -> bool:
        """Whether all who listen will hear it; says nothing for a while after failing."""
        if self._clock() < self._mute_until:
            return False
        try:
            with reaching_redis():
                async with asyncio.timeout(self._times.say_s):
                    await self._client.publish(CHANNEL, words)
        except (Unavailable, RedisError, TimeoutError) as error:
            self._mute_until = self._clock() + self._times.again_s
            get_logger().warning("cannot tell of changes", why=str(error) or "no answer in time")
            return False
        return True

    async def _leave_mark(self) -> None:
        """Let all know that changes go unheard, before they happen."""
        async with self._marking:
            if self._clock() - self._marked_at < self._times.mark_s / 2:
                return
            begun = self._clock()
            await self._store.put_stream(keys.UNHEARD, _once(uuid.uuid4().hex.encode()))
            self._marked_at = begun

    async def _listen(self) -> None:
        """One subscription, to its end. Raises `Unavailable` or `TimeoutError`."""
        subscription = self._client.pubsub()
        beating: asyncio.Task[None] | None = None
        self._said.clear()
        try:
            with reaching_redis():
                async with asyncio.timeout(self._times.quiet_s):
                    await subscription.subscribe(CHANNEL)
                    await self._subscribed(subscription)
                self._heard_at = self._clock()
                beating = asyncio.create_task(self._beat())
                self._hub.listen()
                while not beating.done():
                    await self._hear(subscription)
                beating.result()
        finally:
            if beating is not None:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)
            await subscription.aclose()  # type: ignore[no-untyped-call]

    async def _subscribed(self, subscription: Any) -> None:
        while (message := await subscription.get_message(timeout=self._times.quiet_s)) is None:
            pass
        if message["type"] != "subscribe":
            raise Unavailable("Redis did not confirm the subscription")

    async def _hear(self, subscription: Any) -> None:
        """What comes next, if it comes soon. A second confirmation means that the client has
        connected again by itself, and that something may have been missed."""
        with reaching_redis():  # the client may connect and subscribe again here
            message = await subscription.get_message(timeout=self._times.beat_s)
        if self._clock() - self._heard_at > self._times.quiet_s:
            raise TimeoutError("no beat has come back")
        if message is None:
            return
        if message["type"] != "message":
            raise Unavailable("the connection to Redis was made anew")
        kind, words = message["data"][0], message["data"][1:]
        if kind == _CHANGED:
            self._hub.changed(words)
        elif kind == _BEAT and (begun := self._said.pop(words, None)) is not None:
            self._heard_at = self._clock()
            self._hub.beat(begun)
            if not self._told_live:
                get_logger().info("change feed live")
            self._told_live = True

    async def _beat(self) -> None:
        """Say that we are here, again and again. What is told of a beat is when it was begun."""
        number = 0
        while True:
            begun = self._clock()
            await self._look()
            number += 1
            beat = f"{self._id}.{number}"
            self._said[beat] = begun
            with reaching_redis():
                await self._client.publish(CHANNEL, f"{_BEAT}{beat}")
            await asyncio.sleep(max(self._times.beat_s - (self._clock() - begun), 0.0))

    async def _look(self) -> None:
        """Look for a mark: whoever left a new one may change things unheard, now or soon."""
        found = await self._store.get(keys.UNHEARD)
        first, self._looked = not self._looked, True
        if found is None:
            return
        now = self._clock()
        marked = not found.data.startswith(_CLEAR)
        if found.etag != self._seen:
            if marked:
                self._mistrusted_until = now + self._times.mark_s + self._times.doubt_s
                self._hub.mistrust(self._mistrusted_until - now)
                get_logger().warning("a replica cannot tell of its changes; the feed pauses")
            elif not first:
                self._hub.listen()  # there may have been a mark meanwhile
            self._seen = found.etag
        elif marked and now > self._mistrusted_until:
            with suppress(Aborted):
                clear = _CLEAR + uuid.uuid4().hex.encode()
                self._seen = await self._store.compare_and_swap(keys.UNHEARD, clear, found.etag)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
