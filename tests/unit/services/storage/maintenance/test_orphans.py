"""A vPLM's record that is lost is missed, and made anew of what its versions say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from services.storage import keys
from services.storage.listing import store_time
from services.storage.maintenance.collect import Collector
from services.storage.maintenance.orphans import BY
from services.storage.maintenance.rebuild import Rebuilder
from services.storage.version_trash import VersionDeletion
from smile.errors import AlreadyExists, NotFound
from smile.maintenance import Action, Finding, FindingKind, MaintenanceSummary, Severity
from smile.names import VersionName
from smile.resources import SERVING
from smile.store.objects import ObjectStore
from tests.unit.services.storage.maintenance.sound_world import overwrite, told, verified
from tests.unit.services.storage.world import (
    World,
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
MISSING = FindingKind.RECORD_MISSING


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Lets time go by for the object store."""

    def forward(by: timedelta) -> None:
        async def shifted(store: ObjectStore) -> datetime:
            return await store_time(store) + by

        for module_name in ("verify", "rebuild", "collect"):
            monkeypatch.setattr(f"services.storage.maintenance.{module_name}.store_time", shifted)

    return forward


async def trained(versions: int, *, grace: timedelta = timedelta(days=7)) -> World:
    """A world with a vPLM of so many versions, and another on the same backbone."""
    world = World(grace=grace)
    await world.tenant()
    await commit(world)
    for seed in range(1, versions):
        await world.versions.put(new_version(module(seed)), chunks(module(seed)))
    await commit(world, vplm("other"))
    return world


async def test_a_lost_record_is_damage_and_is_restored_from_its_versions() -> None:
    world = await trained(3)
    before = await world.catalog.get(vplm())
    await world.store.delete(keys.vplm(vplm()))
    (finding,), summary = await _missing(world)
    assert (finding.kind, finding.severity) == (MISSING, Severity.DAMAGE)
    assert finding.resource == str(vplm()) and "rebuild" in finding.detail
    assert not summary.sound
    findings, _ = await told(Rebuilder(world.store, dry_run=True).rebuild())
    assert [(f.kind, f.action) for f in findings] == [(MISSING, Action.NONE)]
    with pytest.raises(NotFound):
        await world.catalog.get(vplm())
    findings, summary = await told(Rebuilder(world.store).rebuild())
    assert [(f.kind, f.action) for f in findings] == [(MISSING, Action.RESTORED)]
    assert summary.changed == 1
    after = await world.catalog.get(vplm())
    assert (after.uid, after.spec, after.latest_version) == (before.uid, before.spec, 3)
    assert after.aliases == {SERVING: 3} and not after.labels
    for number in (1, 2, 3):
        _, stream = await world.versions.open(VersionName(vplm(), number))
        assert declared(await joined(stream)) == declared(module(number - 1))
    moves = (await world.catalog.record(vplm())).document.moves[SERVING]
    assert [(move.version, move.by) for move in moves] == [(3, BY)]
    assert (await verified(world.store))[1].sound
    assert (await told(Rebuilder(world.store).rebuild()))[0] == []


async def test_a_restored_vplm_lives_on() -> None:
    world = await trained(1)
    new = new_vplm(vplm("desk"))
    await world.catalog.commit(new, chunks(module()))
    await world.versions.put(new_version(module(1), vplm("desk")), chunks(module(1)))
    await world.store.delete(keys.vplm(vplm("desk")))
    await told(Rebuilder(world.store).rebuild())
    assert (await world.catalog.commit(new, chunks(module()))).uid == new.uid  # repeated
    with pytest.raises(AlreadyExists):
        await commit(world, vplm("desk"))
    made = await world.versions.put(new_version(module(2), vplm("desk")), chunks(module(2)))
    assert made.number == 3
    await world.delete(vplm("desk"))
    assert (await verified(world.store))[1].sound


