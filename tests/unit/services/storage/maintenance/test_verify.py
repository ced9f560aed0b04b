"""A sound store has no findings; each kind of damage has its own."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import pytest

from services.storage.maintenance.verify import Extent, Verifier
from services.storage.records import VersionManifest
from smile.maintenance import FindingKind, MaintenanceProgress, Severity
from tests.unit.services.storage.maintenance.sound_world import (
    JOB,
    ROWS,
    checkpoint,
    furnished,
    key_like,
    overwrite,
    verified,
)
from tests.unit.services.storage.world import (
    ACME,
    OTHER,
    World,
    commit,
    module,
    new_dataset,
    vplm,
)

pytestmark = pytest.mark.asyncio
Harm = Callable[[World, str], Awaitable[str]]


async def test_a_sound_store_has_no_findings() -> None:
    world = await furnished()
    findings, summary = await verified(world.store)
    assert findings == []
    assert summary.sound
    assert summary.objects == len(await world.keys())
    assert summary.bytes_read >= 2 * len(module()) + len(ROWS)


async def test_deleted_things_leave_a_sound_store() -> None:
    world = await furnished()
    await world.delete(vplm())
    await world.datasets.delete(new_dataset(ROWS).name, "r1")
    findings, summary = await verified(world.store)
    assert (findings, summary.sound) == ([], True)


async def _delete(world: World, part: str) -> str:
    key = await key_like(world, part)
    await world.store.delete(key)
    return key


async def _rot(world: World, part: str) -> str:
    """One byte in the middle, as a disk would."""
    key = await key_like(world, part)
    data = bytearray(b"".join([chunk async for chunk in world.store.get_stream(key)]))
    data[len(data) // 2] ^= 0x40
    await overwrite(world.store, key, bytes(data))
    return key


async def _truncate(world: World, part: str) -> str:
    key = await key_like(world, part)
    data = b"".join([chunk async for chunk in world.store.get_stream(key)])
    await overwrite(world.store, key, data[:-1])
    return key


async def _no_json(world: World, part: str) -> str:
    key = await key_like(world, part)
    await overwrite(world.store, key, b"{")
    return key


async def _other_number(world: World, part: str) -> str:
    """A manifest in another's place."""
    first, second = (await key_like(world, part)), await key_like(world, "000000002.json")
    found = await world.store.get(second)
    assert found is not None
    await overwrite(world.store, first, found.data)
    return first


async def _dangling_alias(world: World, part: str) -> str:
    key = await key_like(world, part)
    found = await world.store.get(key)
    assert found is not None
    await overwrite(world.store, key, found.data.replace(b'"serving":1', b'"serving":9'))
    return key


D, R = Severity.DAMAGE, Severity.REPAIRABLE
HARM: list[tuple[Harm, str, FindingKind, Severity]] = [
    (_delete, "/blobs/", FindingKind.BLOB_MISSING, D),
    (_rot, "/blobs/", FindingKind.DIGEST_MISMATCH, D),
    (_truncate, "/blobs/", FindingKind.DIGEST_MISMATCH, D),
    (_delete, "000000001.json", FindingKind.MANIFEST_MISSING, D),
    (_delete, "000000002.json", FindingKind.MANIFEST_MISSING, D),
    (_no_json, "000000002.json", FindingKind.RECORD_CORRUPTED, D),
    (_other_number, "000000001.json", FindingKind.RECORD_CORRUPTED, D),
    (_no_json, "vplm.json", FindingKind.RECORD_CORRUPTED, D),
    (_dangling_alias, "vplm.json", FindingKind.POINTER_DANGLING, D),
    (_delete, "/data", FindingKind.BLOB_MISSING, D),
    (_rot, "/data", FindingKind.DIGEST_MISMATCH, D),
    (_no_json, "dataset.json", FindingKind.RECORD_CORRUPTED, D),
    (_no_json, "record.json", FindingKind.RECORD_CORRUPTED, D),
    (_truncate, "curve.jsonl", FindingKind.DIGEST_MISMATCH, D),
    (_rot, "checkpoints/", FindingKind.DIGEST_MISMATCH, D),
    (_delete, "trainingJobOrder/", FindingKind.INDEX_MISSING, R),
    (_delete, "pendingJobs/", FindingKind.INDEX_MISSING, R),
    (_no_json, "identity/tenants/", FindingKind.RECORD_CORRUPTED, D),
    (_delete, "identity/keys/", FindingKind.POINTER_DANGLING, D),
]


