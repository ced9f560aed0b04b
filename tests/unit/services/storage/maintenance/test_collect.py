"""Garbage goes, in its time; what something points to never does, whoever is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.storage import keys
from services.storage.maintenance.collect import Collector
from services.storage.maintenance.verify import Verifier
from smile.maintenance import Action, Finding, MaintenanceSummary
from smile.names import VersionName
from smile.resources import VplmVersion
from tests.unit.services.storage.maintenance.sound_world import (
    JOB,
    checkpoint,
    furnished,
    overwrite,
    told,
    verified,
)
from tests.unit.services.storage.maintenance.stepping import Schedule, SteppingStore
from tests.unit.services.storage.world import (
    World,
    chunks,
    commit,
    declared,
    joined,
    module,
    new_version,
    new_vplm,
    vplm,
)

GRACE = timedelta(hours=24)
NONE = timedelta(0)


async def collected(
    world: World, grace: timedelta = GRACE, **how: bool
) -> tuple[list[Finding], MaintenanceSummary]:
    return await told(Collector(world.store, grace, **how).collect())


async def _litter(world: World) -> set[str]:
    """One of every kind of garbage; where it lies."""
    manifest = next(key for key in await world.keys() if "/versions/" in key)
    folder = manifest.partition("versions/")[0]
    litter = {
        f"{folder}blobs/{'0' * 64}",
        f"{keys.vplm_folder(vplm('never'))}{'1' * 20}/versions/000000001.json",
        f"{keys.vplm_folder(vplm('never'))}{'1' * 20}/blobs/{'2' * 64}",
        f"tenants/acme/datasets/never/{'3' * 20}/data",
        "tenants/acme/trainingJobs/never/curve.jsonl",
        f"tenants/acme/trainingJobs/never/checkpoints/{1:019d}",
        "tenants/acme/trainingJobOrder/8239399999999-never",
        "pendingJobs/acme/never",
        f"{keys.SHARED_BLOBS}{'4' * 64}",
        "probe/killed",
    }
    found = await world.store.get(manifest)
    assert found is not None
    for key in litter:
        await overwrite(world.store, key, found.data)
    return litter


@pytest.mark.asyncio
async def test_garbage_lies_in_quarantine_and_then_goes() -> None:
    store = SteppingStore()
    world = await furnished(store)
    sound = set(await world.keys())
    litter = await _litter(world)
    findings, summary = await collected(world)
    assert (findings, summary.changed) == ([], 0)  # young: someone may be at it
    await store.age()
    findings, summary = await collected(world)
    assert {f.object_key for f in findings} == litter
    assert {f.action for f in findings} == {Action.QUARANTINED}
    assert summary.changed_bytes == sum(f.size_bytes for f in findings) > 0
    held = set(await world.keys())
    assert {key for key in held if not key.startswith(keys.QUARANTINE)} == sound
    findings, _ = await collected(world)
    assert findings == []  # not long enough in quarantine
    await store.age()
    findings, _ = await collected(world)
    assert {(f.object_key, f.action) for f in findings} == {(k, Action.REMOVED) for k in litter}
    assert set(await world.keys()) == sound


@pytest.mark.asyncio
async def test_a_dry_run_tells_the_same_and_does_nothing() -> None:
    store = SteppingStore()
    world = await furnished(store)
    litter = await _litter(world)
    await store.age()
    before = await world.keys()
    findings, summary = await collected(world, dry_run=True)
    assert {f.object_key for f in findings} == litter
    assert {f.action for f in findings} == {Action.NONE}
    assert (summary.changed, summary.notes) == (0, len(litter))
    assert await world.keys() == before


@pytest.mark.asyncio
async def test_a_quick_look_reads_no_manifests_where_none_can_be_left_over() -> None:
    store = SteppingStore()
    world = await furnished(store)
    await store.age()
    read: list[str] = []
    get = store.inner.get

    async def counted(key: str) -> Any:
        read.append(key)
        return await get(key)

    store.inner.get = counted  # type: ignore[method-assign]
    await collected(world, thorough=False)
    assert not [key for key in read if "/versions/" in key]
    await collected(world)
    assert [key for key in read if "/versions/" in key]


@pytest.mark.asyncio
async def test_what_is_restorable_or_unreadable_stays() -> None:
    """A deleted vPLM that can be had back; records that may point anywhere."""
    store = SteppingStore()
    world = World(store, grace=timedelta(days=7))
    await world.tenant()
    for name in ("kept", "broken"):
        await commit(world, vplm(name))
    await world.delete(vplm("kept"))
    await overwrite(store, keys.vplm(vplm("broken")), b"{")
    await store.age()
    before = set(await world.keys())
    findings, _ = await collected(world)
    assert findings == []
    assert set(await world.keys()) == before


@pytest.mark.asyncio
async def test_checkpoints_go_with_the_end_of_their_job() -> None:
    store = SteppingStore()
    world = await furnished(store)
    await store.age()
    assert (await collected(world))[0] == []
    await checkpoint(world, 2)
    record = await world.records.get(JOB)
    from dataclasses import replace

    from smile.resources import JobState

    ended = replace(record.job, state=JobState.FAILED)
    await overwrite(store, keys.checkpoint(JOB, 3), b"from a zombie")
    await world.records.update(replace(record, job=ended, fence=2))
    await overwrite(store, keys.checkpoint(JOB, 3), b"from a zombie")
    await store.age()
    findings, _ = await collected(world)
    assert [f.object_key for f in findings] == [keys.checkpoint(JOB, 3)]


async def _abandoned_upload(world: World, seed: int) -> None:
    """A blob without a manifest: its upload broke off in between."""
    data = module(seed)
    folder = next(
        key for key in await world.keys() if "/versions/" in key and "/topics/" in key
    ).partition("versions/")[0]
    await overwrite(world.store, f"{folder}blobs/{declared(data).digest}", data)


Act = Callable[[], Coroutine[Any, Any, object]]


class Race:
    """Uploads that find their bytes stored already, as garbage, and collections of that garbage."""

    def __init__(self) -> None:
        self.store = SteppingStore()
        self.world = World(self.store)
        self.again = new_vplm(vplm("again"), module(7))
        self.version = new_version(module(1))

    async def prepare(self) -> None:
        await self.world.tenant()
        await commit(self.world)
        await _abandoned_upload(self.world, 1)
        await self.world.catalog.commit(self.again, chunks(module(7)))
        await self.store.delete(keys.vplm(vplm("again")))  # broke off before its record
        await self.store.age()

    def actors(self) -> dict[str, Act]:
        return {
            "first collector": self._collect,
            "second collector": self._collect,
            "put": lambda: World(self.store).versions.put(self.version, chunks(module(1))),
            "commit": lambda: World(self.store).catalog.commit(self.again, chunks(module(7))),
        }

    async def _collect(self) -> object:
        return await told(Collector(self.store, GRACE).collect())

    async def check(self, outcomes: dict[str, object]) -> None:
        """What was acknowledged is whole."""
        for name, outcome in outcomes.items():
            assert not isinstance(outcome, BaseException), (name, outcome)
        _, summary = await told(Verifier(self.store).verify())
        assert summary.sound, outcomes
        if isinstance(put := outcomes["put"], VplmVersion):
            _, stream = await self.world.versions.open(VersionName.parse(put.name))
            assert await joined(stream) == module(1)
        if outcomes["commit"] is not None:
            _, stream = await self.world.versions.open(VersionName(vplm("again"), 1))
            assert await joined(stream) == module(7)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow],
)
@given(data=st.data())
def test_uploads_and_collections_in_any_order_lose_nothing(data: st.DataObject) -> None:
    actors = ("first collector", "second collector", "put", "commit")
    kills = data.draw(st.dictionaries(st.sampled_from(actors), st.integers(0, 40), max_size=2))
    # long runs of one actor reach further into the others' critical places than fair turns
    runs = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 25)), max_size=40))
    order = iter([number for number, length in runs for _ in range(length)])

    async def race() -> None:
        made = Race()
        await made.prepare()
        schedule = Schedule(lambda ready: ready[next(order, 0) % len(ready)], kills)
        outcomes = await schedule.run(made.store, made.actors())
        if kills:  # whoever was killed between removing and looking again left that to the next
            await told(Collector(made.store, GRACE).collect())
        await made.check(outcomes)

    asyncio.run(race())


@pytest.mark.parametrize("step", range(48))
@pytest.mark.asyncio
async def test_an_upload_at_every_step_of_a_collection(step: int) -> None:
    """A collection stands still at its `step`-th operation until all uploads are done."""
    made = Race()
    await made.prepare()
    left = step

    def choose(ready: list[str]) -> str:
        nonlocal left
        if left > 0 and "first collector" in ready:
            left -= 1
            return "first collector"
        return next((name for name in ("put", "commit") if name in ready), ready[0])

    actors = made.actors()
    del actors["second collector"]
    await made.check(await Schedule(choose).run(made.store, actors))


@pytest.mark.parametrize("step", range(14))
@pytest.mark.parametrize("actor", ["put", "commit"])
@pytest.mark.asyncio
async def test_a_collection_at_every_step_of_an_upload(actor: str, step: int) -> None:
    made = Race()
    await made.prepare()
    left = step

    def choose(ready: list[str]) -> str:
        nonlocal left
        if left > 0 and actor in ready:
            left -= 1
            return actor
        return "first collector" if "first collector" in ready else ready[0]

    actors = {
        name: act for name, act in made.actors().items() if name in (actor, "first collector")
    }
    outcomes = await Schedule(choose).run(made.store, actors)
    outcomes = {"put": None, "commit": None} | outcomes
    await made.check(outcomes)
    assert (await verified(made.store))[1].sound
