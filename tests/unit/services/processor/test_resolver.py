"""Where names point: remembered briefly, asked once, never across tenants."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from services.processor import resolver as module
from services.processor.requests import Asked
from services.processor.resolver import Resolver
from smile.errors import DataCorrupted, NotFound, SmileError, Unavailable
from smile.names import VersionName, VplmName
from smile.resources import Canary, VersionOrigin, VplmVersion
from smile.testing import FakeClock
from tests.unit.services.processor.test_requests import SPEC

pytestmark = pytest.mark.asyncio
TOPICS = Asked(VplmName.parse("tenants/acme/vplms/topics"), "serving")
FOREIGN = Asked(VplmName.parse("tenants/rival/vplms/topics"), "serving")


class FakeVersions:
    """Aliases in a dict; can be away, slow or wrong."""

    def __init__(self) -> None:
        self.numbers = {TOPICS.vplm: 1}
        self.error: SmileError | None = None
        self.gate: asyncio.Event | None = None
        self.asked = 0
        self.told: str | None = None
        self.canaries: dict[VplmName, Canary] = {}

    async def resolve(self, name: VplmName, alias: str) -> VplmVersion:
        found = await self.get(VersionName(name, self.numbers.get(name, 0)))
        if (canary := self.canaries.get(name)) is None:
            return found
        second = await self.get(VersionName(name, canary.version))
        return replace(found, canary=second, canary_weight=canary.weight)

    async def fetch(self, name: VplmName, alias: str) -> VplmVersion:
        return await self.resolve(name, alias)

    async def get(self, name: VersionName) -> VplmVersion:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if name.vplm not in self.numbers:
            raise NotFound("absent")
        told = self.told or str(name)
        return VplmVersion(told, "d" * 64, 1, SPEC, VersionOrigin.TRAINING)


@pytest.fixture
def versions() -> FakeVersions:
    return FakeVersions()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def resolver(versions: FakeVersions, clock: FakeClock) -> Resolver:
    return Resolver(versions, ttl_s=2.0, clock=clock)


async def number(resolver: Resolver, asked: Asked = TOPICS) -> int:
    return (await resolver.target(asked)).name.number


async def settled(resolver: Resolver) -> None:
    await asyncio.gather(*(question.task for question in resolver._asking.values()))
    await asyncio.sleep(0)


async def test_an_answer_serves_for_its_time(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    assert await number(resolver) == 1
    versions.numbers[TOPICS.vplm] = 2
    clock.advance(0.9)
    assert await number(resolver) == 1
    assert versions.asked == 1
    clock.advance(1.2)
    assert await number(resolver) == 2


async def test_a_name_in_use_is_asked_for_in_the_background(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    await number(resolver)
    versions.numbers[TOPICS.vplm] = 2
    clock.advance(1.5)
    assert await number(resolver) == 1, "nobody waits"
    await settled(resolver)
    assert await number(resolver) == 2
    assert versions.asked == 2


async def test_many_ask_once(resolver: Resolver, versions: FakeVersions) -> None:
    assert await asyncio.gather(*(number(resolver) for _ in range(50))) == [1] * 50
    assert versions.asked == 1


async def test_who_leaves_does_not_end_the_others_question(
    resolver: Resolver, versions: FakeVersions
) -> None:
    versions.gate = asyncio.Event()
    leaving = asyncio.create_task(number(resolver))
    staying = asyncio.create_task(number(resolver))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    versions.gate.set()
    assert await staying == 1


async def test_tenants_do_not_meet(resolver: Resolver) -> None:
    await number(resolver)
    with pytest.raises(NotFound):
        await number(resolver, FOREIGN)


async def test_deleted_is_gone_after_its_time(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    pinned = Asked(TOPICS.vplm, "serving", 1)
    await number(resolver)
    await number(resolver, pinned)
    versions.numbers.clear()
    clock.advance(2.1)
    for asked in (TOPICS, pinned):
        with pytest.raises(NotFound):
            await number(resolver, asked)
    versions.error = Unavailable("away")
    with pytest.raises(Unavailable):
        await number(resolver)


async def test_storage_away_serves_the_last_answer_and_asks_now_and_then(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    await number(resolver)
    versions.error = Unavailable("away")
    clock.advance(2.5)
    assert await number(resolver) == 1
    assert versions.asked == 2
    clock.advance(0.5)
    assert await number(resolver) == 1
    assert versions.asked == 2, "not asked at every request"
    versions.error = None
    versions.numbers[TOPICS.vplm] = 2
    clock.advance(1.0)
    await number(resolver)
    await settled(resolver)
    assert await number(resolver) == 2


async def test_an_answer_from_before_an_outage_long_ago_is_doubted(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    await number(resolver)
    versions.error = Unavailable("away")
    clock.advance(2.5)
    await number(resolver)
    versions.error = None
    versions.numbers[TOPICS.vplm] = 2
    clock.advance(3_600)
    assert await number(resolver) == 2


async def test_a_slow_storage_does_not_hold_up_what_is_known(
    resolver: Resolver,
    versions: FakeVersions,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    await number(resolver)
    versions.gate = asyncio.Event()
    versions.numbers[TOPICS.vplm] = 2
    clock.advance(2.5)
    assert await number(resolver) == 1
    versions.gate.set()
    await settled(resolver)
    assert await number(resolver) == 2


async def test_an_answer_of_the_past_is_asked_for_anew(
    resolver: Resolver, versions: FakeVersions
) -> None:
    await number(resolver)
    versions.numbers[TOPICS.vplm] = 2
    assert await number(resolver) == 1
    assert (await resolver.renewed(TOPICS)).name.number == 2
    assert await number(resolver) == 2, "it is remembered"


async def test_an_answer_asked_for_before_is_not_new(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    await number(resolver)
    clock.advance(1.5)
    versions.gate = asyncio.Event()
    await number(resolver)  # asks in the background
    await asyncio.sleep(0)
    renewing = asyncio.create_task(resolver.renewed(TOPICS))
    await asyncio.sleep(0)
    versions.numbers[TOPICS.vplm] = 2
    versions.gate.set()
    assert (await renewing).name.number == 2
    assert versions.asked == 3, "first, in the background, anew"


@pytest.mark.parametrize("known", [True, False])
async def test_a_question_put_long_ago_answers_nobody_who_asks_now(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock, known: bool
) -> None:
    if known:
        await number(resolver)
        clock.advance(2.1)
    versions.gate = asyncio.Event()
    then = asyncio.create_task(number(resolver))
    await asyncio.sleep(0)
    clock.advance(2.1)
    now = asyncio.create_task(number(resolver))
    await asyncio.sleep(0)
    asked = versions.asked
    versions.gate.set()
    assert (await then, await now) == (1, 1)
    assert versions.asked == asked + 1, "the second has a question of its own"


async def test_storage_away_and_nothing_known(resolver: Resolver, versions: FakeVersions) -> None:
    versions.error = Unavailable("away")
    with pytest.raises(Unavailable):
        await number(resolver)


async def test_an_answer_about_something_else_is_not_believed(
    resolver: Resolver, versions: FakeVersions
) -> None:
    versions.told = "tenants/rival/vplms/topics/versions/1"
    with pytest.raises(DataCorrupted):
        await number(resolver)


async def test_a_split_alias_gives_its_share_to_the_canary(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    keys = [f"user-{index}" for index in range(4_000)]
    before: set[str] = set()
    for weight in (0.0, 0.1, 0.5, 1.0):
        versions.canaries[TOPICS.vplm] = Canary(2, weight)
        clock.advance(2.1)
        picked = {key for key in keys if (await resolver.target(TOPICS, key)).name.number == 2}
        assert abs(len(picked) / len(keys) - weight) < 0.03
        assert picked >= before, "a key stays with the canary as its weight grows"
        before = picked
    versions.canaries.clear()
    clock.advance(2.1)
    assert {await number(resolver)} == {1}


async def test_a_routing_key_is_sticky_and_apart_for_every_alias(
    versions: FakeVersions, clock: FakeClock
) -> None:
    versions.canaries[TOPICS.vplm] = Canary(2, 0.5)
    staging = Asked(TOPICS.vplm, "staging")
    picked = []
    for asked in (TOPICS, TOPICS, staging):
        resolver = Resolver(versions, ttl_s=2.0, clock=clock)  # another process, as it were
        picked.append([(await resolver.target(asked, f"k{n}")).name.number for n in range(64)])
    assert picked[0] == picked[1] != picked[2]


async def test_a_canary_of_something_else_is_not_believed(
    resolver: Resolver, versions: FakeVersions
) -> None:
    version = await versions.resolve(TOPICS.vplm, "serving")
    foreign = replace(version, name="tenants/rival/vplms/topics/versions/2")
    lying = replace(version, canary=foreign, canary_weight=0.0)

    async def lie(name: VplmName, alias: str) -> VplmVersion:
        return lying

    versions.resolve = lie  # type: ignore[method-assign]
    with pytest.raises(DataCorrupted):
        await number(resolver)


async def test_a_bounded_number_is_remembered(versions: FakeVersions, clock: FakeClock) -> None:
    resolver = Resolver(versions, ttl_s=2.0, clock=clock, entries_max=3)
    names = [VplmName.parse(f"tenants/acme/vplms/v{index}") for index in range(5)]
    for name in names:
        versions.numbers[name] = 1
        await number(resolver, Asked(name, "serving"))
    assert len(resolver._known) == 3
    await number(resolver, Asked(names[-1], "serving"))
    assert versions.asked == 5
    await number(resolver, Asked(names[0], "serving"))
    assert versions.asked == 6


def followed(resolver: Resolver, clock: FakeClock) -> Resolver:
    """The same with a feed that has just opened and covers all that is asked for from now on."""
    resolver.freshness.opened(since=clock(), as_of=clock(), doubt_s=10.0)
    return resolver


async def test_a_feed_keeps_an_answer_fresh(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    followed(resolver, clock)
    for _ in range(100):
        assert await number(resolver) == 1
        clock.advance(2.9)
        resolver.freshness.beat(clock() - 0.5)
    assert versions.asked == 1
    clock.advance(1.8)  # the feed has stalled
    versions.numbers[TOPICS.vplm] = 2
    assert await number(resolver) == 2


async def test_what_the_feed_names_is_asked_for_at_once(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    followed(resolver, clock)
    await number(resolver)
    clock.advance(1.0)
    versions.numbers[TOPICS.vplm] = 2
    resolver.freshness.told(str(TOPICS.vplm), clock())
    resolver.freshness.beat(clock())
    clock.advance(0.1)
    assert await number(resolver) == 2
    clock.advance(0.5)
    resolver.freshness.told(str(FOREIGN.vplm), clock())
    assert await number(resolver) == 2
    assert versions.asked == 2


async def test_an_answer_on_its_way_when_its_name_is_told_is_not_kept(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    followed(resolver, clock)
    versions.gate = asyncio.Event()
    asking = asyncio.create_task(number(resolver))
    await asyncio.sleep(0)
    clock.advance(0.1)
    resolver.freshness.told(str(TOPICS.vplm), clock())
    versions.gate.set()
    assert await asking == 1
    versions.numbers[TOPICS.vplm] = 2
    assert await number(resolver) == 2


async def test_a_covered_answer_is_confirmed_now_and_then(
    resolver: Resolver, versions: FakeVersions, clock: FakeClock
) -> None:
    followed(resolver, clock)
    await number(resolver)
    for _ in range(700):
        clock.advance(1.0)
        resolver.freshness.beat(clock())
        await number(resolver)
        await asyncio.sleep(0)
    assert 2 <= versions.asked <= 3


async def test_a_told_name_still_serves_while_storage_is_away(
    resolver: Resolver,
    versions: FakeVersions,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    followed(resolver, clock)
    await number(resolver)
    resolver.freshness.told(str(TOPICS.vplm), clock())
    versions.error = Unavailable("away")
    assert await number(resolver) == 1
