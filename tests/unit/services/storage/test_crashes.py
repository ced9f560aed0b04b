"""The process ends, or the store fails, at every single operation: nothing torn is ever visible,
and sending the same request again completes it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from services.storage.aliases import AliasMove, Rollback
from services.storage.trash import Restoration, VplmDeletion
from services.storage.usage import UsageAsked
from services.storage.version_trash import VersionDeletion
from smile.errors import NotFound, SmileError, Unavailable
from smile.names import DatasetName, VersionName
from smile.resources import SERVING, Dataset, TrainingJob, Vplm, VplmVersion
from tests.unit.services.storage.world import (
    ACME,
    FaultyStore,
    InjectedCrash,
    World,
    chunks,
    commit,
    declared,
    derived_vplm,
    joined,
    module,
    new_adapter,
    new_dataset,
    new_id,
    new_version,
    new_vplm,
    vplm,
)

pytestmark = pytest.mark.asyncio
OPERATIONS_MAX = 60
Act = Callable[[World], Awaitable[object]]
Check = Callable[[World], Awaitable[None]]


async def _whole(world: World) -> None:
    """Everything that can be seen can be read, and is what its digest says."""
    vplms, _ = await world.catalog.list_page(ACME, 100, "")
    for made in vplms:
        versions, _ = await world.versions.list_page(vplm(), 100, "")
        record = (await world.catalog.record(vplm())).document
        numbers = record.numbers()
        assert [version.number for version in versions] == numbers
        assert set(made.aliases.values()) <= set(numbers)
        for version in versions:
            _, stream = await world.versions.open(VersionName(vplm(), version.number))
            data = await joined(stream)
            assert hashlib.sha256(data).hexdigest() == version.digest
    datasets, _ = await world.datasets.list_page(ACME, 100, "")
    for dataset in datasets:
        _, stream = await world.datasets.open(DatasetName.parse(dataset.name))
        assert hashlib.sha256(await joined(stream)).hexdigest() == dataset.digest


async def _at_every_operation(
    prepare: Act, act: Act, check: Check, *, grace: timedelta = timedelta(0)
) -> None:
    """Break `act` at each of its operations, before and after its effect, by crash and by error."""
    crashes = 0
    for after_effect in (False, True):
        for fail_at in range(OPERATIONS_MAX):
            for error in (InjectedCrash(), Unavailable("the store is away")):
                store = FaultyStore()
                world = World(store, grace=grace)
                await world.tenant()
                await prepare(world)
                store.arm(fail_at, after_effect=after_effect, error=error)
                with contextlib.suppress(InjectedCrash, Unavailable):
                    await act(world)
                store.disarm()
                crashes += store.fired
                restarted = World(store, grace=grace)  # nothing is remembered in the process
                await _whole(restarted)
                await act(restarted)
                await _whole(restarted)
                await check(restarted)
            if not store.fired:
                break
        else:
            pytest.fail(f"more than {OPERATIONS_MAX} operations")
    assert crashes >= 8


async def _nothing(world: World) -> None:
    return None


async def test_commit_vplm() -> None:
    new = new_vplm()
    made: list[Vplm] = []

    async def act(world: World) -> None:
        made.append(await world.catalog.commit(new, chunks(module())))

    async def check(world: World) -> None:
        found = await world.catalog.get(vplm())
        assert found == made[-1]
        assert (found.latest_version, found.aliases) == (1, {SERVING: 1})
        usage = await world.usage.of(ACME, UsageAsked(10))
        assert (usage.vplm_count, usage.vplms[0].size_bytes) == (1, len(module()))

    await _at_every_operation(_nothing, act, check)


async def test_commit_vplm_over_a_deleted_one() -> None:
    new = new_vplm()

    async def prepare(world: World) -> None:
        await commit(world)
        await world.delete(vplm(), "", new_id())

    async def act(world: World) -> None:
        await world.catalog.commit(new, chunks(module()))

    async def check(world: World) -> None:
        assert (await world.catalog.get(vplm())).uid == new.uid

    await _at_every_operation(prepare, act, check)


async def test_put_version() -> None:
    data = module(1)
    new = new_version(data)
    made: list[VplmVersion] = []

    async def act(world: World) -> None:
        made.append(await world.versions.put(new, chunks(data)))

    async def check(world: World) -> None:
        assert made[-1].number == 2
        found = await world.catalog.get(vplm())
        assert (found.latest_version, found.aliases) == (2, {SERVING: 1})

    await _at_every_operation(commit, act, check)


async def test_put_version_after_another_broke_off() -> None:
    """A manifest without a pointer keeps its number, and its request finds it again."""
    store = FaultyStore()
    world = World(store)
    await world.tenant()
    await commit(world)
    first, second = module(1), module(2)
    broken = new_version(first)
    for fail_at in range(OPERATIONS_MAX):
        store.arm(fail_at, after_effect=True, error=InjectedCrash())
        try:
            await world.versions.put(broken, chunks(first))
        except InjectedCrash:
            if any(key.endswith("000000002.json") for key in await world.keys()):
                break
    store.disarm()
    with pytest.raises(NotFound):
        await world.versions.get(VersionName(vplm(), 2))
    other = await world.versions.put(new_version(second), chunks(second))
    again = await world.versions.put(broken, chunks(first))
    assert (again.number, other.number) == (2, 3)
    assert (await world.catalog.get(vplm())).latest_version == 3
    await _whole(world)


async def test_set_alias() -> None:
    move = AliasMove(vplm(), SERVING, 2, new_id())

    async def prepare(world: World) -> None:
        await commit(world)
        data = module(1)
        await world.versions.put(new_version(data), chunks(data))

    async def act(world: World) -> None:
        await world.catalog.set_alias(move)

    async def check(world: World) -> None:
        found = await world.catalog.get(vplm())
        assert found.aliases == {SERVING: 2}

    await _at_every_operation(prepare, act, check)


async def test_delete_vplm() -> None:
    request_id = new_id()

    async def act(world: World) -> None:
        await world.delete(vplm(), "", request_id)

    async def check(world: World) -> None:
        assert await world.catalog.list_page(ACME, 10, "") == ([], "")
        assert not [key for key in await world.keys() if "/versions/" in key or "/blobs/" in key]

    await _at_every_operation(commit, act, check)


GRACE = timedelta(days=7)


async def _two_versions(world: World) -> None:
    await commit(world)
    await world.versions.put(new_version(module(1)), chunks(module(1)))


async def test_delete_and_undelete_vplm() -> None:
    deletion, restoration = new_id(), Restoration(vplm(), new_id())

    async def deleted(world: World) -> None:
        await world.delete(vplm(), "", deletion)

    async def in_the_trash(world: World) -> None:
        assert await world.catalog.list_page(ACME, 10, "") == ([], "")
        (found,), _ = await world.trash.list_page(ACME, 10, "")
        assert found.latest_version == 2
        assert (await world.usage.of(ACME, UsageAsked(10))).vplm_count == 0

    await _at_every_operation(_two_versions, deleted, in_the_trash, grace=GRACE)

    async def made_and_deleted(world: World) -> None:
        await _two_versions(world)
        await deleted(world)

    async def undelete(world: World) -> None:
        await world.trash.undelete(restoration)

    async def back(world: World) -> None:
        assert (await world.catalog.get(vplm())).latest_version == 2
        assert len((await world.trash.list_page(ACME, 10, ""))[0]) == 1
        assert await world.trash.sweep() == 0

    await _at_every_operation(made_and_deleted, undelete, back, grace=GRACE)


async def test_delete_and_undelete_version() -> None:
    name = VersionName(vplm(), 2)
    deletion, restoration = VersionDeletion(name, new_id()), new_id()

    async def delete(world: World) -> None:
        await world.version_trash.delete(deletion)

    async def deleted(world: World) -> None:
        assert (await world.catalog.record(vplm())).document.numbers() == [1]
        assert await world.version_trash.sweep() == 0

    await _at_every_operation(_two_versions, delete, deleted, grace=GRACE)

    async def made_and_deleted(world: World) -> None:
        await _two_versions(world)
        await delete(world)

    async def undelete(world: World) -> None:
        await world.version_trash.undelete(name, restoration)

    async def back(world: World) -> None:
        assert (await world.catalog.record(vplm())).document.numbers() == [2, 1]

    await _at_every_operation(made_and_deleted, undelete, back, grace=GRACE)


async def test_delete_for_good_out_of_the_trash() -> None:
    wanted = VplmDeletion(vplm(), new_id(), for_good=True)

    async def prepare(world: World) -> None:
        await _two_versions(world)
        await world.delete(vplm())
        await commit(world, seed=2)

    async def act(world: World) -> None:
        await world.trash.delete(wanted)

    async def check(world: World) -> None:
        assert (await world.trash.list_page(ACME, 10, ""))[0] == []
        assert (await world.usage.of(ACME, UsageAsked(10))).vplm_count == 0

    await _at_every_operation(prepare, act, check, grace=GRACE)


async def test_roll_back() -> None:
    rollback = Rollback(vplm(), SERVING, new_id())

    async def prepare(world: World) -> None:
        await _two_versions(world)
        await world.catalog.set_alias(AliasMove(vplm(), SERVING, 2, new_id()))

    async def act(world: World) -> None:
        await world.catalog.roll_back(rollback)

    async def check(world: World) -> None:
        assert (await world.catalog.get(vplm())).aliases == {SERVING: 1}
        assert len(await world.catalog.alias_moves(vplm(), SERVING)) == 3

    await _at_every_operation(prepare, act, check)


async def test_publish_adapter_and_derive() -> None:
    """The bytes are there before the record, and a version refers to them after it."""
    new = new_adapter()
    derived = derived_vplm(new)

    async def publish(world: World) -> None:
        await world.adapters.commit(new, chunks(module()))

    async def published(world: World) -> None:
        (found,), _ = await world.adapters.list_page(10, "")
        assert hashlib.sha256(await joined(await world.adapters.open(new.name))).hexdigest() == (
            found.digest
        )

    await _at_every_operation(_nothing, publish, published)

    async def derive(world: World) -> None:
        await world.catalog.commit(derived, chunks(b""))

    async def whole(world: World) -> None:
        assert (await world.versions.get(VersionName(vplm(), 1))).derived_from is not None

    await _at_every_operation(publish, derive, whole)


async def test_upload_and_delete_dataset() -> None:
    data = b"text,label\n" * 500
    new = new_dataset(data)
    made: list[Dataset] = []

    async def upload(world: World) -> None:
        made.append(await world.datasets.upload(new, chunks(data)))

    async def uploaded(world: World) -> None:
        assert await world.datasets.get(new.name) == made[-1]
        assert (await world.usage.of(ACME, UsageAsked(1))).dataset_bytes == len(data)

    await _at_every_operation(_nothing, upload, uploaded)
    request_id = new_id()

    async def delete(world: World) -> None:
        await world.datasets.delete(new.name, request_id)

    async def deleted(world: World) -> None:
        assert await world.datasets.list_page(ACME, 10, "") == ([], "")
        assert (await world.usage.of(ACME, UsageAsked(1))).dataset_bytes == 0

    await _at_every_operation(upload, delete, deleted)


async def test_create_training_record() -> None:
    job = TrainingJob(
        f"tenants/{ACME}/trainingJobs/j1", str(vplm()), f"tenants/{ACME}/datasets/news"
    )

    async def act(world: World) -> None:
        await world.records.create(job)

    async def check(world: World) -> None:
        listed, _ = await world.records.list_page(ACME, 10, "")
        pending, _ = await world.records.list_pending(10, "")
        assert [record.job.name for record in listed] == [job.name]
        assert pending == listed

    await _at_every_operation(_nothing, act, check)


@pytest.mark.parametrize("good", [0, 1, 3])
async def test_a_stream_that_breaks_off_leaves_nothing(world: World, good: int) -> None:
    data = b"x" * 5000
    before = await world.keys()

    async def broken() -> AsyncIterator[bytes]:
        async for number, chunk in _numbered(chunks(data)):
            if number == good:
                raise ConnectionError("the client went away")
            yield chunk

    with pytest.raises(ConnectionError):
        await world.datasets.upload(new_dataset(data), broken())
    with pytest.raises(ConnectionError):
        await world.catalog.commit(replace(new_vplm(), declared=declared(data)), broken())
    assert await world.keys() == before


async def test_a_store_that_fails_in_mid_download_ends_the_stream_badly() -> None:
    store = FaultyStore()
    world = World(store)
    await world.tenant()
    data = b"y" * 3_000_000
    new = new_dataset(data)
    wide = World(store, dataset_bytes_max=10_000_000)
    await wide.datasets.upload(new, chunks(data, 500_000))
    store.arm(1, after_effect=True, error=Unavailable("gone"))  # 0 reads the record
    _, stream = await wide.datasets.open(new.name)
    with pytest.raises(SmileError):
        await joined(stream)


async def _numbered(stream: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    number = 0
    async for chunk in stream:
        yield number, chunk
        number += 1
