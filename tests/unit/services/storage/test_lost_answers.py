"""An object store whose client writes again when an answer is lost, and finds its own object."""

from __future__ import annotations

import pytest

from services.storage import keys
from services.storage.identity import KeySecret, NewTenant
from services.storage.signing import Keyring, SignedStore
from smile.errors import AlreadyExists
from smile.names import ApiKeyName, VersionName
from smile.store.objects import ObjectStore, open_store
from tests.unit.services.storage.world import (
    ACME,
    FaultyStore,
    World,
    chunks,
    declared,
    joined,
    module,
    new_id,
    new_version,
    new_vplm,
    vplm,
)

pytestmark = pytest.mark.asyncio
SECRET = KeySecret("k" + "b" * 15, "1" * 64)


class Repeating(FaultyStore):
    """Every creation is done, and told as refused: the answer to the first try was lost."""

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        await super().put_if_absent(key, data)
        return False


@pytest.fixture(params=["plain", "signed"])
def world(request: pytest.FixtureRequest) -> World:
    store: ObjectStore = Repeating(open_store("memory://"))
    if request.param == "signed":
        store = SignedStore(store, Keyring({"k1": b"x" * 32}))
    return World(store)


async def test_a_tenant_has_its_first_key_and_is_told_it(world: World) -> None:
    new = NewTenant(ACME, "", 0, new_id())
    _, key = await world.identity.create_tenant(new, SECRET)
    assert key.new
    assert await world.identity.secret_sha256(ApiKeyName(ACME, SECRET.key_id)) == "1" * 64
    _, again = await world.identity.create_tenant(new, SECRET)
    assert not again.new
    with pytest.raises(AlreadyExists):
        await world.identity.create_tenant(NewTenant(ACME, "", 0, new_id()), SECRET)


async def test_a_key_is_shown_to_who_made_it(world: World) -> None:
    await world.tenant()
    made = await world.identity.create_api_key(ACME, "second", SECRET, new_id())
    assert made.new
    assert not (await world.identity.create_api_key(ACME, "second", SECRET, new_id())).new


async def test_vplms_and_versions_are_made_once(world: World) -> None:
    await world.tenant()
    await world.catalog.commit(new_vplm(), chunks(module()))
    version = await world.versions.put(new_version(module(1)), chunks(module(1)))
    assert version.number == 2
    for number in (1, 2):
        _, stream = await world.versions.open(VersionName(vplm(), number))
        assert declared(await joined(stream)) == declared(module(number - 1))
    assert await world.store.get(keys.version(vplm(), new_vplm().uid, 3)) is None
