"""The change feed through real servers and a real Redis: what is remembered stays right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs
from structlog.typing import EventDict

from smile import errors
from smile.rpc.freshness import Lookup
from smile.v1 import identity_pb2, storage_pb2
from tests.contract.feed_world import (
    FEED_TIMES,
    FeedWorld,
    Follower,
    Replica,
    feed_world,
    move,
    until,
)
from tests.contract.storage_world import new_id, put_parts
from tests.unit.services.storage import world as domain

pytestmark = pytest.mark.asyncio(loop_scope="module")
TTL_S = 0.3


@pytest_asyncio.fixture(loop_scope="module")
async def it(tmp_path: Path) -> AsyncIterator[FeedWorld]:
    async with feed_world(tmp_path) as made:
        yield made


async def vplm(replica: Replica, name: str = "topics", versions: int = 2) -> str:
    """A vPLM of `acme` with some versions; `serving` points to the first."""
    if "acme" not in replica.world.keys:
        await replica.world.create_tenant("acme")
    made = await replica.world.commit(name)
    for seed in range(1, versions):
        parts = put_parts(made.name, domain.module(seed))
        await replica.world.call("StorageService.PutVersion", parts, replica.world.keys["acme"])
    return str(made.name)


async def ready(it: FeedWorld, count: int = 1) -> tuple[list[Replica], Follower, str]:
    """Replicas, who follows the first of them, and a vPLM that it remembers."""
    replicas = [await it.replica() for _ in range(count)]
    await until(lambda: all(each.hub.live for each in replicas))
    name = await vplm(replicas[0])
    for other in replicas[1:]:
        other.world.keys.update(replicas[0].world.keys)
    follower = await it.follower(replicas[0], ttl_s=TTL_S)
    await follower.covered()
    assert await follower.serving(name) == 1
    return replicas, follower, name


def asked(follower: Follower) -> int:
    return follower.freshness.lookups[Lookup.ALIAS_ASKED]


async def test_an_answer_outlives_its_ttl_while_the_feed_lives(it: FeedWorld) -> None:
    _, follower, name = await ready(it)
    before = asked(follower)
    for _ in range(8):
        await asyncio.sleep(TTL_S / 2)
        assert await follower.serving(name) == 1
    assert asked(follower) == before
    assert follower.freshness.lookups[Lookup.ALIAS_REMEMBERED] >= 8


async def test_a_store_that_is_away_is_told_of_once(
    it: FeedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def away(*_: object, **__: object) -> None:
        nonlocal tries
        tries += 1
        raise errors.Unavailable("away")

    with capture_logs() as logs, monkeypatch.context() as patched:
        patched.setattr(it.store, "get", away)
        await it.replica()
        await until(lambda: tries >= 3)
        assert feed_events(logs) == ["change feed lost"]
        patched.undo()
        await until(lambda: "change feed live" in feed_events(logs))
    assert feed_events(logs) == ["change feed lost", "change feed live"]


def feed_events(logs: list[EventDict]) -> list[str]:
    return [entry["event"] for entry in logs if entry["event"].startswith("change feed")]


@pytest.mark.parametrize("through", [0, 1])
async def test_a_move_is_seen_once_it_is_answered(it: FeedWorld, through: int) -> None:
    replicas, follower, name = await ready(it, 2)
    slowest = 0.0
    for version in (2, 1, 2, 1):
        await move(replicas[through], name, version)
        moved = time.monotonic()
        while await follower.serving(name) != version:
            assert time.monotonic() - moved < TTL_S
            await asyncio.sleep(0.001)
        slowest = max(slowest, time.monotonic() - moved)
    assert slowest < TTL_S / 2


async def test_a_key_revoked_elsewhere_stops_at_once(it: FeedWorld) -> None:
    replicas, follower, _ = await ready(it, 2)
    key = replicas[0].world.keys["acme"]
    principal = await follower.keys.authenticate(key, None)
    name = f"tenants/acme/apiKeys/{principal.key_id}"
    for _ in range(5):
        await follower.keys.authenticate(key, None)
    assert follower.freshness.lookups[Lookup.KEY_ASKED] == 1
    request = identity_pb2.RevokeApiKeyRequest(name=name, request_id=new_id())
    await replicas[1].world.call("IdentityService.RevokeApiKey", request, it.operator)
    await until(lambda: follower.freshness.outdated(name, time.monotonic() - 5.0))
    with pytest.raises(errors.Unauthenticated):
        await follower.keys.authenticate(key, None)


async def test_a_vplm_deleted_and_made_again_answers_as_the_new_one(it: FeedWorld) -> None:
    replicas, follower, name = await ready(it, 2)
    request = storage_pb2.DeleteVplmRecordRequest(name=name, request_id=new_id())
    world = replicas[1].world
    await world.call("StorageService.DeleteVplm", request, world.service, "acme")
    await until(lambda: follower.freshness.outdated(name, time.monotonic() - 1.0))
    with pytest.raises(errors.NotFound):
        await follower.serving(name)
    await vplm(replicas[1])
    assert await follower.serving(name) == 1


async def test_streams_take_turns_without_a_question(it: FeedWorld) -> None:
    replicas, _, name = await ready(it)
    follower = await it.follower(replicas[0], ttl_s=TTL_S, times=replace(FEED_TIMES, turn_s=0.2))
    await follower.covered()
    await follower.serving(name)
    before, epochs = asked(follower), len(follower.freshness._epochs)
    for version in (2, 1, 2):
        for _ in range(4):
            await asyncio.sleep(TTL_S / 2)
            await follower.serving(name)
        await move(replicas[0], name, version)
        await until(lambda: follower.freshness.outdated(name, time.monotonic() - 0.2))
        assert await follower.serving(name) == version
    assert len(follower.freshness._epochs) == epochs
    assert asked(follower) - before <= 12  # in doubt after each move, and never else


async def test_without_redis_moves_are_seen_by_the_ttl(it: FeedWorld) -> None:
    replicas, follower, name = await ready(it)
    it.redis.stop()
    began = time.monotonic()
    await move(replicas[0], name, 2)
    assert time.monotonic() - began < 5.0
    moved = time.monotonic()
    while await follower.serving(name) != 2:
        assert time.monotonic() - moved < 2 * TTL_S
        await asyncio.sleep(0.01)
    await until(lambda: not follower.freshness.live)


async def test_a_redis_that_comes_back_empty_brings_the_feed_back(it: FeedWorld) -> None:
    replicas, follower, name = await ready(it, 2)
    it.redis.stop()
    await until(lambda: not follower.freshness.live)
    await move(replicas[1], name, 2)
    it.redis.start()
    await follower.covered()
    assert await follower.serving(name) == 2
    await move(replicas[1], name, 1)
    await until(lambda: follower.freshness.outdated(name, time.monotonic() - 1.0))
    assert await follower.serving(name) == 1


async def test_a_frozen_redis_lets_answers_age(it: FeedWorld) -> None:
    replicas, follower, name = await ready(it)
    it.redis.freeze()
    try:
        await move(replicas[0], name, 2)
        await asyncio.sleep(TTL_S)
        assert await follower.serving(name) == 2
        await until(lambda: not follower.freshness.live)
    finally:
        it.redis.thaw()
    await follower.covered()
    assert await follower.serving(name) == 2


async def test_one_replica_without_redis_warns_the_others(it: FeedWorld) -> None:
    """It cannot tell, and who follows another replica must not believe for longer than the TTL."""
    from smile.store.redis import connect

    replicas, follower, name = await ready(it)
    alone = await it.replica(connect("unix:///nowhere/at/all"))
    alone.world.keys.update(replicas[0].world.keys)
    assert not alone.hub.live
    await move(alone, name, 2)
    moved = time.monotonic()
    while await follower.serving(name) != 2:
        assert time.monotonic() - moved < 2 * TTL_S
        await asyncio.sleep(0.01)
    await until(lambda: not follower.freshness.live)
    await follower.covered()  # once the mark has spoken for long enough
    assert await follower.serving(name) == 2
    await move(alone, name, 1)
    moved = time.monotonic()
    while await follower.serving(name) != 1:
        assert time.monotonic() - moved < 2 * TTL_S
        await asyncio.sleep(0.01)


async def test_storage_without_a_feed_says_so(it: FeedWorld) -> None:
    from tests.contract.storage_world import storage_world

    async with storage_world() as world:
        from smile.v1 import changes_pb2

        request = changes_pb2.WatchChangesRequest()
        told = await world.error("ChangeFeedService.WatchChanges", request, world.service)
        assert isinstance(told, errors.FailedPrecondition)
        assert told.reason == "CHANGE_FEED_OFF"
        refused = await world.error("ChangeFeedService.WatchChanges", request, world.keys["acme"])
        assert isinstance(refused, errors.PermissionDenied)
