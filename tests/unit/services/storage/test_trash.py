"""Deleted vPLMs and versions: gone for everybody, and to be had back for a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from services.storage import keys, records
from services.storage.aliases import AliasMove
from services.storage.listing import store_time
from services.storage.trash import Restoration, VplmDeletion
from services.storage.version_trash import DELETED_VERSIONS_MAX, VersionDeletion
from smile.accounting import Limit
from smile.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    QuotaExceeded,
)
from smile.names import VersionName, VplmName
from smile.resources import SERVING, Canary, Vplm
from smile.store.objects import ObjectStore
from tests.unit.services.storage.world import (
    ACME,
    World,
    chunks,
    commit,
    joined,
    module,
    new_id,
    new_version,
    new_vplm,
    vplm,
)

pytestmark = pytest.mark.asyncio
GRACE = timedelta(days=7)


@pytest_asyncio.fixture
async def world() -> World:
    made = World(grace=GRACE)
    await made.tenant()
    return made


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Lets time go by for the object store, which is whose clock counts."""

    def forward(by: timedelta) -> None:
        async def shifted(store: ObjectStore) -> datetime:
            return await store_time(store) + by

        monkeypatch.setattr("services.storage.grace.store_time", shifted)

    return forward


@pytest.fixture
def wrong_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Puts the clock of this process wrong, and only that."""

    def wrong(by: timedelta) -> None:
        for module_name in ("records", "grace", "trash", "versions", "catalog"):
            monkeypatch.setattr(
                f"services.storage.{module_name}.now", lambda: datetime.now(UTC) + by
            )

    return wrong


async def trash(world: World) -> list[Vplm]:
    """What can be had back."""
    found = [await world.trash.load(ACME, entry) for entry in await world.trash.entries(ACME)]
    return [each for each in found if each is not None]


async def undelete(world: World, uid: str = "", request_id: str = "") -> Vplm:
    return await world.trash.undelete(Restoration(vplm(), request_id or new_id(), uid))


async def put(world: World, seed: int) -> int:
    return (await world.versions.put(new_version(module(seed)), chunks(module(seed)))).number


async def test_a_deleted_vplm_is_gone_at_once_and_comes_back_whole(world: World) -> None:
    await commit(world)
    await put(world, 1)
    await world.catalog.set_alias(AliasMove(vplm(), "staging", 1, new_id(), canary=Canary(2, 0.5)))
    before = await world.catalog.get(vplm())
    deleted = await world.delete(vplm())
    assert deleted.delete_time is not None and deleted.purge_time is not None
    assert deleted.purge_time - deleted.delete_time >= GRACE - timedelta(seconds=5)
    reads: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: world.catalog.get(vplm()),
        lambda: world.versions.get(VersionName(vplm(), 1)),
        lambda: world.versions.resolve(vplm(), ""),
        lambda: world.versions.fetch(vplm(), ""),
        lambda: world.versions.open(VersionName(vplm(), 1)),
        lambda: world.delete(vplm()),
    )
    for read in reads:
        with pytest.raises(NotFound):
            await read()
    assert await world.catalog.list_page(ACME, 10, "") == ([], "")
    assert [found.uid for found in await trash(world)] == [before.uid]
    back = await undelete(world)
    assert (back.uid, back.aliases, back.canaries, back.labels, back.display_name) == (
        before.uid,
        before.aliases,
        before.canaries,
        before.labels,
        before.display_name,
    )
    assert (back.delete_time, back.purge_time) == (None, None)
    assert await world.catalog.get(vplm()) == back
    assert await trash(world) == []
    _, stream = await world.versions.open(VersionName(vplm(), 2))
    assert await joined(stream) == module(1)


async def test_a_name_is_free_again_and_what_had_it_can_wait(world: World) -> None:
    await commit(world)
    first = (await world.delete(vplm())).uid
    await commit(world, seed=1)
    second = (await world.catalog.get(vplm())).uid
    with pytest.raises(AlreadyExists):
        await undelete(world)
    assert [found.uid for found in await trash(world)] == [first]
    await world.delete(vplm())
    assert {found.uid for found in await trash(world)} == {first, second}
    back = await undelete(world, first)
    assert back.uid == first
    _, stream = await world.versions.open(VersionName(vplm(), 1))
    assert await joined(stream) == module()
    await world.delete(vplm())
    assert (await undelete(world)).uid == first, "the last that was deleted"
    await world.delete(vplm())
    assert (await undelete(world, second)).uid == second
    with pytest.raises(NotFound):
        await world.delete(vplm("other"))


async def test_repeated_requests_have_no_second_effect(world: World) -> None:
    await commit(world)
    deletion, restoration = new_id(), new_id()
    first = await world.delete(vplm(), "", deletion)
    again = await world.delete(vplm(), "", deletion)
    assert (again.uid, again.purge_time) == (first.uid, first.purge_time)
    back = await undelete(world, request_id=restoration)
    assert await undelete(world, request_id=restoration) == back
    assert await world.delete(vplm(), "", deletion) == back, "late: it was had back since"
    await world.delete(vplm())
    await commit(world, seed=1)
    live = await world.catalog.get(vplm())
    with pytest.raises(AlreadyExists):
        await undelete(world, request_id=restoration)
    assert await world.catalog.get(vplm()) == live


async def test_a_request_that_made_what_is_in_the_trash_makes_nothing_else(world: World) -> None:
    new = new_vplm()
    await world.catalog.commit(new, chunks(module()))
    await world.delete(vplm())
    await commit(world, seed=1)
    await world.delete(vplm())
    with pytest.raises(AlreadyExists) as caught:
        await world.catalog.commit(new, chunks(module()))
    assert caught.value.reason == "REQUEST_ID_USED"


async def test_after_the_grace_period_nothing_is_left(
    world: World, later: Callable[[timedelta], None]
) -> None:
    await commit(world)
    await world.delete(vplm())
    assert await world.trash.sweep() == 0
    assert len(await trash(world)) == 1
    later(GRACE + timedelta(minutes=1))
    assert await world.trash.sweep() == 1
    assert await trash(world) == []
    with pytest.raises(NotFound):
        await undelete(world)
    assert [key for key in await world.keys() if "ertain" in key or "/deleted" in key] == []
    assert not [key for key in await world.keys() if "/versions/" in key or "/blobs/" in key]
    assert await world.trash.sweep() == 0
    await commit(world, seed=1)


async def test_bytes_of_deleted_vplms_count_until_they_are_gone(world: World) -> None:
    await commit(world)
    await world.delete(vplm())
    used = sum(info.size for info in await world.store.list_objects(keys.owned(ACME)))
    small = World(grace=GRACE)
    await small.tenant(quota_bytes=used + len(module()) // 2)
    await commit(small)
    await small.delete(vplm())
    with pytest.raises(QuotaExceeded):
        await commit(small, vplm("other"))
    await small.trash.delete(VplmDeletion(vplm(), new_id(), for_good=True))
    await commit(small, vplm("other"))
    with pytest.raises(NotFound):
        await small.trash.undelete(Restoration(vplm(), new_id()))


@pytest.mark.parametrize("live", [True, False])
async def test_for_good_is_at_once_and_takes_what_is_in_the_trash(world: World, live: bool) -> None:
    await commit(world)
    await world.delete(vplm())
    if live:
        await commit(world, seed=1)
    wanted = VplmDeletion(vplm(), new_id(), for_good=True)
    gone = await world.trash.delete(wanted)
    assert gone.name == str(vplm())
    await world.trash.delete(wanted)
    assert [key for key in await world.keys() if "/vplms/" in key] == [keys.vplm(vplm())]
    assert not [key for key in await world.keys() if "/deleted" in key]
    with pytest.raises(NotFound):
        await undelete(world)
    with pytest.raises(NotFound):
        await world.trash.delete(VplmDeletion(vplm(), new_id(), for_good=True))


@pytest.mark.parametrize("sweeper_first", [True, False])
async def test_an_undelete_and_the_sweeper_do_not_both_win(
    world: World, later: Callable[[timedelta], None], sweeper_first: bool
) -> None:
    """One stops for days just before it writes the record; the other goes on meanwhile."""
    await commit(world)
    await world.delete(vplm())
    swap = world.store.compare_and_swap
    held, go = asyncio.Event(), asyncio.Event()

    async def slow(key: str, data: bytes, etag: str | None) -> str:
        if key == keys.vplm(vplm()) and not held.is_set():
            held.set()
            await go.wait()
        return await swap(key, data, etag)

    world.store.compare_and_swap = slow  # type: ignore[method-assign]
    if sweeper_first:
        undeleting = asyncio.create_task(undelete(world))
        await held.wait()
        later(GRACE + timedelta(days=3))
        assert await world.trash.sweep() == 1
        go.set()
        with pytest.raises(Aborted):
            await undeleting
        assert not [key for key in await world.keys() if "/blobs/" in key]
        with pytest.raises(NotFound):
            await undelete(world)
    else:
        stale = await world.trash.entries(ACME)
        later(GRACE + timedelta(days=3))
        sweeping = asyncio.create_task(world.trash.sweep())
        await held.wait()
        with pytest.raises(NotFound):
            await undelete(world)
        go.set()
        assert (await sweeping, await world.trash.entries(ACME)) == (1, [])
        assert stale


async def test_what_a_broken_off_deletion_left_is_not_seen(
    world: World, later: Callable[[timedelta], None]
) -> None:
    await commit(world)
    record = await world.catalog.record(vplm())
    await world.delete(vplm())
    await undelete(world)
    stale = records.DeletedVplm(
        record=record.document.model_copy(
            update={
                "deleted": records.Deletion(
                    request_id="r", time=records.now(), purge_time=records.now() + GRACE
                )
            }
        )
    )
    place = keys.deleted_vplm(vplm(), record.document.uid, "stale")
    await world.store.put_if_absent(place, stale.model_dump_json(by_alias=True).encode())
    assert await trash(world) == []
    assert await world.trash.sweep() == 0
    later(timedelta(days=30))
    assert await world.trash.sweep() == 0
    assert await world.store.get(place) is None
    assert (await world.catalog.get(vplm())).latest_version == 1


async def delete_version(world: World, number: int, **how: bool) -> None:
    await world.version_trash.delete(
        VersionDeletion(VersionName(vplm(), number), new_id(), **how)  # type: ignore[arg-type]
    )


async def numbers(world: World, *, deleted: bool = False) -> list[int]:
    listed, _ = await world.versions.list_page(vplm(), 100, "", show_deleted=deleted)
    return [version.number for version in listed]


async def test_a_deleted_version_is_gone_and_comes_back(world: World) -> None:
    await commit(world)
    for seed in (1, 2):
        await put(world, seed)
    name = VersionName(vplm(), 2)
    before = await world.versions.get(name)
    await delete_version(world, 2)
    reads: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: world.versions.get(name),
        lambda: world.versions.open(name),
        lambda: world.catalog.set_alias(AliasMove(vplm(), SERVING, 2, new_id())),
        lambda: delete_version(world, 2),
    )
    for read in reads:
        with pytest.raises(NotFound) as caught:
            await read()
        assert caught.value.message == f"{name} does not exist"
    assert (await numbers(world), await numbers(world, deleted=True)) == ([3, 1], [3, 2, 1])
    assert await put(world, 4) == 4, "numbers are not given twice"
    assert await world.version_trash.undelete(name, new_id()) == before
    assert await numbers(world) == [4, 3, 2, 1]
    with pytest.raises(NotFound):
        await world.version_trash.undelete(name, new_id())


async def test_what_an_alias_names_stays(world: World) -> None:
    await commit(world)
    for seed in (1, 2):
        await put(world, seed)
    await world.catalog.set_alias(AliasMove(vplm(), "next", 1, new_id(), canary=Canary(2, 0.1)))
    for number in (1, 2):
        with pytest.raises(FailedPrecondition, match="next") as caught:
            await delete_version(world, number)
        assert caught.value.reason == "VERSION_IN_USE"
    await delete_version(world, 3)


async def test_an_alias_and_a_deletion_at_once_leave_no_alias_without_version(world: World) -> None:
    await commit(world)
    await put(world, 1)
    done = await asyncio.gather(
        world.catalog.set_alias(AliasMove(vplm(), SERVING, 2, new_id())),
        delete_version(world, 2),
        return_exceptions=True,
    )
    assert sum(isinstance(each, BaseException) for each in done) == 1
    await world.versions.resolve(vplm(), SERVING)


async def test_versions_of_the_trash_end_with_the_grace_period(
    world: World, later: Callable[[timedelta], None]
) -> None:
    await commit(world)
    for seed in range(1, 6):
        await put(world, seed)
    for number in (2, 4, 3):
        await delete_version(world, number)
    assert await world.version_trash.sweep() == 0
    later(GRACE + timedelta(minutes=1))
    assert await world.version_trash.sweep() == 3
    assert await numbers(world, deleted=True) == [6, 5, 1]
    record = (await world.catalog.record(vplm())).document
    assert (record.gone_versions, record.deleted_versions) == (((2, 4),), {})
    uid = record.uid
    left = [key for key in await world.keys() if "/versions/" in key]
    assert left == [keys.version(vplm(), uid, number) for number in (1, 5, 6)]
    assert not [key for key in await world.keys() if "/deletedVersions/" in key]
    with pytest.raises(NotFound):
        await world.version_trash.undelete(VersionName(vplm(), 3), new_id())
    assert await world.version_trash.sweep() == 0
    assert await put(world, 9) == 7


@pytest.mark.parametrize("first", [False, True])
async def test_a_version_can_be_deleted_for_good(world: World, first: bool) -> None:
    """At once, or out of the trash."""
    await commit(world)
    await put(world, 1)
    if first:
        await delete_version(world, 2)
    wanted = VersionDeletion(VersionName(vplm(), 2), new_id(), for_good=True)
    gone = await world.version_trash.delete(wanted)
    assert (await world.version_trash.delete(wanted)).name == gone.name
    with pytest.raises(NotFound):
        await world.version_trash.undelete(wanted.name, new_id())
    assert await world.version_trash.sweep() == 1
    assert await numbers(world, deleted=True) == [1]


@pytest.mark.parametrize("days", [30, -30])
async def test_a_wrong_clock_ends_no_grace_period(
    world: World, wrong_clock: Callable[[timedelta], None], days: int
) -> None:
    """Neither where it deletes nor where it sweeps, nor where it is asked to undo."""
    await commit(world)
    for name in ("early", "late"):
        await commit(world, vplm(name))
    for seed in (1, 2):
        await put(world, seed)
    await world.delete(vplm("early"))
    await delete_version(world, 2)
    wrong_clock(timedelta(days=days))
    await world.delete(vplm("late"))
    await delete_version(world, 3)
    assert (await world.trash.sweep(), await world.version_trash.sweep()) == (0, 0)
    for name in ("early", "late"):
        await world.trash.undelete(Restoration(vplm(name), new_id()))
    for number in (2, 3):
        await world.version_trash.undelete(VersionName(vplm(), number), new_id())
    assert await numbers(world) == [3, 2, 1]


@pytest.mark.parametrize("days", [30, -30])
async def test_a_wrong_clock_prolongs_no_grace_period(
    world: World,
    later: Callable[[timedelta], None],
    wrong_clock: Callable[[timedelta], None],
    days: int,
) -> None:
    await commit(world)
    wrong_clock(timedelta(days=days))
    await world.delete(vplm())
    later(GRACE + timedelta(minutes=1))
    assert await world.trash.sweep() == 1


async def test_deleted_versions_are_bounded(world: World) -> None:
    await commit(world)
    name = vplm()
    place = keys.vplm(name)
    stored = await world.catalog.record(name)
    ended = records.Deletion(request_id="r", time=records.now(), purge_time=records.now() + GRACE)
    filled = stored.document.model_copy(
        update={
            "deleted_versions": {n: ended for n in range(2, 2 + DELETED_VERSIONS_MAX)},
            "latest_version": DELETED_VERSIONS_MAX + 1,
        }
    )
    data = filled.model_dump_json(by_alias=True).encode()
    await world.store.compare_and_swap(place, data, stored.etag)
    number = await put(world, 1)
    with pytest.raises(QuotaExceeded, match=str(DELETED_VERSIONS_MAX)):
        await delete_version(world, number)


async def test_deleted_versions_of_a_deleted_vplm_come_back_with_it(
    world: World, later: Callable[[timedelta], None]
) -> None:
    await commit(world)
    await put(world, 1)
    await delete_version(world, 2)
    await world.delete(vplm())
    later(timedelta(days=1))
    assert await world.version_trash.sweep() == 0
    await undelete(world)
    await world.version_trash.undelete(VersionName(vplm(), 2), new_id())
    assert await numbers(world) == [2, 1]


async def test_stale_etags_keep_what_is_there(world: World) -> None:
    await commit(world)
    etag = (await world.catalog.get(vplm())).etag
    await put(world, 1)
    with pytest.raises(Aborted):
        await world.delete(vplm(), etag)
    with pytest.raises(Aborted):
        await world.version_trash.delete(VersionDeletion(VersionName(vplm(), 2), new_id(), etag))
    deleted = await world.delete(vplm())
    with pytest.raises(Aborted):
        await world.trash.undelete(Restoration(vplm(), new_id(), etag=etag))
    (found,) = await trash(world)
    assert found.uid == deleted.uid
    await world.trash.undelete(Restoration(vplm(), new_id(), etag=found.etag))


async def test_no_more_vplms_come_back_than_a_tenant_may_have(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit(world)
    await world.delete(vplm())
    limits = {**world.identity.limits_of(await world.identity.tenant(ACME)), Limit.VPLMS: 1}
    monkeypatch.setattr(world.identity, "limits_of", lambda _: limits)
    await commit(world, VplmName(ACME, "other"))
    with pytest.raises(QuotaExceeded):
        await undelete(world)
    assert len(await trash(world)) == 1