@pytest.mark.parametrize(
    ("harm", "part", "kind", "severity"),
    HARM,
    ids=[f"{harm.__name__[1:]} {part}" for harm, part, *_ in HARM],
)
async def test_damage_is_found(
    harm: Harm, part: str, kind: FindingKind, severity: Severity
) -> None:
    world = await furnished()
    key = await harm(world, part)
    findings, summary = await verified(world.store)
    assert not summary.sound
    assert (kind, severity) in {(f.kind, f.severity) for f in findings}
    worst = [f for f in findings if f.severity is severity and f.kind is kind]
    assert any(f.object_key == key or f.resource in key or JOB.job in key for f in worst) or (
        worst[0].resource == f"tenants/{ACME}"
    )


async def test_a_module_that_is_not_its_specs_is_found() -> None:
    """Digest and key agree, and the tensors are others."""
    world = await furnished()
    manifest_key = await key_like(world, "000000001.json")
    stored = await world.store.get(manifest_key)
    assert stored is not None
    manifest = VersionManifest.model_validate_json(stored.data)
    data = b"no safetensors"
    digest = hashlib.sha256(data).hexdigest()
    await overwrite(
        world.store,
        manifest_key,
        manifest.model_copy(update={"digest": digest, "size_bytes": len(data)})
        .model_dump_json(by_alias=True)
        .encode(),
    )
    folder = manifest_key.rpartition("versions/")[0]
    await overwrite(world.store, f"{folder}blobs/{digest}", data)
    findings, summary = await verified(world.store)
    assert [f.kind for f in findings if f.severity is D] == [FindingKind.MODULE_INVALID]
    assert summary.damage == 1


async def test_what_nothing_points_to_is_a_note() -> None:
    world = await furnished()
    folder = (await key_like(world, "000000001.json")).rpartition("versions/")[0]
    await overwrite(world.store, f"{folder}blobs/{'0' * 64}", b"left over")
    await overwrite(world.store, "tenants/acme/strange", b"?")
    findings, summary = await verified(world.store)
    assert {f.kind for f in findings} == {FindingKind.UNREFERENCED, FindingKind.UNKNOWN_OBJECT}
    assert summary.sound and summary.notes == 2


async def test_records_only_reads_no_bytes_and_sees_their_size() -> None:
    world = await furnished()
    extent = Extent(records_only=True)
    findings, summary = await verified(world.store, extent)
    assert (findings, summary.bytes_read) == ([], 0)
    await _rot(world, "/blobs/")
    assert (await verified(world.store, extent))[1].sound
    await _truncate(world, "/data")
    findings, _ = await verified(world.store, extent)
    assert [f.kind for f in findings] == [FindingKind.DIGEST_MISMATCH]


async def test_one_tenant_alone() -> None:
    world = await furnished()
    await world.tenant(OTHER)
    await commit(world, vplm("theirs", OTHER))
    await _delete(world, "tenants/acme/datasets/news/dataset.json")
    await _delete(world, "tenants/other/vplms/theirs/vplm.json")
    blob = await key_like(world, "tenants/other/vplms/theirs")
    await overwrite(world.store, blob, b"rot")
    await _no_json(world, "tenants/other/vplms/theirs")
    findings, summary = await verified(world.store, Extent(tenant="acme"))
    assert summary.sound
    assert all(f.resource.startswith("tenants/acme") for f in findings)


async def test_a_deletion_meanwhile_is_no_damage() -> None:
    """The listing is from before, everything that is read is from after."""
    world = await furnished()
    seen = 0
    verifier = Verifier(world.store)
    for prefix in Extent().prefixes:
        for info in await world.store.list_objects(prefix):
            verifier._held[info.key] = info
    await world.delete(vplm())
    await world.datasets.delete(new_dataset(ROWS).name, "r1")
    async for event in verifier.verify():
        seen += not isinstance(event, MaintenanceProgress)
    assert seen == 1  # the summary


async def test_progress_ends_at_the_total() -> None:
    world = await furnished()
    steps = [
        event
        async for event in Verifier(world.store).verify()
        if isinstance(event, MaintenanceProgress)
    ]
    assert steps[-1].objects_done == steps[-1].objects_total == len(await world.keys())
    assert [step.objects_done for step in steps] == sorted(step.objects_done for step in steps)


async def test_a_second_checkpoint_replaces_the_first() -> None:
    world = await furnished()
    await checkpoint(world, 2)
    _, summary = await verified(world.store)
    assert summary.sound
    assert len([key for key in await world.keys() if "checkpoints/" in key]) == 1
