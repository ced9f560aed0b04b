"""Loading: capped, checked, a few at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from services.processor.loader import Loaded, Loader
from services.processor.requests import Target
from smile.errors import DataCorrupted, NotFound
from smile.model.specs import ModuleSpec
from smile.names import VersionName
from tests.unit.services.processor.test_requests import VERSION

pytestmark = pytest.mark.asyncio
DATA = b"weights" * 10


class FakeSource:
    """Bytes in pieces of ten; counts streams that are open."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.open = 0
        self.open_max = 0
        self.sent = 0

    async def download(self, name: VersionName) -> AsyncGenerator[bytes, None]:
        if not self.data:
            raise NotFound("absent")
        self.open += 1
        self.open_max = max(self.open, self.open_max)
        try:
            for start in range(0, len(self.data), 10):
                await asyncio.sleep(0)
                self.sent += 1
                yield self.data[start : start + 10]
        finally:
            self.open -= 1


class FakeEngine:
    """A module is its bytes."""

    def load_module(self, spec: ModuleSpec, data: bytes) -> Loaded[bytes]:
        return Loaded(data, len(data))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def target(data: bytes = DATA) -> Target:
    digest = hashlib.sha256(data).hexdigest()
    return Target.of(replace(VERSION, digest=digest, size_bytes=len(data)))


async def test_bytes_become_a_module(pool: ThreadPoolExecutor) -> None:
    loader = Loader(FakeSource(), FakeEngine(), pool, loads_max=1)
    assert await loader.load(target()) == Loaded(DATA, len(DATA))


@pytest.mark.parametrize("data", [DATA[:-1] + b"?", DATA[:-10]])
async def test_other_bytes_are_refused(pool: ThreadPoolExecutor, data: bytes) -> None:
    loader = Loader(FakeSource(data), FakeEngine(), pool, loads_max=1)
    with pytest.raises(DataCorrupted, match=hashlib.sha256(DATA).hexdigest()):
        await loader.load(target())


async def test_too_many_bytes_end_the_stream_at_once(pool: ThreadPoolExecutor) -> None:
    source = FakeSource(DATA * 100)
    loader = Loader(source, FakeEngine(), pool, loads_max=1)
    with pytest.raises(DataCorrupted, match=f"more bytes than {len(DATA)}"):
        await loader.load(target())
    assert source.sent == len(DATA) // 10 + 1
    assert source.open == 0


async def test_absent_stays_absent(pool: ThreadPoolExecutor) -> None:
    loader = Loader(FakeSource(b""), FakeEngine(), pool, loads_max=1)
    with pytest.raises(NotFound):
        await loader.load(target())


async def test_few_at_a_time(pool: ThreadPoolExecutor) -> None:
    source = FakeSource()
    loader = Loader(source, FakeEngine(), pool, loads_max=2)
    await asyncio.gather(*(loader.load(target()) for _ in range(10)))
    assert source.open_max == 2
