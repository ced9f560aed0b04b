"""Indexes come from records, whatever became of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.storage import keys
from services.storage.maintenance.rebuild import Rebuilder
from smile.maintenance import Action, FindingKind
from smile.resources import JobState
from tests.unit.services.storage.maintenance.sound_world import (
    JOB,
    furnished,
    key_like,
    overwrite,
    told,
    verified,
)
from tests.unit.services.storage.world import ACME

pytestmark = pytest.mark.asyncio


async def test_a_sound_store_needs_nothing() -> None:
    world = await furnished()
    before = await world.keys()
    findings, summary = await told(Rebuilder(world.store).rebuild())
    assert (findings, summary.changed, summary.objects) == ([], 0, len(before))
    assert await world.keys() == before


async def test_lost_indexes_are_made_anew() -> None:
    world = await furnished()
    before = await world.keys()
    for part in ("trainingJobOrder/", "pendingJobs/"):
        await world.store.delete(await key_like(world, part))
    assert (await world.records.list_page(ACME, 10, ""))[0] == []
    assert (await world.records.list_pending(10, ""))[0] == []
    findings, _ = await told(Rebuilder(world.store, dry_run=True).rebuild())
    assert {f.action for f in findings} == {Action.NONE} and len(findings) == 2
    findings, summary = await told(Rebuilder(world.store).rebuild())
    assert {(f.kind, f.action) for f in findings} == {(FindingKind.INDEX_MISSING, Action.REPAIRED)}
    assert summary.changed == 2
    assert await world.keys() == before
    (record,), _ = await world.records.list_pending(10, "")
    assert record.job.name == str(JOB)
    assert (await verified(world.store))[1].sound


async def test_stale_entries_go_and_those_without_a_record_stay() -> None:
    world = await furnished()
    record = await world.records.get(JOB)
    await world.records.update(replace(record, job=replace(record.job, state=JobState.FAILED)))
    stale = {keys.pending_job(JOB), f"{keys.job_order(ACME)}{1:013d}-{JOB.job}"}
    unknown = {"pendingJobs/acme/soon", f"{keys.job_order(ACME)}{1:013d}-soon"}
    for key in stale | unknown:
        await overwrite(world.store, key, b"")
    findings, _ = await told(Rebuilder(world.store).rebuild())
    assert {f.object_key for f in findings} == stale
    assert {f.action for f in findings} == {Action.REMOVED}
    held = set(await world.keys())
    assert unknown <= held and not stale & held


async def test_a_record_that_cannot_be_read_is_told() -> None:
    world = await furnished()
    await overwrite(world.store, keys.job(JOB), b"{")
    findings, summary = await told(Rebuilder(world.store).rebuild())
    assert {f.kind for f in findings} == {FindingKind.RECORD_CORRUPTED}
    assert not summary.sound
