"""Records are what was signed, in the place they were signed for, or they are refused."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from services.storage import keys
from services.storage.maintenance.rebuild import Rebuilder
from services.storage.signing import Keyring, SignatureState, SignedStore
from smile.errors import DataCorrupted, InvalidArgument
from smile.maintenance import Action, FindingKind
from smile.names import VersionName
from smile.resources import SERVING
from smile.store.objects import ObjectStore, open_store
from tests.unit.services.storage.maintenance.sound_world import (
    furnished,
    key_like,
    overwrite,
    told,
    verified,
)
from tests.unit.services.storage.world import World, commit, joined, module, vplm


def key_line(name: str) -> str:
    return f"{name}:{secrets.token_urlsafe(32)}"


OLD, NEW = key_line("old"), key_line("new")


def signed(inner: ObjectStore, text: str = NEW, *, unsigned: bool = False) -> SignedStore:
    return SignedStore(inner, Keyring.parse(text, unsigned_accepted=unsigned))


@pytest.mark.asyncio
async def test_everything_works_signed_and_every_record_is() -> None:
    inner = open_store("memory://")
    world = await furnished(signed(inner))
    version, stream = await world.versions.open(VersionName(vplm(), 2))
    assert await joined(stream) == module(1)
    assert (await verified(world.store))[1].sound
    records = [key for key in await world.keys() if keys.is_record(key)]
    assert len(records) >= 6
    for key in records:
        found = await inner.get(key)
        assert found is not None and b'"signature":{"key":"new","hmac_sha256":"' in found.data
    assert version.number == 2


@pytest.mark.parametrize("part", ["vplm.json", "000000001.json", "dataset.json", "record.json"])
@pytest.mark.asyncio
async def test_any_changed_byte_is_refused(part: str) -> None:
    inner = open_store("memory://")
    world = await furnished(signed(inner))
    key = await key_like(world, part)
    found = await inner.get(key)
    assert found is not None
    # every byte of the signature, and some of what it is for
    places = {*range(0, len(found.data), 13), *range(len(found.data) - 110, len(found.data))}
    for place in sorted(places):
        data = bytearray(found.data)
        data[place] ^= 0x01
        await overwrite(inner, key, bytes(data))
        with pytest.raises(DataCorrupted) as caught:
            await world.store.get(key)
        assert caught.value.reason in {
            "SIGNATURE_INVALID",
            "SIGNATURE_MISSING",
            "SIGNATURE_KEY_UNKNOWN",
        }
    await overwrite(inner, key, found.data)
    assert await world.store.get(key) is not None


@pytest.mark.asyncio
async def test_a_manifest_with_other_bytes_is_refused_by_reason() -> None:
    """Who may write to the bucket swaps the module of a version, and the manifest to go with it."""
    inner = open_store("memory://")
    world = await furnished(signed(inner))
    first, second = await key_like(world, "000000001.json"), await key_like(world, "000000002.json")
    found = await inner.get(second)
    assert found is not None
    await overwrite(inner, first, found.data.replace(b'"number":2', b'"number":1'))
    with pytest.raises(DataCorrupted) as caught:
        await world.versions.resolve(vplm(), SERVING)
    assert caught.value.reason == "SIGNATURE_INVALID"
    assert caught.value.metadata["resource"] == str(vplm())
    await overwrite(inner, first, found.data)  # as it is: signed, and for another place
    with pytest.raises(DataCorrupted) as caught:
        await world.versions.resolve(vplm(), SERVING)
    assert caught.value.reason == "SIGNATURE_INVALID"
    findings, _ = await verified(world.store)
    assert FindingKind.SIGNATURE_INVALID in {f.kind for f in findings}


@pytest.mark.asyncio
async def test_unsigned_records_are_refused_or_accepted_as_set() -> None:
    inner = open_store("memory://")
    await furnished(inner)
    with pytest.raises(DataCorrupted) as caught:
        await World(signed(inner)).catalog.get(vplm())
    assert caught.value.reason == "SIGNATURE_MISSING"
    lenient = World(signed(inner, unsigned=True))
    assert (await lenient.catalog.get(vplm())).latest_version == 2
    findings, summary = await told(Rebuilder(lenient.store).rebuild())
    assert {f.kind for f in findings} == {FindingKind.SIGNATURE_MISSING}
    assert {f.action for f in findings} == {Action.REPAIRED}
    assert summary.changed == len([key for key in await lenient.keys() if keys.is_record(key)])
    strict = World(signed(inner))
    assert (await strict.catalog.get(vplm())).latest_version == 2
    assert (await verified(strict.store))[1].sound


@pytest.mark.asyncio
async def test_a_key_is_changed_without_a_pause() -> None:
    inner = open_store("memory://")
    await furnished(signed(inner, OLD))
    both = World(signed(inner, f"{NEW}\n{OLD}"))
    manifest = await key_like(both, "000000001.json")
    assert isinstance(both.store, SignedStore)
    assert await both.store.signature(manifest) is SignatureState.OLD
    await commit(both, vplm("made-between"))
    findings, _ = await told(Rebuilder(both.store, dry_run=True).rebuild())
    assert {(f.kind, f.action) for f in findings} == {(FindingKind.SIGNATURE_OLD, Action.NONE)}
    assert await both.store.signature(manifest) is SignatureState.OLD
    await told(Rebuilder(both.store).rebuild())
    assert await both.store.signature(manifest) is SignatureState.CURRENT
    assert (await told(Rebuilder(both.store).rebuild()))[0] == []
    assert (await verified(signed(inner, NEW)))[1].sound
    with pytest.raises(DataCorrupted) as caught:
        await World(signed(inner, OLD)).catalog.get(vplm())
    assert caught.value.reason == "SIGNATURE_KEY_UNKNOWN"
    assert "'new'" in caught.value.message


@pytest.mark.asyncio
async def test_who_has_no_keys_reads_what_is_signed() -> None:
    inner = open_store("memory://")
    await furnished(signed(inner))
    assert (await World(inner).catalog.get(vplm())).latest_version == 2


def test_keys_are_read_from_text_and_file(tmp_path: Path) -> None:
    ring = Keyring.parse(f"# two\n{NEW}, {OLD} # the old one\n\n")
    assert (ring.current, tuple(ring.secrets)) == ("new", ("new", "old"))
    assert ring.view().verification_keys == ("new", "old")
    (tmp_path / "keys").write_text(NEW)
    assert Keyring.read(tmp_path / "keys") == Keyring.parse(NEW)
    assert NEW.partition(":")[2] not in repr(ring)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# none",
        "new",
        "new:",
        "new:short",
        "New:" + "a" * 43,
        f"{NEW}\n{NEW}",
        "new:" + "*" * 43,
    ],
    ids=["empty", "comment", "no-colon", "no-key", "short", "case", "twice", "letters"],
)
def test_malformed_keys_are_refused_without_their_secret(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Keyring.parse(text)
    assert NEW.partition(":")[2] not in caught.value.message


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="keys"):
        Keyring.read(tmp_path / "keys")