async def test_deleted_versions_are_deleted_afterwards_too() -> None:
    """Those that could be had back can be; numbers that are gone are not given again."""
    world = await trained(5)
    for number, for_good in ((2, True), (3, False), (4, True)):
        name = VersionName(vplm(), number)
        await world.version_trash.delete(VersionDeletion(name, new_id(), for_good=for_good))
    for number in (2, 4):
        held = (await world.catalog.record(vplm())).document
        await world.store.delete(keys.version(vplm(), held.uid, number))
        await world.store.delete(keys.deleted_version(vplm(), held.uid, number))
    await world.store.delete(keys.vplm(vplm()))
    await told(Rebuilder(world.store).rebuild())
    record = (await world.catalog.record(vplm())).document
    assert record.numbers() == [5, 1]
    await world.version_trash.undelete(VersionName(vplm(), 3), new_id())
    assert (await world.catalog.record(vplm())).document.numbers() == [5, 3, 1]
    made = await world.versions.put(new_version(module(7)), chunks(module(7)))
    assert made.number == 6


async def test_a_first_version_without_a_record_may_be_a_creation_under_way(
    later: Callable[[timedelta], None],
) -> None:
    world = await trained(1)
    await world.store.delete(keys.vplm(vplm()))
    assert (await verified(world.store))[1].sound
    assert (await told(Rebuilder(world.store).rebuild()))[0] == []
    later(timedelta(hours=2))
    (finding,), summary = await _missing(world)
    assert (finding.severity, summary.sound) == (Severity.REPAIRABLE, False)
    assert "broke off" in finding.detail
    await told(Rebuilder(world.store).rebuild())
    assert (await world.catalog.get(vplm())).aliases == {SERVING: 1}
    assert (await verified(world.store))[1].sound


@pytest.mark.parametrize("versions", [1, 2])
async def test_collection_leaves_what_a_record_can_be_made_of(
    later: Callable[[timedelta], None], versions: int
) -> None:
    """But for what broken-off creations leave, which looks like a lost first version."""
    world = await trained(versions)
    await world.store.delete(keys.vplm(vplm()))
    before = await world.keys()
    later(timedelta(days=3))
    await told(Collector(world.store).collect())
    left = [key for key in await world.keys() if key in before]
    assert (left == before) is (versions > 1)


async def test_what_is_in_the_trash_or_has_a_successor_is_no_orphan() -> None:
    world = await trained(2)
    await world.delete(vplm())
    await commit(world, seed=5)
    assert (await verified(world.store))[1].sound
    await world.store.delete(keys.vplm(vplm()))  # the successor's record, of one young version
    assert (await told(Rebuilder(world.store).rebuild()))[0] == []


async def test_what_cannot_be_restored_is_told() -> None:
    world = World()
    await world.tenant()
    await commit(world)
    await world.versions.put(new_version(module(1)), chunks(module(1)))
    record = (await world.catalog.record(vplm())).document
    await world.store.delete(keys.vplm(vplm()))
    findings, summary = await told(Rebuilder(world.store).rebuild())
    assert [f.kind for f in findings] == [MISSING] and "backbone toy" in findings[0].detail
    assert (summary.damage, summary.changed) == (1, 0)
    await commit(world, vplm("other"))
    await overwrite(world.store, keys.version(vplm(), record.uid, 2), b"{")
    findings, _ = await told(Rebuilder(world.store).rebuild())
    assert {(f.kind, f.action) for f in findings} == {
        (FindingKind.RECORD_CORRUPTED, Action.NONE),
        (MISSING, Action.RESTORED),
    }
    assert (await world.catalog.get(vplm())).aliases == {SERVING: 1}
    for number in (1, 2):
        await overwrite(world.store, keys.version(vplm(), record.uid, number), b"{")
    await world.store.delete(keys.vplm(vplm()))
    findings, _ = await told(Rebuilder(world.store).rebuild())
    assert any("no manifest" in f.detail for f in findings)


async def _missing(world: World) -> tuple[list[Finding], MaintenanceSummary]:
    findings, summary = await verified(world.store)
    return [f for f in findings if f.kind is MISSING], summary
