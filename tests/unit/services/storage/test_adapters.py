"""Public adapters in storage: published once, shared by reference, gone without harm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.storage import keys
from services.storage.adapters import AdapterTexts
from services.storage.aliases import AliasMove
from services.storage.maintenance.places import place_of
from services.storage.maintenance.references import References
from smile.errors import (
    AlreadyExists,
    DataCorrupted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from smile.names import AdapterName, VersionName
from smile.resources import VersionOrigin
from tests.unit.services.storage.world import (
    World,
    bad_module,
    chunks,
    commit,
    declared,
    derived_vplm,
    joined,
    module,
    new_adapter,
    new_id,
    new_version,
    vplm,
)

pytestmark = pytest.mark.asyncio
NEWS = AdapterName("news")


async def test_an_adapter_is_published_once(world: World) -> None:
    new = new_adapter()
    made = await world.adapters.commit(new, chunks(module()))
    assert await world.adapters.commit(new, chunks(module())) == made
    assert (made.license, made.tags, made.size_bytes) == ("MIT", {"domain": "news"}, len(module()))
    with pytest.raises(AlreadyExists):
        await world.adapters.commit(new_adapter(), chunks(module()))
    adapter, backbone = await world.adapters.get(NEWS)
    assert (adapter, backbone) == (made, new.backbone)
    assert await joined(await world.adapters.open(NEWS)) == module()


@pytest.mark.parametrize("data", [bad_module(), b"", b"no module"])
async def test_only_whole_modules_are_published(world: World, data: bytes) -> None:
    before = await world.keys()
    with pytest.raises(InvalidArgument):
        await world.adapters.commit(new_adapter(data=data), chunks(data))
    assert await world.keys() == before


async def test_adapters_are_listed_page_by_page(world: World) -> None:
    for number in range(5):
        await world.adapters.commit(new_adapter(f"a{number}"), chunks(module()))
    await world.adapters.delete(AdapterName("a2"), new_id())
    names, token = [], ""
    while True:
        page, token = await world.adapters.list_page(2, token)
        names += [adapter.name for adapter in page]
        if not token:
            break
    assert names == [f"publicAdapters/a{number}" for number in (0, 1, 3, 4)]
    blobs = [key for key in await world.keys() if key.startswith(keys.SHARED_BLOBS)]
    assert len(blobs) == 1, "equal bytes are kept once"


async def test_a_deleted_adapter_can_be_published_anew(world: World) -> None:
    new, gone = new_adapter(), new_id()
    await world.adapters.commit(new, chunks(module()))
    await world.adapters.delete(NEWS, gone)
    await world.adapters.delete(NEWS, gone)
    for ask in (
        lambda: world.adapters.get(NEWS),
        lambda: world.adapters.open(NEWS),
        lambda: world.adapters.delete(NEWS, new_id()),
    ):
        with pytest.raises(NotFound):
            await ask()
    with pytest.raises(AlreadyExists) as caught:
        await world.adapters.commit(new, chunks(module()))
    assert caught.value.reason == "REQUEST_ID_USED"
    other = module(5)
    again = await world.adapters.commit(new_adapter(data=other), chunks(other))
    await world.adapters.delete(NEWS, gone)
    assert (await world.adapters.get(NEWS))[0] == again


async def test_a_version_is_published_where_it_is_offered(world: World) -> None:
    await commit(world)
    name, texts = VersionName(vplm(), 1), AdapterTexts(license="MIT", metrics={"f1": 0.5})
    with pytest.raises(FailedPrecondition) as caught:
        await world.adapters.publish(NEWS, name, texts, new_id())
    assert caught.value.reason == "VERSION_NOT_OFFERED"
    await world.catalog.set_alias(AliasMove(vplm(), "public", 1, new_id()))
    request_id = new_id()
    made = await world.adapters.publish(NEWS, name, texts, request_id)
    assert await world.adapters.publish(NEWS, name, texts, request_id) == made
    assert (made.digest, made.metrics) == (declared(module()).digest, {"f1": 0.5})
    await world.delete(vplm())
    assert await joined(await world.adapters.open(NEWS)) == module()


async def test_a_reference_takes_no_bytes_and_outlives_the_adapter(world: World) -> None:
    new = new_adapter()
    await world.adapters.commit(new, chunks(module()))
    made = await world.catalog.commit(derived_vplm(new), chunks(b""))
    version, stream = await world.versions.open(VersionName(vplm(), 1))
    assert await joined(stream) == module()
    assert version.origin is VersionOrigin.ADAPTER and version.derived_from is not None
    found, content = await world.versions.fetch(vplm(), "")
    assert (found.digest, content) == (new.declared.digest, module())
    assert not [key for key in await world.keys() if "/blobs/" in key]
    references, blob = References(world.store), keys.shared_blob(new.declared.digest)
    await world.adapters.delete(NEWS, new_id())
    assert await references.to(place_of(blob)), "the version names it"
    data = module(1)
    await world.versions.put(new_version(data), chunks(data))
    assert (await world.catalog.get(vplm())).uid == made.uid
    await world.delete(vplm())
    assert not await references.to(place_of(blob))


async def test_only_what_is_offered_can_be_referred_to(world: World) -> None:
    new = new_adapter()
    wanted = derived_vplm(new)
    before = await world.keys()
    with pytest.raises(NotFound):
        await world.catalog.commit(wanted, chunks(b""))
    await world.adapters.commit(new, chunks(module()))
    other = declared(module(3))
    with pytest.raises(NotFound):
        await world.catalog.commit(replace(wanted, declared=other), chunks(b""))
    with pytest.raises(InvalidArgument):
        await world.catalog.commit(wanted, chunks(b"bytes"))
    await world.adapters.delete(NEWS, new_id())
    with pytest.raises(NotFound):
        await world.catalog.commit(wanted, chunks(b""))
    assert [key for key in await world.keys() if "/vplms/" in key] == []
    assert set(before) <= set(await world.keys())


async def test_damaged_bytes_are_told_of_all_who_share_them(world: World) -> None:
    new = new_adapter()
    await world.adapters.commit(new, chunks(module()))
    await world.catalog.commit(derived_vplm(new), chunks(b""))
    blob = keys.shared_blob(new.declared.digest)
    await world.store.delete(blob)
    await world.store.put_if_absent(blob, b"rot")
    with pytest.raises(DataCorrupted):
        await joined(await world.adapters.open(NEWS))
    _, stream = await world.versions.open(VersionName(vplm(), 1))
    with pytest.raises(DataCorrupted):
        await joined(stream)
