"""vPLM records and versions: commit, idempotency, aliases, pages, deletion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from services.storage import keys
from services.storage.aliases import ALIASES_MAX, AliasMove
from services.storage.blobs import Declared
from services.storage.catalog import VplmChange
from services.storage.usage import UsageAsked
from smile import codec
from smile.errors import (
    Aborted,
    AlreadyExists,
    DataCorrupted,
    InvalidArgument,
    InvalidSpec,
    NotFound,
    QuotaExceeded,
)
from smile.limits import MESSAGE_BYTES_MAX
from smile.model.specs import DType, HeadSpec, PetKind, PetSpec, Task
from smile.names import VersionName
from smile.resources import SERVING, Canary, VersionOrigin, Vplm
from tests.unit.services.storage.world import (
    ACME,
    BACKBONE,
    OTHER,
    SPEC,
    World,
    bad_module,
    chunks,
    commit,
    declared,
    joined,
    module,
    new_id,
    new_version,
    new_vplm,
    vplm,
)

pytestmark = pytest.mark.asyncio


async def test_a_committed_vplm_is_whole(world: World) -> None:
    new = new_vplm()
    made = await world.catalog.commit(new, chunks(module()))
    assert (made.name, made.latest_version, made.aliases) == (str(vplm()), 1, {SERVING: 1})
    assert made.spec == SPEC
    assert made.labels == {"team": "news"}
    assert await world.catalog.get(vplm()) == made
    version, stream = await world.versions.open(VersionName(vplm(), 1))
    assert await joined(stream) == module()
    assert (version.origin, version.digest) == (VersionOrigin.INITIAL, new.declared.digest)


async def test_a_repeated_commit_gives_the_earlier_answer(world: World) -> None:
    new = new_vplm()
    first = await world.catalog.commit(new, chunks(module()))
    assert await world.catalog.commit(new, chunks(module())) == first
    with pytest.raises(AlreadyExists):
        await world.catalog.commit(new_vplm(), chunks(module()))


async def test_concurrent_commits_of_one_name_make_one(world: World) -> None:
    results = await asyncio.gather(
        *(world.catalog.commit(new_vplm(), chunks(module())) for _ in range(6)),
        return_exceptions=True,
    )
    made = [result for result in results if not isinstance(result, BaseException)]
    assert len(made) == 1
    assert all(isinstance(result, AlreadyExists) for result in results if result is not made[0])
    assert await world.catalog.get(vplm()) == made[0]
    uids = await world.store.list_folders(keys.vplm_folder(vplm()))
    assert uids == [made[0].uid]


@pytest.mark.parametrize(
    ("data", "said", "reason"),
    [
        (b"", declared(module()), "STREAM_TRUNCATED"),
        (module()[:-1], declared(module()), "STREAM_TRUNCATED"),
        (module() + b"x", declared(module()), "STREAM_TOO_LONG"),
        (module(1), declared(module()), "DIGEST_MISMATCH"),
        (bad_module(), declared(bad_module()), "MODULE_INVALID"),
        (b"\x00" * 100, declared(b"\x00" * 100), "MODULE_INVALID"),
        (b"\x80\x04.", declared(b"\x80\x04."), "MODULE_INVALID"),
    ],
)
async def test_wrong_bytes_leave_nothing(
    world: World, data: bytes, said: Declared, reason: str
) -> None:
    before = await world.keys()
    with pytest.raises(InvalidArgument) as caught:
        await world.catalog.commit(replace(new_vplm(), declared=said), chunks(data))
    assert caught.value.reason == reason
    assert await world.keys() == before
    await commit(world)
    before = await world.keys()
    with pytest.raises(InvalidArgument) as caught:
        await world.versions.put(replace(new_version(data), declared=said), chunks(data))
    assert caught.value.reason == reason
    assert await world.keys() == before


async def test_an_excess_is_refused_before_the_stream_ends(world: World) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 1000

    with pytest.raises(InvalidArgument):
        await world.catalog.commit(new_vplm(), endless())
    assert taken <= len(module()) // 1000 + 1


async def test_modules_of_other_shapes_are_refused(world: World) -> None:
    other = replace(SPEC, head=HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b", "c")))
    data = module(spec=other)
    with pytest.raises(InvalidArgument, match="shape") as caught:
        await world.catalog.commit(new_vplm(data=data), chunks(data))
    assert caught.value.reason == "MODULE_INVALID"


async def test_the_spec_must_fit_the_backbone(world: World) -> None:
    other = replace(BACKBONE, digest="cd" * 32)
    with pytest.raises(InvalidArgument) as caught:
        await world.catalog.commit(replace(new_vplm(), backbone=other), chunks(module()))
    assert caught.value.reason == "BACKBONE_MISMATCH"
    deep = replace(SPEC, pet=PetSpec(PetKind.PFEIFFER, first_layer=2, rank=2))
    for spec in (deep, replace(SPEC, pet=PetSpec(PetKind.PFEIFFER, rank=2))):
        with pytest.raises(InvalidSpec):
            await world.catalog.commit(replace(new_vplm(), spec=spec), chunks(module()))


async def test_versions_count_up_and_move_no_alias(world: World) -> None:
    await commit(world)
    for seed in (1, 2, 3):
        data = module(seed)
        version = await world.versions.put(new_version(data), chunks(data))
        assert version.number == seed + 1
    found = await world.catalog.get(vplm())
    assert (found.latest_version, found.aliases) == (4, {SERVING: 1})
    assert (await world.versions.resolve(vplm(), "")).number == 1


async def test_concurrent_puts_get_numbers_without_gaps(world: World) -> None:
    await commit(world)
    data = [module(seed) for seed in range(8)]
    versions = await asyncio.gather(
        *(world.versions.put(new_version(each), chunks(each)) for each in data)
    )
    assert sorted(version.number for version in versions) == list(range(2, 10))
    listed, _ = await world.versions.list_page(vplm(), 100, "")
    assert [version.number for version in listed] == list(range(9, 0, -1))
    assert {v.digest for v in versions} == {declared(each).digest for each in data}


async def test_a_repeated_put_gives_the_earlier_version(world: World) -> None:
    await commit(world)
    data = module(1)
    new = new_version(data)
    first = await world.versions.put(new, chunks(data))
    assert await world.versions.put(new, chunks(data)) == first
    assert (await world.catalog.get(vplm())).latest_version == 2
    with pytest.raises(AlreadyExists) as caught:
        other = module(2)
        await world.versions.put(replace(new, declared=declared(other)), chunks(other))
    assert caught.value.reason == "REQUEST_ID_USED"


async def test_equal_bytes_make_two_versions_of_one_blob(world: World) -> None:
    await commit(world)
    await world.versions.put(new_version(module()), chunks(module()))
    blobs = [key for key in await world.keys() if "/blobs/" in key]
    assert len(blobs) == 1
    usage = await world.usage.of(ACME, UsageAsked(10))
    assert (usage.vplms[0].versions, usage.vplms[0].size_bytes) == (2, len(module()))


async def test_only_the_precision_of_a_version_may_differ(world: World) -> None:
    await commit(world)
    wide = replace(SPEC, dtype=DType.FLOAT32)
    data = module(1, wide)
    version = await world.versions.put(replace(new_version(data), spec=wide), chunks(data))
    assert version.spec.dtype is DType.FLOAT32
    for spec in (
        replace(SPEC, backbone_digest="cd" * 32),
        replace(SPEC, head=HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("yes", "no"))),
        replace(SPEC, pet=PetSpec(PetKind.BITFIT, first_layer=1)),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await world.versions.put(replace(new_version(data), spec=spec), chunks(data))
        assert caught.value.reason == "SPEC_MISMATCH"


async def test_the_training_job_belongs_to_training(world: World) -> None:
    await commit(world)
    data = module(1)
    new = new_version(data)
    job = f"tenants/{ACME}/trainingJobs/j1"
    with pytest.raises(InvalidArgument):
        await world.versions.put(replace(new, training_job=job), chunks(data))
    trained = replace(new, origin=VersionOrigin.TRAINING)
    with pytest.raises(InvalidArgument):
        await world.versions.put(trained, chunks(data))
    with pytest.raises(InvalidArgument):
        foreign = f"tenants/{OTHER}/trainingJobs/j1"
        await world.versions.put(replace(trained, training_job=foreign), chunks(data))
    done = await world.versions.put(
        replace(trained, training_job=job, metrics={"accuracy": 0.5}), chunks(data)
    )
    assert (done.training_job, done.metrics) == (job, {"accuracy": 0.5})


async def test_aliases_move_by_request(world: World) -> None:
    await commit(world)
    data = module(1)
    await world.versions.put(new_version(data), chunks(data))
    move = AliasMove(vplm(), SERVING, 2, new_id())
    moved = await world.catalog.set_alias(move)
    assert moved.aliases == {SERVING: 2}
    back = await world.catalog.set_alias(AliasMove(vplm(), SERVING, 1, new_id()))
    assert await world.catalog.set_alias(move) == back  # repeated: no second effect
    assert (await world.versions.resolve(vplm(), SERVING)).number == 1
    with pytest.raises(NotFound):
        await world.catalog.set_alias(AliasMove(vplm(), SERVING, 3, new_id()))
    with pytest.raises(NotFound) as caught:
        await world.versions.resolve(vplm(), "staging")
    assert caught.value.reason == "ALIAS_NOT_FOUND"


async def test_an_alias_splits_its_traffic_until_it_moves(world: World) -> None:
    await commit(world)
    await world.versions.put(new_version(module(1)), chunks(module(1)))
    etag = (await world.catalog.get(vplm())).etag
    split = AliasMove(vplm(), SERVING, 1, new_id(), etag, Canary(2, 0.25))
    moved = await world.catalog.set_alias(split)
    assert (moved.aliases, moved.canaries) == ({SERVING: 1}, {SERVING: Canary(2, 0.25)})
    assert await world.catalog.get(vplm()) == moved, "kept"
    with pytest.raises(Aborted):
        await world.catalog.set_alias(replace(split, request_id=new_id()))  # the same etag again
    await world.catalog.set_alias(AliasMove(vplm(), "other", 2, new_id()))
    found = await world.versions.resolve(vplm(), SERVING)
    assert found.canary is not None
    assert (found.number, found.canary.number, found.canary_weight) == (1, 2, 0.25)
    assert found.canary == await world.versions.get(VersionName(vplm(), 2))
    assert (await world.versions.resolve(vplm(), "other")).canary is None
    promoted = await world.catalog.set_alias(AliasMove(vplm(), SERVING, 2, new_id()))
    assert (promoted.aliases[SERVING], promoted.canaries) == (2, {})
    assert (await world.versions.resolve(vplm(), SERVING)).canary is None


async def test_a_canary_is_another_version_that_exists(world: World) -> None:
    await commit(world)
    before = await world.catalog.get(vplm())
    for canary, error in ((Canary(2, 0.5), NotFound), (Canary(1, 0.5), InvalidArgument)):
        with pytest.raises(error):
            await world.catalog.set_alias(AliasMove(vplm(), SERVING, 1, new_id(), "", canary))
    assert await world.catalog.get(vplm()) == before


async def test_aliases_are_bounded(world: World) -> None:
    await commit(world)
    for number in range(ALIASES_MAX - 1):
        await world.catalog.set_alias(AliasMove(vplm(), f"a{number}", 1, new_id()))
    with pytest.raises(QuotaExceeded, match="16"):
        await world.catalog.set_alias(AliasMove(vplm(), "one-more", 1, new_id()))


async def test_stale_etags_are_refused(world: World) -> None:
    await commit(world)
    etag = (await world.catalog.get(vplm())).etag
    changed = await world.catalog.update(
        VplmChange(vplm(), new_id(), etag=etag, display_name="New", labels={"a": "b"})
    )
    assert (changed.display_name, changed.labels) == ("New", {"a": "b"})
    calls: tuple[Callable[[], Awaitable[Vplm]], ...] = (
        lambda: world.catalog.update(VplmChange(vplm(), new_id(), etag=etag)),
        lambda: world.catalog.set_alias(AliasMove(vplm(), "x", 1, new_id(), etag=etag)),
        lambda: world.delete(vplm(), etag, new_id()),
    )
    for call in calls:
        with pytest.raises(Aborted) as caught:
            await call()
        assert caught.value.reason == "CONCURRENT_CHANGE"
    assert await world.catalog.get(vplm()) == changed


async def test_a_request_id_serves_one_kind_of_request(world: World) -> None:
    await commit(world)
    change = VplmChange(vplm(), new_id(), display_name="New")
    first = await world.catalog.update(change)
    assert await world.catalog.update(change) == first
    with pytest.raises(AlreadyExists):
        await world.catalog.set_alias(AliasMove(vplm(), "x", 1, change.request_id))


async def test_deleting_removes_all_bytes_and_answers_repetitions(world: World) -> None:
    await commit(world)
    request_id = new_id()
    await world.delete(vplm(), "", request_id)
    await world.delete(vplm(), "", request_id)
    assert [key for key in await world.keys() if "/vplms/" in key] == [keys.vplm(vplm())]
    with pytest.raises(NotFound):
        await world.delete(vplm(), "", new_id())
    for read in (
        lambda: world.catalog.get(vplm()),
        lambda: world.versions.get(VersionName(vplm(), 1)),
        lambda: world.versions.resolve(vplm(), ""),
        lambda: world.versions.list_page(vplm(), 10, ""),
        lambda: world.versions.open(VersionName(vplm(), 1)),
        lambda: world.versions.put(new_version(module()), chunks(module())),
    ):
        with pytest.raises(NotFound):
            await read()
    assert await world.catalog.list_page(ACME, 10, "") == ([], "")


async def test_a_name_made_again_is_another_vplm(world: World) -> None:
    new = new_vplm()
    first = await world.catalog.commit(new, chunks(module()))
    delete_id = new_id()
    await world.delete(vplm(), "", delete_id)
    with pytest.raises(AlreadyExists) as caught:
        await world.catalog.commit(new, chunks(module()))
    assert caught.value.reason == "REQUEST_ID_USED"
    second = await world.catalog.commit(new_vplm(), chunks(module()))
    assert second.uid != first.uid
    with pytest.raises(NotFound):
        await world.delete(vplm(), "", delete_id)  # the old deletion, late: no effect
    assert await world.catalog.get(vplm()) == second


async def test_pages_of_vplms_and_versions(world: World) -> None:
    names = [f"m-{number}" for number in range(7)]
    for name in names:
        await commit(world, vplm(name))
    await world.delete(vplm("m-3"), "", new_id())
    names.remove("m-3")
    for size in (1, 2, 3, 6, 100):
        seen: list[str] = []
        token = ""
        while True:
            found, token = await world.catalog.list_page(ACME, size, token)
            assert 0 < len(found) <= size
            seen += [item.name.rpartition("/")[2] for item in found]
            if not token:
                break
        assert seen == names
    for seed in range(4):
        data = module(seed)
        await world.versions.put(new_version(data, vplm("m-0")), chunks(data))
    for size in (1, 2, 5, 100):
        numbers: list[int] = []
        token = ""
        while True:
            versions, token = await world.versions.list_page(vplm("m-0"), size, token)
            numbers += [version.number for version in versions]
            if not token:
                break
        assert numbers == [5, 4, 3, 2, 1]


async def test_tokens_fit_only_their_own_listing(world: World) -> None:
    await world.tenant(OTHER)
    for name in (vplm("a"), vplm("b"), vplm("a", OTHER), vplm("b", OTHER)):
        await commit(world, name)
    _, token = await world.catalog.list_page(ACME, 1, "")
    assert token
    for call in (
        lambda: world.catalog.list_page(OTHER, 1, token),
        lambda: world.versions.list_page(vplm("a"), 1, token),
        lambda: world.usage.of(ACME, UsageAsked(1, token)),
        lambda: world.catalog.list_page(ACME, 1, token[:-3]),
        lambda: world.catalog.list_page(ACME, 1, "ä"),
        lambda: world.catalog.list_page(ACME, 1, "e30"),
        lambda: world.catalog.list_page(ACME, 1, "W" * 1000),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await call()
        assert caught.value.reason == "PAGE_TOKEN_INVALID"


async def test_a_damaged_record_hides_only_itself(world: World) -> None:
    for name in ("a", "b", "c"):
        await commit(world, vplm(name))
    found = await world.store.get(keys.vplm(vplm("b")))
    assert found is not None
    for damage in (b"", b"{", b"[]", b'{"schema":2}', found.data.replace(b"pfeiffer", b"nope")):
        found = await world.store.get(keys.vplm(vplm("b")))
        assert found is not None
        await world.store.compare_and_swap(keys.vplm(vplm("b")), damage, found.etag)
        with pytest.raises(DataCorrupted, match="vplms/b") as caught:
            await world.catalog.get(vplm("b"))
        assert caught.value.reason == "RECORD_CORRUPTED"
        listed, _ = await world.catalog.list_page(ACME, 10, "")
        assert [item.name.rpartition("/")[2] for item in listed] == ["a", "c"]


async def test_unknown_fields_of_a_record_are_tolerated(world: World) -> None:
    await commit(world)
    found = await world.store.get(keys.vplm(vplm()))
    assert found is not None
    assert found.data.startswith(b'{"schema":1,')
    later = found.data.replace(b'{"schema":1,', b'{"schema":1,"from_the_future":[1],')
    await world.store.compare_and_swap(keys.vplm(vplm()), later, found.etag)
    assert (await world.catalog.get(vplm())).spec == SPEC


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "remove"])
async def test_damaged_bytes_never_end_well(world: World, damage: str) -> None:
    made = new_vplm()
    await world.catalog.commit(made, chunks(module()))
    blob = keys.version_blob(vplm(), made.uid, made.declared.digest)
    data = bytearray(module())
    data[100] ^= 1
    wrong = {"flip": bytes(data), "truncate": module()[:-1], "extend": module() + b"x"}
    await world.store.delete(blob)
    if damage in wrong:
        await world.store.put_if_absent(blob, wrong[damage])
    fetched, content = await world.versions.fetch(vplm(), SERVING)
    assert (fetched.number, content) == (1, b"")
    _, stream = await world.versions.open(VersionName(vplm(), 1))
    with pytest.raises(DataCorrupted) as caught:
        await joined(stream)
    assert caught.value.reason == ("BLOB_MISSING" if damage == "remove" else "DIGEST_MISMATCH")


async def test_tenants_see_only_their_own(world: World) -> None:
    await world.tenant(OTHER)
    await commit(world)
    assert await world.catalog.list_page(OTHER, 10, "") == ([], "")
    with pytest.raises(NotFound) as foreign:
        await world.catalog.get(vplm("topics", OTHER))
    with pytest.raises(NotFound) as absent:
        await world.catalog.get(vplm("nothing", OTHER))
    assert foreign.value.message.replace("topics", "nothing") == absent.value.message


async def test_pages_fit_into_a_message(world: World) -> None:
    labels = tuple(f"{number:04d}" + "ä" * 124 for number in range(1000))
    wide = replace(SPEC, head=HeadSpec(Task.SEQUENCE_CLASSIFICATION, labels))
    data = module(spec=wide)
    new = replace(new_vplm(data=data), spec=wide)
    await world.catalog.commit(new, chunks(data))
    for _ in range(9):
        await world.versions.put(new_version(data), chunks(data))
    numbers: list[int] = []
    token = ""
    while True:
        versions, token = await world.versions.list_page(vplm(), 1000, token)
        assert sum(codec.version_to_pb(each).ByteSize() for each in versions) < MESSAGE_BYTES_MAX
        numbers += [version.number for version in versions]
        if not token:
            break
    assert numbers == list(range(10, 0, -1))


async def test_damaged_manifests_hide_only_themselves(world: World) -> None:
    await commit(world)
    uid = (await world.catalog.get(vplm())).uid
    for seed in range(1, 6):
        data = module(seed)
        await world.versions.put(new_version(data), chunks(data))
    for number in (2, 5):
        place = keys.version(vplm(), uid, number)
        await world.store.delete(place)
        await world.store.put_if_absent(place, b"damaged")
    for size in (1, 2, 3, 10):
        numbers: list[int] = []
        token = ""
        while True:
            versions, token = await world.versions.list_page(vplm(), size, token)
            numbers += [version.number for version in versions]
            if not token:
                break
        assert numbers == [6, 4, 3, 1]
