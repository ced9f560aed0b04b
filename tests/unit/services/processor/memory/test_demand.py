"""Who waits for which module: one load for all, prefetches, and room made for those that wait."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest

from services.processor.lanes.dispatch import Dispatch
from services.processor.lanes.trace import Trace
from services.processor.memory.demand import PREFETCHES_MAX, Demand
from services.processor.memory.loader import Loader
from services.processor.memory.residency import Residency, Temperature
from services.processor.requests import Failed, Target
from services.processor.scheduling.room import BatchLimits
from smile.errors import DataCorrupted, NotFound, Overloaded, SmileError, Unavailable
from smile.model.kernels.rows import Row
from smile.model.specs import ModuleSpec
from smile.names import VersionName
from smile.testing import FakeClock
from tests.unit.services.processor.conftest import counted
from tests.unit.services.processor.test_requests import VERSION

pytestmark = pytest.mark.asyncio
BUDGET = 100


@dataclass
class Storage:
    """Bytes that come when the gate is open, or do not; counts who asks."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)
    error: SmileError | None = None

    async def download(self, name: VersionName, digest: str) -> AsyncGenerator[bytes, None]:
        self.asked.append(str(name))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        yield str(name).encode()


@dataclass(frozen=True)
class FakeDecoded:
    """Takes 40 bytes of memory."""

    data: bytes
    row_bytes: Sequence[int] = (30, 10)

    def place(self, rows: Sequence[Row]) -> str:
        return self.data.decode()


@dataclass(frozen=True)
class FakeEngine:
    """Decodes anything but what says that it is bad; may know sizes beforehand."""

    known: Sequence[int] | None

    def row_bytes(self, spec: ModuleSpec) -> Sequence[int] | None:
        return self.known

    def decode(self, spec: ModuleSpec, data: bytes) -> FakeDecoded:
        if data.endswith(b"/13"):
            raise DataCorrupted("a bad one")
        return FakeDecoded(data)


def target(number: int) -> Target:
    name = VERSION.name.rsplit("/", 1)[0] + f"/{number}"
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Target.of(replace(VERSION, name=name, digest=digest, size_bytes=len(name)))


@dataclass
class World:
    """A demand over fakes."""

    storage: Storage
    dispatch: Dispatch[str]
    demand: Demand[str]
    clock: FakeClock
    failed: list[Failed]

    def temperature(self, number: int) -> Temperature:
        return self.dispatch.temperature(target(number).key)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def warm(self, *numbers: int) -> None:
        for number in numbers:
            await self.demand.prefetch(target(number))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(params=[None, (30, 10)], ids=["sizes are decoded", "sizes are known"])
def world(pool: ThreadPoolExecutor, request: pytest.FixtureRequest) -> World:
    clock = FakeClock(0.0)
    residency: Residency[str] = Residency(counted(BUDGET), failed_s=2.0)
    dispatch = Dispatch(BatchLimits(100, 10, 25), residency, wait_s=0.0, clock=clock)
    storage = Storage()
    storage.gate.set()

    def rows_of(slots: object) -> list[Row]:
        return []

    loader = Loader(storage, FakeEngine(request.param), pool, rows_of=rows_of, loads_max=2)
    failed: list[Failed] = []
    demand = Demand(dispatch, loader, clock, failed.append, Trace(None, clock=clock))
    return World(storage, dispatch, demand, clock, failed)


async def test_a_module_is_fetched_once_for_all_who_wait(world: World) -> None:
    world.storage.gate.clear()
    times = [world.demand.enter(number, target(1)) for number in range(50)]
    prefetches = [asyncio.create_task(world.demand.prefetch(target(1))) for _ in range(5)]
    await world.until(lambda: bool(world.storage.asked))
    world.clock.advance(3.0)
    world.storage.gate.set()
    await asyncio.gather(*prefetches)
    await world.until(lambda: all(time.since is None for time in times))
    assert len(world.storage.asked) == 1
    assert {time.total_s for time in times} == {3.0}
    assert world.demand.enter(99, target(1)).total_s == 0
    assert len(world.storage.asked) == 1


async def test_prefetching_warms_without_a_request(world: World) -> None:
    await world.demand.prefetch(target(1))
    assert world.temperature(1) is Temperature.WARM
    await world.demand.prefetch(target(1))
    assert len(world.storage.asked) == 1
    assert world.demand.unload(target(1).key)
    assert world.temperature(1) is Temperature.COLD


