"""Datasets, identities, usage, quotas, the sweeper and settings."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from services.storage import keys
from services.storage.blobs import ByteBudget
from services.storage.config import StorageSettings
from services.storage.identity import KeySecret, NewTenant, key_id_for
from services.storage.quota import Ledger, Places
from services.storage.sweeper import Sweeper
from services.storage.usage import UsageAsked
from smile import config
from smile.errors import AlreadyExists, InvalidArgument, NotFound, Overloaded, QuotaExceeded
from smile.limits import GIB, TENANT_API_KEYS_MAX
from smile.names import ApiKeyName, DatasetName
from smile.rpc.keys import KEY_ID_PATTERN, KeyKind, new_key
from smile.testing import FakeClock
from tests.unit.services.storage.world import (
    ACME,
    BACKBONE,
    OTHER,
    FaultyStore,
    InjectedCrash,
    World,
    chunks,
    commit,
    joined,
    module,
    new_dataset,
    new_id,
    new_version,
    new_vplm,
    vplm,
)


@pytest.mark.asyncio
async def test_datasets_come_back(world: World) -> None:
    data = b"text,label\nhello,yes\n" * 1000
    new = new_dataset(data)
    made = await world.datasets.upload(new, chunks(data))
    assert await world.datasets.upload(new, chunks(data)) == made
    found, stream = await world.datasets.open(new.name)
    assert (found, await joined(stream)) == (made, data)
    with pytest.raises(AlreadyExists):
        await world.datasets.upload(new_dataset(data), chunks(data))
    await world.datasets.delete(new.name, new_id())
    with pytest.raises(NotFound):
        await world.datasets.get(new.name)
    again = new_dataset(b"new")
    await world.datasets.upload(again, chunks(b"new"))
    _, stream = await world.datasets.open(new.name)
    assert await joined(stream) == b"new"


@pytest.mark.asyncio
async def test_oversized_datasets_are_refused_before_a_byte_is_read(world: World) -> None:
    read: list[bool] = []

    async def untouched() -> AsyncIterator[bytes]:
        read.append(True)
        yield b""

    two_gib = new_dataset(b"")
    object.__setattr__(two_gib.declared, "size_bytes", 2 * GIB)
    with pytest.raises(QuotaExceeded, match=str(2 * GIB)) as caught:
        await world.datasets.upload(two_gib, untouched())
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert caught.value.metadata["limit_name"] == "dataset_bytes_max"
    wide = World(world.store, dataset_bytes_max=4 * GIB)
    with pytest.raises(QuotaExceeded, match=f"{GIB} bytes") as caught:
        await wide.datasets.upload(two_gib, untouched())
    assert caught.value.metadata["limit_name"] == "quota_bytes"
    assert not read


@pytest.mark.asyncio
async def test_uploads_share_the_quota_also_while_they_run() -> None:
    world = World()
    await world.tenant(ACME, quota_bytes=11_000)
    data = b"z" * 4_000
    results = await asyncio.gather(
        *(world.datasets.upload(new_dataset(data, f"d{n}"), chunks(data)) for n in range(6)),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, QuotaExceeded)]
    assert len(refused) == 4
    usage = await world.usage.of(ACME, UsageAsked(1))
    assert usage.dataset_bytes == 8_000
    assert usage.stored_bytes <= usage.quota_bytes
    kept = [result for result in results if not isinstance(result, BaseException)]
    await world.datasets.delete(DatasetName.parse(kept[-1].name), new_id())
    await world.datasets.upload(new_dataset(data, "later"), chunks(data))


@pytest.mark.asyncio
async def test_versions_count_against_the_quota() -> None:
    world = World()
    await world.tenant(ACME, quota_bytes=6 * len(module()))
    await commit(world)
    with pytest.raises(QuotaExceeded):
        for seed in range(1, 10):
            data = module(seed)
            await world.versions.put(new_version(data), chunks(data))
    usage = await world.usage.of(ACME, UsageAsked(1))
    assert 0 < usage.stored_bytes <= usage.quota_bytes
    with pytest.raises(QuotaExceeded):
        await commit(world, vplm("second"))


@pytest.mark.asyncio
async def test_a_remembered_count_refuses_nobody() -> None:
    world = World()
    clock = FakeClock()
    ledger = Ledger(world.store, clock)
    await world.store.put_if_absent(f"tenants/{ACME}/x", b"1" * 90)
    async with ledger.reserved(ACME, 10, 100):
        with pytest.raises(QuotaExceeded):
            async with ledger.reserved(ACME, 1, 100):
                pytest.fail("it does not fit")
    await world.store.delete(f"tenants/{ACME}/x")  # by another process
    async with ledger.reserved(ACME, 100, 100):
        pass
    clock.advance(60)
    async with ledger.reserved(ACME, 100, 100):
        pass


@pytest.mark.asyncio
async def test_a_count_is_remembered_for_longer_where_half_is_free() -> None:
    kept, clock = FaultyStore(), FakeClock()
    ledger = Ledger(kept, clock)

    async def store(size: int) -> int:
        """Operations on the store that it takes to find room."""
        before = kept.operations
        async with ledger.reserved(ACME, size, 1_000):
            pass
        return kept.operations - before

    assert await store(100) == 1
    clock.advance(59.0)
    assert await store(399) == 0
    assert await store(10) == 1  # more than half by what is remembered, and that is old
    clock.advance(4.0)
    await kept.put_if_absent(f"tenants/{ACME}/x", b"1" * 600)
    assert await store(400) == 0
    clock.advance(2.0)
    with pytest.raises(QuotaExceeded):
        await store(500)


def test_uploads_in_memory_are_bounded() -> None:
    budget = ByteBudget(100)
    with budget.held(60):
        with pytest.raises(Overloaded, match="100"), budget.held(41):
            pytest.fail("it does not fit")
        with budget.held(40):
            pass
    with budget.held(100):
        pass


@pytest.mark.asyncio
async def test_usage_is_what_is_there(world: World) -> None:
    await commit(world, vplm("a"))
    await commit(world, vplm("b"))
    data = module(1)
    await world.versions.put(new_version(data, vplm("a")), chunks(data))
    await world.datasets.upload(new_dataset(b"rows"), chunks(b"rows"))
    usage = await world.usage.of(ACME, UsageAsked(1))
    listed = await world.store.list_objects(f"tenants/{ACME}/")
    assert usage.stored_bytes == sum(info.size for info in listed)
    assert (usage.dataset_bytes, usage.vplm_count, usage.quota_bytes) == (4, 2, GIB)
    row = usage.vplms[0]
    assert (row.versions, row.size_bytes) == (2, 2 * len(module()))
    assert row.serving_bytes == len(module())
    assert row.full_model_bytes == BACKBONE.shape.bytes + 4 * 2 * (BACKBONE.shape.hidden + 1)
    rest = await world.usage.of(ACME, UsageAsked(1, usage.next_page_token))
    assert [item.name for item in rest.vplms] == [str(vplm("b"))]
    assert rest.next_page_token == ""
    with pytest.raises(NotFound):
        await world.usage.of(OTHER, UsageAsked(1))


@pytest.mark.asyncio
async def test_a_tenant_is_made_once(world: World) -> None:
    new = NewTenant(OTHER, "Other", 5, new_id())
    secrets = [KeySecret(f"k{'b' * 14}{letter}", letter * 64) for letter in "abcd"]
    results = await asyncio.gather(
        *(world.identity.create_tenant(new, secret) for secret in secrets)
    )
    fresh = [made for _, made in results if made.new]
    assert len(fresh) == 1
    assert {made.api_key.name for _, made in results} == {fresh[0].api_key.name}
    listed, _ = await world.identity.list_api_keys(OTHER, 10, "")
    assert [key.name for key in listed] == [fresh[0].api_key.name]
    with pytest.raises(AlreadyExists):
        await world.identity.create_tenant(
            NewTenant(OTHER, "", 0, new_id()), KeySecret("k" + "z" * 15, "f" * 64)
        )
    assert (await world.identity.tenant(OTHER)).quota_bytes == 5
    listed_tenants, _ = await world.identity.list_tenants(10, "")
    assert [tenant.name for tenant in listed_tenants] == ["tenants/acme", "tenants/other"]


@pytest.mark.parametrize("quota", [-1, 1 << 61])
@pytest.mark.asyncio
async def test_quotas_have_a_range(world: World, quota: int) -> None:
    with pytest.raises(InvalidArgument, match=str(quota)):
        await world.identity.create_tenant(
            NewTenant(OTHER, "", quota, new_id()), KeySecret("k" + "z" * 15, "f" * 64)
        )


@pytest.mark.asyncio
async def test_keys_work_until_revoked(world: World) -> None:
    request_id = new_id()
    key_id = key_id_for(ACME, request_id)
    assert re.fullmatch(KEY_ID_PATTERN, key_id)
    made = await world.identity.create_api_key(ACME, "ci", KeySecret(key_id, "1" * 64), request_id)
    again = await world.identity.create_api_key(ACME, "ci", KeySecret(key_id, "2" * 64), request_id)
    assert (made.new, again.new) == (True, False)
    name = ApiKeyName(ACME, key_id)
    assert await world.identity.secret_sha256(name) == "1" * 64
    assert await world.identity.secret_sha256(ApiKeyName(OTHER, key_id)) is None
    await world.identity.revoke_api_key(name)
    await world.identity.revoke_api_key(name)
    assert await world.identity.secret_sha256(name) is None
    assert (await world.identity.api_key(name)).revoke_time is not None
    with pytest.raises(NotFound):
        await world.identity.revoke_api_key(ApiKeyName(ACME, "none"))


@pytest.mark.asyncio
async def test_a_tenant_has_a_bounded_number_of_keys(world: World) -> None:
    for number in range(TENANT_API_KEYS_MAX - 1):
        request_id = f"r{number}"
        secret = KeySecret(key_id_for(ACME, request_id), "1" * 64)
        await world.identity.create_api_key(ACME, "", secret, request_id)
    secret = KeySecret(key_id_for(ACME, "more"), "1" * 64)
    with pytest.raises(QuotaExceeded, match=str(TENANT_API_KEYS_MAX)):
        await world.identity.create_api_key(ACME, "", secret, "more")
    await world.identity.revoke_api_key(ApiKeyName(ACME, "k" + "a" * 15))
    assert (await world.identity.create_api_key(ACME, "", secret, "more")).new


@pytest.mark.asyncio
async def test_the_sweeper_takes_what_no_record_names() -> None:
    store = FaultyStore()
    world = World(store)
    await world.tenant()
    await commit(world, vplm("kept"))
    rows = b"rows" * 100
    await world.datasets.upload(new_dataset(rows, "kept"), chunks(rows))
    for fail_at in (4,):
        store.arm(fail_at, after_effect=True, error=InjectedCrash())
        broken = new_vplm(vplm(f"broken-{fail_at}"))
        try:
            await world.catalog.commit(broken, chunks(module()))
        except InjectedCrash:
            break
    store.disarm()
    named = [key for key in await world.keys() if "broken" not in key]
    assert len(await world.keys()) > len(named)
    assert await Sweeper(store).sweep() == 0  # young: someone may be at it
    assert await Sweeper(store, timedelta(0)).sweep() > 0
    left = [key for key in await world.keys() if not key.startswith(keys.QUARANTINE)]
    assert left == named
    assert (await world.usage.of(ACME, UsageAsked(10))).vplm_count == 1


KEY = new_key(KeyKind.SERVICE).text


def _load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> StorageSettings:
    monkeypatch.setenv("SMILE_SERVICE_KEY", KEY)
    for name, value in variables.items():
        monkeypatch.setenv(f"SMILE_STORAGE_{name}", value)
    return config.load(StorageSettings)


def test_settings_of_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded = _load(monkeypatch, URL=f"file://{tmp_path}/new", PORT="7")
    assert (loaded.port, loaded.s3) == (7, None)


def test_settings_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _load(
        monkeypatch,
        URL="s3://bucket",
        S3_ENDPOINT="http://minio:9000/",
        S3_ACCESS_KEY="a",
        S3_SECRET_KEY="b",
    )
    assert loaded.s3 is not None
    assert (loaded.s3.endpoint, loaded.s3.secret_key) == ("http://minio:9000", "b")
    assert "b" not in repr(loaded.s3_secret_key)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "SMILE_STORAGE_URL is not set"),
        ({"URL": "ftp://x"}, "SMILE_STORAGE_URL"),
        ({"URL": "s3://bucket"}, "SMILE_STORAGE_S3_ENDPOINT"),
        ({"URL": "s3://bucket", "S3_ENDPOINT": "minio:9000"}, "SMILE_STORAGE_S3_ENDPOINT"),
        (
            {"URL": "s3://bucket", "S3_ENDPOINT": "http://m", "S3_ACCESS_KEY": "a"},
            "SMILE_STORAGE_S3_SECRET_KEY",
        ),
        ({"URL": "memory://", "OPERATOR_KEY_SHA256": "xyz"}, "SMILE_STORAGE_OPERATOR_KEY_SHA256"),
        ({"URL": f"file://{Path(__file__)}"}, "this is a file"),
    ],
)
def test_wrong_settings_end_the_process(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    told: str,
) -> None:
    with pytest.raises(SystemExit) as caught:
        _load(monkeypatch, **variables)
    assert caught.value.code == 78
    assert told in capsys.readouterr().err


def test_places_are_counted_anew_where_half_are_taken() -> None:
    clock = FakeClock()
    places = Places(clock)
    assert not places.take(ACME, 10)
    places.counted(ACME, 2)  # the third is being made
    assert [places.take(ACME, 10) for _ in range(3)] == [True, True, False]
    places.counted(ACME, 2)
    clock.advance(61.0)
    assert not places.take(ACME, 10)
    assert not places.take(OTHER, 10)
