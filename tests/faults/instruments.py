"""What makes each step of a service visible to failpoints, inside of the process under test."""

from __future__ import annotations

import datetime as datetimes
import functools
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from smile.limits import CHUNK_BYTES_MAX
from smile.store.objects import Object, ObjectInfo, ObjectStore, Reading, read_one_by_one
from tests.faults.failpoints import Failpoints

T = TypeVar("T")
BESIDE = ("probe/", "feed/")  # what comes and goes beside all requests is no step of them
PIECE_BYTES = 500
# Calls of the operating system that change a file system, by the names of Python's audit events.
REMOVING = ("os.remove", "os.rmdir")
CHANGING = ("os.rename", "os.mkdir", *REMOVING)


@dataclass
class SteppingStore:
    """An object store each of whose operations is a step, and the moment after each that writes."""

    inner: ObjectStore
    points: Failpoints

    def _reach(self, step: str, key: str) -> None:
        if not key.startswith(BESIDE):
            self.points.reach(f"{step} {key}")

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        self._reach("create", key)
        made = await self.inner.put_if_absent(key, data)
        self._reach("created", key)
        return made

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        self._reach("swap", key)
        tag = await self.inner.compare_and_swap(key, data, etag)
        self._reach("swapped", key)
        return tag

    async def get(self, key: str) -> Object | None:
        self._reach("get", key)
        return await self.inner.get(key)

    async def read(self, reading: Reading[T]) -> T:
        return await read_one_by_one(self.get, reading)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        async def seen() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                self._reach("chunk of", key)
                yield chunk

        self._reach("write", key)
        await self.inner.put_stream(key, seen())
        self._reach("written", key)

    async def get_stream(
        self, key: str, chunk_bytes: int = CHUNK_BYTES_MAX
    ) -> AsyncIterator[bytes]:
        self._reach("read", key)
        async for chunk in self.inner.get_stream(key, chunk_bytes):
            yield chunk

    async def list_objects(
        self, prefix: str, *, after: str | None = None, limit: int = 1000
    ) -> list[ObjectInfo]:
        self._reach("list", prefix)
        return await self.inner.list_objects(prefix, after=after, limit=limit)

    async def list_folders(self, prefix: str) -> list[str]:
        self._reach("folders of", prefix)
        return await self.inner.list_folders(prefix)

    async def delete(self, key: str) -> None:
        self._reach("delete", key)
        await self.inner.delete(key)
        self._reach("deleted", key)

    async def probe(self) -> None:
        await self.inner.probe()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def watch_files(root: Path, points: Failpoints) -> None:
    """Makes each change to files below `root` a step, by this process, for good."""
    below = f"{root}/"

    def concerns(path: object) -> bool:
        text = str(path)
        return text.startswith(below) and not any(
            part in text for part in ("/.smile/locks", "/probe")
        )

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGING or (event == "open" and _writes(arguments[2])):
            places = [part for part in arguments[:2] if isinstance(part, str | os.PathLike)]
            if places and all(concerns(place) for place in places):
                step = f"{event} {Path(places[-1]).relative_to(root)}"
                points.reach(step, on_disk=event not in REMOVING)

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if concerns(path):
            points.reach(f"fsync {Path(path).relative_to(root)}", on_disk=True)
        sync(descriptor)

    sys.addaudithook(heard)
    vars(os)["fsync"] = fsync


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def watch_calls(cls: type, names: Iterable[str], points: Failpoints) -> None:
    """Makes each call of these coroutine methods a step, and the moment after it."""
    for name in names:
        setattr(cls, name, _stepping(getattr(cls, name), f"{cls.__name__}.{name}", points))


def _stepping(
    method: Callable[..., Awaitable[object]], name: str, points: Failpoints
) -> Callable[..., Awaitable[object]]:
    @functools.wraps(method)
    async def stepping(*arguments: Any, **named: Any) -> object:
        points.reach(name)
        answer = await method(*arguments, **named)
        points.reach(f"after {name}")
        return answer

    return stepping


def watch_pieces(module: ModuleType, points: Failpoints) -> None:
    """Lets what this module sends in pieces be small pieces, and each of them a step."""
    pieces: Callable[[bytes, int], Iterator[bytes]] = vars(module)["pieces"]

    def stepping(data: bytes) -> Iterator[bytes]:
        for piece in pieces(data, PIECE_BYTES):
            points.reach("send a piece")
            yield piece

    vars(module)["pieces"] = stepping


def wrong_clock(points: Failpoints, modules: Iterable[ModuleType]) -> None:
    """Lets `datetime.now` in these modules be wrong by what the failpoints say; monotonic clocks go
    right, as they do when a wall clock is set."""

    class Wrong(datetimes.datetime):
        """A wall clock that somebody set."""

        @classmethod
        def now(cls, tz: datetimes.tzinfo | None = None) -> Any:
            return datetimes.datetime.fromtimestamp(time.time() + points.clock_s, tz)

    for module in modules:
        if getattr(module, "datetime", None) is datetimes.datetime:
            vars(module)["datetime"] = Wrong