async def test_a_prefetch_that_fails_says_why(world: World) -> None:
    with pytest.raises(DataCorrupted, match="a bad one"):
        await world.demand.prefetch(target(13))
    with pytest.raises(DataCorrupted, match="a bad one"):
        await world.demand.prefetch(target(13))
    assert len(world.storage.asked) == 1, "remembered for a moment"
    world.storage.error = NotFound("lost")
    with pytest.raises(NotFound):
        await world.demand.prefetch(target(2))
    assert world.dispatch.level().host.nbytes == 0


async def test_prefetches_are_bounded(world: World) -> None:
    world.storage.gate.clear()
    many: list[Coroutine[None, None, None]] = [
        world.demand.prefetch(target(100 + number)) for number in range(PREFETCHES_MAX)
    ]
    tasks = [asyncio.create_task(one) for one in many]
    await world.until(lambda: len(world.storage.asked) == 2)
    with pytest.raises(Overloaded, match=f"at most {PREFETCHES_MAX}"):
        await world.demand.prefetch(target(1))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    world.storage.gate.set()
    await world.demand.prefetch(target(1))
    await world.demand.close()


async def test_whoever_stops_waiting_does_not_stop_the_load(world: World) -> None:
    world.storage.gate.clear()
    task = asyncio.create_task(world.demand.prefetch(target(1)))
    other = asyncio.create_task(world.demand.prefetch(target(1)))
    await world.until(lambda: bool(world.storage.asked))
    task.cancel()
    world.storage.gate.set()
    await other
    assert task.cancelled()
    assert world.temperature(1) is Temperature.WARM


async def test_loads_wait_for_room_that_requests_make(world: World) -> None:
    for number in (1, 2):
        world.demand.enter(number, target(number))
    await world.until(lambda: world.temperature(2) is Temperature.WARM)
    third = asyncio.create_task(world.demand.prefetch(target(3)))
    await world.until(lambda: len(world.storage.asked) == 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not third.done(), "both in memory are for requests that have not used them"
    world.demand.leave(1, target(1).key)
    await third
    assert world.temperature(1) is Temperature.COLD
    assert world.dispatch.level().host.counters.evictions == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_a_load_that_ends_makes_room_for_those_that_wait(
    world: World, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Nobody asks for what was prefetched, or it could not be placed."""
    go = threading.Event()

    def place(decoded: FakeDecoded, rows: Sequence[Row]) -> str:
        if decoded.data.endswith(b"/2"):
            assert go.wait(5)
            if fails:
                raise DataCorrupted("no place")
        return decoded.data.decode()

    world.demand.enter(1, target(1))
    await world.until(lambda: world.temperature(1) is Temperature.WARM)
    monkeypatch.setattr(FakeDecoded, "place", place)
    prefetch = asyncio.create_task(world.demand.prefetch(target(2)))
    await world.until(lambda: world.dispatch.level().host.nbytes == 80)
    load = world.demand.enter(3, target(3))
    await world.until(lambda: bool(world.dispatch._roomless))
    go.set()
    await world.until(lambda: load.since is None)
    assert world.temperature(3) is Temperature.WARM
    assert world.temperature(2) is Temperature.COLD
    await asyncio.gather(prefetch, return_exceptions=True)


async def test_unpinning_and_sweeping_make_room(world: World) -> None:
    await world.warm(1)
    assert world.dispatch.pin(target(1).key)
    world.demand.enter(2, target(2))
    await world.until(lambda: world.temperature(2) is Temperature.WARM)
    third = asyncio.create_task(world.demand.prefetch(target(3)))
    await world.until(lambda: len(world.storage.asked) == 3)
    world.demand.unpin(target(1).key)
    await third
    assert world.temperature(1) is Temperature.COLD
    world.clock.advance(10.0)
    assert world.demand.sweep(idle_s=5.0) == 1
    assert world.temperature(3) is Temperature.COLD


async def test_closing_ends_loads_and_tells_who_waits(world: World) -> None:
    world.storage.gate.clear()
    task = asyncio.create_task(world.demand.prefetch(target(1)))
    await world.until(lambda: bool(world.storage.asked))
    await world.demand.close()
    with pytest.raises(Unavailable, match="stopping"):
        await task
    assert isinstance(world.dispatch.error(target(1).key), Unavailable)
