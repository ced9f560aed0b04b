"""A tenant who does wrong, a neighbour who is asked all the while, and all that is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

import smile
from smile.client.client import AsyncClient
from smile.errors import SmileError
from smile.resources import Classification, InferResult
from smile.v1 import storage_pb2
from tests.contract.every_rpc import Belongings, Outcome, Wire, furnish, wire
from tests.contract.platform_world import Platform, platform_world

TEXT = "a good day for the team"


@dataclass
class Scene:
    """Who is there, and what the neighbour's vPLM says while nothing is wrong."""

    platform: Platform
    calls: Wire
    acme: Belongings
    rival: Belongings
    client: AsyncClient
    neighbour: AsyncClient
    weights: bytes
    golden: InferResult

    @asynccontextmanager
    async def harmless(self, *, changes: tuple[str, ...] = ()) -> AsyncIterator[None]:
        """What happens inside changes nothing that is stored, but for keys that have one of
        `changes` in them, and nobody else's answers."""
        before = await self._stored(changes)
        done = asyncio.Event()
        asking = asyncio.create_task(self._ask(done))
        try:
            yield
        finally:
            done.set()
            await asking
        assert await self._stored(changes) == before

    async def call(self, method: str, request: object, **how: str) -> Outcome:
        """A raw call with acme's key."""
        return await self.calls.call(method, request, key=self.acme.key, **how)  # type: ignore[arg-type]

    async def _stored(self, changes: tuple[str, ...]) -> dict[str, str]:
        stored = await self.platform.store.snapshot()
        return {k: v for k, v in stored.items() if not any(part in k for part in changes)}

    async def _ask(self, done: asyncio.Event) -> None:
        """At least once, and until `done`."""
        while True:
            answer = await self.neighbour.infer("topic", TEXT)
            assert answer.digest == self.golden.digest
            assert score(answer) == pytest.approx(score(self.golden), abs=1e-5)
            if done.is_set():
                return
            await asyncio.sleep(0.01)


def score(answer: InferResult) -> float:
    found = answer.predictions[0].result
    assert isinstance(found, Classification)
    return found.score


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """The platform with acme, who does wrong, and rival."""
    async with platform_world("acme", "rival") as platform, wire(platform) as calls:
        acme, rival = await furnish(platform, "acme"), await furnish(platform, "rival")
        async with platform.client("acme") as client, platform.client("rival") as neighbour:
            golden = await neighbour.infer("topic", TEXT)
            request = storage_pb2.DownloadVersionRequest(name=f"{acme.vplm()}/versions/1")
            parts = await calls.call("StorageService.DownloadVersion", request, key=acme.key)
            weights = b"".join(part.chunk for part in parts.responses)  # type: ignore[attr-defined]
            yield Scene(platform, calls, acme, rival, client, neighbour, weights, golden)


def told(error: SmileError, *facts: object) -> None:
    """The error is one sentence that has these facts."""
    for fact in facts:
        assert str(fact) in error.message, error.message
    assert 10 <= len(error.message) <= 1000 and error.message == error.message.strip()
    assert error.reason.isupper() and error.reason != smile.Internal.reason
