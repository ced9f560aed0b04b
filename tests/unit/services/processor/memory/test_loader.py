"""Loading: capped, checked, a few at a time."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest

from services.processor.lanes.dispatch import TierLevel
from services.processor.memory.loader import Loader
from services.processor.memory.space import Slot
from services.processor.memory.spill import LostError
from services.processor.memory.tiers import TierCounters
from services.processor.requests import ModuleKey, Target
from smile.errors import DataCorrupted, NotFound
from smile.model.kernels.rows import Row, own_row
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

    async def download(self, name: VersionName, digest: str) -> AsyncGenerator[bytes, None]:
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


@dataclass(frozen=True)
class FakeDecoded:
    """A module that is its bytes, and the sizes of the rows it was given."""

    data: bytes

    @property
    def row_bytes(self) -> Sequence[int]:
        return (64, 128)

    def place(self, rows: Sequence[Row]) -> tuple[bytes, list[int]]:
        return self.data, [row.bytes.nbytes for row in rows]


@dataclass
class FakeEngine:
    """Takes any bytes; may know sizes beforehand."""

    known: Sequence[int] | None = None
    decoding: set[str] = field(default_factory=set)  # the threads it was done by

    def row_bytes(self, spec: ModuleSpec) -> Sequence[int] | None:
        return self.known

    def decode(self, spec: ModuleSpec, data: bytes) -> FakeDecoded:
        self.decoding.add(threading.current_thread().name)
        return FakeDecoded(data)


Module = tuple[bytes, list[int]]


def rows_of(slots: Sequence[Slot]) -> list[Row]:
    return [own_row(slot.row_bytes) for slot in slots]


def loader_of(source: FakeSource, pool: ThreadPoolExecutor, loads_max: int = 1) -> Loader[Module]:
    return Loader(source, FakeEngine(), pool, rows_of=rows_of, loads_max=loads_max)


async def load(loader: Loader[Module]) -> Module:
    async with loader.load(target()) as decoded:
        slots = [Slot(size, 0, 0) for size in decoded.row_bytes]
        return await loader.place(target(), decoded, slots)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def target(data: bytes = DATA) -> Target:
    digest = hashlib.sha256(data).hexdigest()
    return Target.of(replace(VERSION, digest=digest, size_bytes=len(data)))


async def test_bytes_become_a_module(pool: ThreadPoolExecutor) -> None:
    loader = loader_of(FakeSource(), pool)
    assert await load(loader) == (DATA, [64, 128])


async def test_bytes_of_known_size_are_decoded_in_their_place(pool: ThreadPoolExecutor) -> None:
    engine = FakeEngine((64, 128))
    loader = Loader(FakeSource(), engine, pool, rows_of=rows_of, loads_max=1)
    async with loader.load(target()) as found:
        assert tuple(found.row_bytes) == (64, 128) and not engine.decoding
        slots = [Slot(size, 0, 0) for size in found.row_bytes]
        assert await loader.place(target(), found, slots) == (DATA, [64, 128])
    (thread,) = engine.decoding
    assert thread != threading.current_thread().name


@pytest.mark.parametrize("data", [DATA[:-1] + b"?", DATA[:-10]])
async def test_other_bytes_are_refused(pool: ThreadPoolExecutor, data: bytes) -> None:
    loader = loader_of(FakeSource(data), pool)
    with pytest.raises(DataCorrupted, match=hashlib.sha256(DATA).hexdigest()):
        await load(loader)


async def test_too_many_bytes_end_the_stream_at_once(pool: ThreadPoolExecutor) -> None:
    source = FakeSource(DATA * 100)
    loader = loader_of(source, pool)
    with pytest.raises(DataCorrupted, match=f"more bytes than {len(DATA)}"):
        await load(loader)
    assert source.sent == len(DATA) // 10 + 1
    assert source.open == 0


async def test_absent_stays_absent(pool: ThreadPoolExecutor) -> None:
    loader = loader_of(FakeSource(b""), pool)
    with pytest.raises(NotFound):
        await load(loader)


async def test_few_at_a_time(pool: ThreadPoolExecutor) -> None:
    source = FakeSource()
    loader = loader_of(source, pool, 2)
    await asyncio.gather(*(load(loader) for _ in range(10)))
    assert source.open_max == 2


async def test_what_waits_for_room_keeps_its_turn(pool: ThreadPoolExecutor) -> None:
    """Decoded modules take memory beside the budget: no more of them than loads at a time."""
    source = FakeSource()
    loader = loader_of(source, pool, 1)
    async with loader.load(target()):
        second = asyncio.create_task(load(loader))
        for _ in range(50):
            await asyncio.sleep(0)
        assert source.sent == len(DATA) // 10, "the second has not begun"
    assert await second == (DATA, [64, 128])


class LostDecoded(FakeDecoded):
    """Was overwritten between being found and being read."""

    def place(self, rows: Sequence[Row]) -> Module:
        raise LostError("it is not there any more")


class FakeDisk:
    """Keeps modules in a dictionary."""

    def __init__(self) -> None:
        self.modules: dict[ModuleKey, Module] = {}
        self.lost = False

    def __len__(self) -> int:
        return len(self.modules)

    def find(self, key: ModuleKey) -> FakeDecoded | None:
        found = self.modules.get(key)
        return None if found is None else (LostDecoded if self.lost else FakeDecoded)(found[0])

    def keep(self, key: ModuleKey, module: Module) -> None:
        self.modules[key] = module

    def level(self) -> TierLevel:
        return TierLevel(len(self.modules), 0, 0, TierCounters())


async def test_what_disk_has_kept_is_not_fetched_again(pool: ThreadPoolExecutor) -> None:
    source, disk = FakeSource(), FakeDisk()
    loader = Loader(source, FakeEngine(), pool, rows_of=rows_of, loads_max=1, kept=disk)
    first = await load(loader)
    sent = source.sent
    assert await load(loader) == first and list(disk.modules) == [target().key]
    assert source.sent == sent
    assert (loader.disk_level().modules, loader_of(source, pool).disk_level().modules) == (1, 0)


async def test_what_disk_has_lost_meanwhile_is_fetched_again(pool: ThreadPoolExecutor) -> None:
    source, disk = FakeSource(), FakeDisk()
    loader = Loader(source, FakeEngine(), pool, rows_of=rows_of, loads_max=1, kept=disk)
    first = await load(loader)
    sent, disk.lost = source.sent, True
    assert await load(loader) == first
    assert source.sent == 2 * sent
