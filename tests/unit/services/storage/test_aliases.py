"""Aliases remember where they pointed, and go back there."""

from __future__ import annotations

import asyncio
import json

import pytest

from services.storage import keys
from services.storage.aliases import MOVES_REMEMBERED_MAX, AliasMove, Rollback
from services.storage.version_trash import VersionDeletion
from smile.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound
from smile.names import VersionName
from smile.resources import SERVING, AliasMoved, Canary, Vplm
from tests.unit.services.storage.world import (
    World,
    chunks,
    commit,
    module,
    new_id,
    new_version,
    vplm,
)

pytestmark = pytest.mark.asyncio


async def versions(world: World, count: int) -> None:
    """A vPLM with versions 1 to `count`."""
    await commit(world)
    for seed in range(1, count):
        await world.versions.put(new_version(module(seed)), chunks(module(seed)))


async def point(world: World, version: int, canary: Canary | None = None) -> Vplm:
    move = AliasMove(vplm(), SERVING, version, new_id(), canary=canary, by="someone")
    return await world.catalog.set_alias(move)


async def back(world: World, etag: str = "") -> int:
    rolled = await world.catalog.roll_back(Rollback(vplm(), SERVING, new_id(), etag, "someone"))
    return rolled.aliases[SERVING]


async def moves(world: World) -> list[AliasMoved]:
    return await world.catalog.alias_moves(vplm(), SERVING)


async def test_a_rollback_goes_to_where_the_alias_pointed_before(world: World) -> None:
    await versions(world, 3)
    await point(world, 3)
    assert await back(world) == 1, "not to the version of the number before"
    assert (await world.versions.resolve(vplm(), SERVING)).number == 1


async def test_rollbacks_in_a_row_go_further_back(world: World) -> None:
    await versions(world, 4)
    for version in (2, 3):
        await point(world, version)
    assert [await back(world), await back(world)] == [2, 1]
    with pytest.raises(FailedPrecondition) as caught:
        await back(world)
    assert caught.value.reason == "ALIAS_HAS_NO_PAST"
    await point(world, 4)
    assert await back(world) == 1, "to where it pointed, which a rollback had done"
    with pytest.raises(FailedPrecondition):
        await back(world)


async def test_every_move_is_on_record(world: World) -> None:
    await versions(world, 2)
    await point(world, 2)
    await point(world, 2)  # says what is so already
    await back(world)
    newest, second, first = await moves(world)
    assert [(m.number, m.version, m.restores, m.by) for m in (first, second, newest)] == [
        (1, 1, 0, ""),
        (2, 2, 0, "someone"),
        (3, 1, 1, "someone"),
    ]
    assert first.time and second.time and newest.time
    assert first.time <= second.time <= newest.time
    assert await world.catalog.alias_moves(vplm(), "") == [newest, second, first]
    with pytest.raises(NotFound) as caught:
        await world.catalog.alias_moves(vplm(), "staging")
    assert caught.value.reason == "ALIAS_NOT_FOUND"


async def test_a_split_is_taken_back_and_brought_back_whole(world: World) -> None:
    await versions(world, 3)
    await point(world, 1, Canary(2, 0.25))
    await point(world, 3)
    assert await back(world) == 1
    found = await world.versions.resolve(vplm(), SERVING)
    assert found.canary is not None and (found.canary.number, found.canary_weight) == (2, 0.25)
    assert await back(world) == 1
    assert (await world.versions.resolve(vplm(), SERVING)).canary is None


async def test_a_repeated_rollback_has_no_second_effect(world: World) -> None:
    await versions(world, 3)
    await point(world, 2)
    await point(world, 3)
    rollback = Rollback(vplm(), SERVING, new_id())
    first = await world.catalog.roll_back(rollback)
    assert await world.catalog.roll_back(rollback) == first
    assert first.aliases[SERVING] == 2
    with pytest.raises(AlreadyExists):
        await world.catalog.set_alias(AliasMove(vplm(), SERVING, 1, rollback.request_id))


async def test_a_rollback_is_of_what_its_caller_saw(world: World) -> None:
    await versions(world, 3)
    seen = await point(world, 2)
    await point(world, 3)
    with pytest.raises(Aborted):
        await back(world, seen.etag)
    assert await back(world) == 2


async def test_rollbacks_at_once_each_take_one_step(world: World) -> None:
    await versions(world, 5)
    for version in (2, 3, 4, 5):
        await point(world, version)
    assert sorted(await asyncio.gather(*(back(world) for _ in range(4)))) == [1, 2, 3, 4]


async def test_nobody_is_sent_back_to_a_deleted_version(world: World) -> None:
    await versions(world, 2)
    await point(world, 2)
    await world.version_trash.delete(VersionDeletion(VersionName(vplm(), 1), new_id()))
    with pytest.raises(FailedPrecondition) as caught:
        await back(world)
    assert caught.value.reason == "VERSION_DELETED"
    assert (await world.versions.resolve(vplm(), SERVING)).number == 2


async def test_an_alias_that_is_not_there_has_no_way_back(world: World) -> None:
    await versions(world, 1)
    with pytest.raises(NotFound) as caught:
        await world.catalog.roll_back(Rollback(vplm(), "staging", new_id()))
    assert caught.value.reason == "ALIAS_NOT_FOUND"


async def test_moves_are_bounded_and_the_last_ones_stay_exact(world: World) -> None:
    await versions(world, 2)
    for number in range(MOVES_REMEMBERED_MAX + 5):
        await point(world, 2 - number % 2)
    kept = await moves(world)
    assert len(kept) == MOVES_REMEMBERED_MAX
    assert kept[0].number == MOVES_REMEMBERED_MAX + 6
    for _ in range(MOVES_REMEMBERED_MAX // 2):
        before = (await world.catalog.get(vplm())).aliases[SERVING]
        assert await back(world) == 3 - before


async def test_records_from_before_moves_were_kept_have_a_past_from_now_on(world: World) -> None:
    await versions(world, 3)
    await point(world, 2)
    place = keys.vplm(vplm())
    stored = await world.store.get(place)
    assert stored is not None
    old = json.loads(stored.data)
    for field in ("moves", "deleted_versions", "gone_versions"):
        old.pop(field)
    await world.store.compare_and_swap(place, json.dumps(old).encode(), stored.etag)
    assert [(move.number, move.version) for move in await moves(world)] == [(1, 2)]
    await point(world, 3)
    assert await back(world) == 2


async def test_records_from_before_there_were_canaries_are_read(world: World) -> None:
    await commit(world)
    made = await world.catalog.get(vplm())
    place = keys.vplm(vplm())
    stored = await world.store.get(place)
    assert stored is not None
    old = json.loads(stored.data)
    assert old.pop("canaries") == {}
    await world.store.delete(place)
    await world.store.put_if_absent(place, json.dumps(old).encode())
    found = await world.catalog.get(vplm())
    assert (found.uid, found.aliases, found.canaries) == (made.uid, {SERVING: 1}, {})
