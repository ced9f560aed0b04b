"""A store whose callers go on one operation at a time, in an order that a test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

from smile.limits import MIB
from smile.store.objects import (
    Object,
    ObjectInfo,
    ObjectStore,
    Reading,
    open_store,
    read_one_by_one,
)

T = TypeVar("T")
_actor: ContextVar[str] = ContextVar("actor", default="")


class Killed(BaseException):
    """The process ends here: nothing that catches errors may catch this."""


@dataclass
class SteppingStore:
    """Each operation of an actor waits for its turn; others go on at once.

    Attributes:
        old: Keys that count as written two days ago, as long as nobody writes them again.
    """

    inner: ObjectStore = field(default_factory=lambda: open_store("memory://"))
    old: set[str] = field(default_factory=set)
    waiting: dict[str, list[asyncio.Future[None]]] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def _turn(self) -> None:
        if not (name := _actor.get()):
            return
        if name in self.killed:
            raise Killed
        turn = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(name, []).append(turn)
        self.moved.set()
        await turn

    def go_on(self, name: str) -> None:
        """Let an actor do its next operation."""
        self.waiting[name].pop(0).set_result(None)

    def kill(self, name: str) -> None:
        """End an actor before its next operation, as a process ends: with all it does at once."""
        self.killed.add(name)
        for turn in self.waiting.pop(name):
            turn.set_exception(Killed())

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        await self._turn()
        made = await self.inner.put_if_absent(key, data)
        if made:
            self.old.discard(key)
        return made

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        await self._turn()
        made = await self.inner.compare_and_swap(key, data, etag)
        self.old.discard(key)
        return made

    async def get(self, key: str) -> Object | None:
        await self._turn()
        return await self.inner.get(key)

    async def read(self, reading: Reading[T]) -> T:
        return await read_one_by_one(self.get, reading)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        await self._turn()
        await self.inner.put_stream(key, chunks)
        self.old.discard(key)

    async def get_stream(self, key: str, chunk_bytes: int = MIB) -> AsyncIterator[bytes]:
        await self._turn()
        async for chunk in self.inner.get_stream(key, chunk_bytes):
            yield chunk

    async def list_objects(
        self, prefix: str, *, after: str | None = None, limit: int = 1000
    ) -> list[ObjectInfo]:
        await self._turn()
        found = await self.inner.list_objects(prefix, after=after, limit=limit)
        return [
            replace(info, modified=info.modified - timedelta(days=2))
            if info.key in self.old
            else info
            for info in found
        ]

    async def list_folders(self, prefix: str) -> list[str]:
        await self._turn()
        return await self.inner.list_folders(prefix)

    async def delete(self, key: str) -> None:
        await self._turn()
        await self.inner.delete(key)

    async def probe(self) -> None:
        await self.inner.probe()

    async def age(self) -> None:
        """Everything now counts as written two days ago."""
        self.old |= {info.key for info in await self.inner.list_objects("")}


@dataclass
class Schedule:
    """Who goes on next: `choose` picks among the names of those who can. `kills` says after how
    many operations an actor's process ends.
    """

    choose: Callable[[list[str]], str]
    kills: Mapping[str, int] = field(default_factory=dict)

    async def run(
        self, store: SteppingStore, actors: Mapping[str, Callable[[], Coroutine[Any, Any, object]]]
    ) -> dict[str, object]:
        """Let all go on to their ends; what each gave, or the error that ended it."""
        tasks = {name: asyncio.create_task(_as(name, act)) for name, act in actors.items()}
        for task in tasks.values():
            task.add_done_callback(lambda _: store.moved.set())
        steps = dict.fromkeys(actors, 0)
        while live := [name for name, task in tasks.items() if not task.done()]:
            ready = [name for name in live if store.waiting.get(name)]
            if len(ready) < len(live):  # someone still computes
                store.moved.clear()
                await store.moved.wait()
                continue
            chosen = self.choose(sorted(ready))
            if steps[chosen] == self.kills.get(chosen):
                store.kill(chosen)
            else:
                store.go_on(chosen)
            steps[chosen] += 1
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks.values(), return_exceptions=True)
        return dict(zip(tasks, outcomes, strict=True))


async def _as(name: str, act: Callable[[], Coroutine[Any, Any, object]]) -> object:
    _actor.set(name)
    try:
        return await act()
    except Killed:
        return None
