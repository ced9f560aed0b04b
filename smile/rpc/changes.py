"""Follows storage's change feed, so that what is remembered of storage's answers stays fresh.

Times on the way are bounded from below: a beat says how long after the stream's beginning it was
begun, and the stream began after we asked for it. However late a beat comes, it never makes an
answer look fresher than it is.

A stream is followed by the next one before it ends. The old one is left once it has told all that
was said before the new one had opened: from then on the new one tells the rest.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from smile.errors import FailedPrecondition, SmileError, Unavailable
from smile.logs import get_logger
from smile.rpc.freshness import Freshness
from smile.rpc.status import calling
from smile.v1 import changes_pb2, changes_pb2_grpc

_Response = changes_pb2.WatchChangesResponse
_Call: TypeAlias = "grpc.aio.UnaryStreamCall[changes_pb2.WatchChangesRequest, _Response]"


@dataclass(frozen=True, slots=True)
class FeedTimes:
    """Seconds. `quiet_s`: a feed without a word for so long is left; `turn_s`: a stream is followed
    by the next one then, and ends by itself after `stream_s`; `open_s`: one that took longer to
    open would always look late, and is opened again; `off_s`: between questions whether storage has
    a feed now.
    """

    quiet_s: float = 3.0
    turn_s: float = 240.0
    stream_s: float = 600.0
    open_s: float = 0.2
    open_s_max: float = 5.0
    again_s: float = 0.2
    again_s_max: float = 5.0
    off_s: float = 30.0


@dataclass(frozen=True, slots=True)
class _Stream:
    """An open stream. `asked` and `opened` are when it was asked for, and when it answered."""

    call: _Call
    asked: float
    opened: float
    first: changes_pb2.FeedOpened

    @property
    def doubt_s(self) -> float:
        return self.first.doubt_ms / 1e3

    @property
    def since(self) -> float:
        """From when on nothing can be under way that was told before it was listened for."""
        return self.opened + max(self.doubt_s - self.first.listened_ms / 1e3, 0.0)


class ChangeFeed:
    """Tells a `Freshness` what storage tells; `run` it beside the server.

    Args:
        channel: To storage, with the service key.
        freshness: What is told.
        clock: The clock of `freshness`, monotonic seconds.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        freshness: Freshness,
        *,
        times: FeedTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stub = changes_pb2_grpc.ChangeFeedServiceStub(channel)
        self._freshness = freshness
        self._times = times or FeedTimes()
        self._clock = clock

    async def run(self) -> None:
        """Follow the feed until cancelled; without one, answers live as long as they do."""
        wait_s = self._times.again_s
        while True:
            off = False
            try:
                await self._follow()
            except (SmileError, TimeoutError) as error:
                off = isinstance(error, FailedPrecondition)  # told, or an older storage
                if self._freshness.live or wait_s == self._times.again_s:
                    get_logger().warning("no change feed", why=str(error) or "no word in time")
            if self._freshness.live:
                wait_s = self._times.again_s
            self._freshness.lost()
            await asyncio.sleep(self._times.off_s if off else wait_s * random.uniform(0.5, 1.0))  # noqa: S311
            wait_s = min(2 * wait_s, self._times.again_s_max)

    async def _follow(self) -> None:
        """One feed of however many streams, to its end. Raises `SmileError`, `TimeoutError`."""
        stream = await self._open()
        self._freshness.opened(since=stream.since, as_of=stream.asked, doubt_s=stream.doubt_s)
        self._tell(stream.first.names)
        get_logger().info("change feed live", covered_in_s=round(stream.since - stream.opened, 3))
        following: asyncio.Task[_Stream] | None = None
        try:
            while True:
                turn = stream.opened + self._times.turn_s
                async for _ in self._words(stream):
                    if following is None and self._clock() >= turn:
                        following = asyncio.create_task(self._open())
                    if following is not None and following.done():
                        if following.exception() is not None:
                            following, turn = None, self._clock() + self._times.again_s_max
                        elif self._freshness.as_of >= following.result().opened:
                            break
                if following is None or not following.done():
                    raise Unavailable("the stream ended")
                stream.call.cancel()
                stream, following = following.result(), None
                self._freshness.taken_over(since=stream.since, doubt_s=stream.doubt_s)
                self._tell(stream.first.names)
        finally:
            stream.call.cancel()
            await _dropped(following)

    async def _words(self, stream: _Stream) -> AsyncIterator[None]:
        """Take in what a stream says, word by word."""
        while True:
            async with asyncio.timeout(self._times.quiet_s):
                with calling():
                    part = await stream.call.read()
            if not isinstance(part, _Response):
                return
            if part.WhichOneof("part") == "changed":
                self._tell(part.changed.names)
            elif part.WhichOneof("part") == "beat":
                self._freshness.beat(stream.asked + part.beat.elapsed_ms / 1e3)
            yield

    async def _open(self) -> _Stream:
        """A stream that has opened, soon after it was asked for if that can be had."""
        stream = await self._open_once()
        for _ in range(3):
            if stream.opened - stream.asked <= self._times.open_s:
                break
            stream.call.cancel()
            stream = await self._open_once()
        return stream

    async def _open_once(self) -> _Stream:
        asked = self._clock()
        call = self._stub.WatchChanges(
            changes_pb2.WatchChangesRequest(), timeout=self._times.stream_s
        )
        try:
            async with asyncio.timeout(self._times.open_s_max):
                with calling():
                    part = await call.read()
            if not isinstance(part, _Response) or part.WhichOneof("part") != "opened":
                raise Unavailable("the stream did not open")
        except BaseException:
            call.cancel()
            raise
        return _Stream(call, asked, self._clock(), part.opened)

    def _tell(self, names: Iterable[str]) -> None:
        now = self._clock()
        for name in names:
            self._freshness.told(name, now)


async def _dropped(following: asyncio.Task[_Stream] | None) -> None:
    """End a stream that was asked for and is not taken."""
    if following is None:
        return
    following.cancel()
    (outcome,) = await asyncio.gather(following, return_exceptions=True)
    if isinstance(outcome, _Stream):
        outcome.call.cancel()
