"""Operators' care of the store over the wire: RPCs, SDK and command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from services.storage.servicer.assembly import StorageOptions, assemble
from smile.cli.app import build
from smile.client.client import AsyncClient
from smile.errors import InvalidArgument, PermissionDenied
from smile.maintenance import (
    Action,
    Finding,
    FindingKind,
    MaintenanceProgress,
    MaintenanceSummary,
    Severity,
    StoreMode,
    StoreReport,
)
from smile.rpc.keys import KeyKind, KeyParts, new_key
from smile.store.capabilities import mode_reports, probe_capabilities
from smile.testing import serving
from tests.unit.services.storage.maintenance.sound_world import furnished, key_like, overwrite
from tests.unit.services.storage.maintenance.stepping import SteppingStore
from tests.unit.services.storage.world import World

pytestmark = pytest.mark.asyncio


class Scene:
    """A storage server over a store with one of everything, and who runs it."""

    def __init__(self, world: World, operator: str, address: str, report: StoreReport) -> None:
        self.world = world
        self.operator = operator
        self.endpoints = f"storage={address}"
        self.report = report

    def client(self, key: str | None = None) -> AsyncClient:
        return AsyncClient(key or self.operator, endpoints=self.endpoints)

    async def cli(self, *arguments: str) -> Result:
        platform = ("--api-key", self.operator, "--endpoints", self.endpoints)
        run = CliRunner().invoke
        return await asyncio.to_thread(run, build(), ["storage", *arguments, *platform])


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    world = await furnished(SteppingStore())
    operator = new_key(KeyKind.OPERATOR).text
    memory = world.store.inner  # type: ignore[attr-defined]
    seen = await probe_capabilities(memory)
    report = StoreReport("memory", None, seen, mode_reports(seen, frozenset({StoreMode.RECORDS})))
    options = StorageOptions(
        new_key(KeyKind.SERVICE).text,
        KeyParts.parse(operator).secret_sha256,
        report=lambda: report,
    )
    services, authenticator = assemble(world.store, options)
    async with serving(services, authenticator=authenticator) as server:
        yield Scene(world, operator, server.address, report)


async def test_the_store_is_told_as_it_was_probed(scene: Scene) -> None:
    async with scene.client() as client:
        assert await client.store() == scene.report
    shown = await scene.cli("status")
    assert shown.exit_code == 0, shown.stderr
    assert "create-only" in shown.stdout and "only this process sees it" in shown.stdout
    told = json.loads((await scene.cli("status", "-o", "json")).stdout)
    assert {c["capability"] for c in told["capabilities"] if c["granted"]} >= {"create-only"}
    assert told["modes"][0]["mode"] == "records"


async def test_a_sound_store_is_verified(scene: Scene) -> None:
    async with scene.client() as client:
        events = [event async for event in client.verify_store()]
    assert isinstance(events[-1], MaintenanceSummary) and events[-1].sound
    assert any(isinstance(event, MaintenanceProgress) for event in events)
    assert not any(isinstance(event, Finding) for event in events)
    shown = await scene.cli("verify")
    assert (shown.exit_code, shown.stdout) == (0, "")
    assert "0 damaged" in shown.stderr


async def test_damage_ends_with_exit_code_one(scene: Scene) -> None:
    blob = await key_like(scene.world, "/blobs/")
    await overwrite(scene.world.store, blob, b"rot")
    async with scene.client() as client:
        (finding,) = [e async for e in client.verify_store() if isinstance(e, Finding)]
    assert (finding.kind, finding.severity) == (FindingKind.DIGEST_MISMATCH, Severity.DAMAGE)
    assert (finding.object_key, finding.resource) == (blob, "tenants/acme/vplms/topics")
    shown = await scene.cli("verify")
    assert shown.exit_code == 1
    assert blob in shown.stdout and "1 damaged" in shown.stderr
    lines = (await scene.cli("verify", "--tenant", "acme", "-o", "json")).stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert told[0]["finding"]["kind"] == "digest-mismatch"
    assert told[-1]["summary"]["damage"] == 1
    assert (await scene.cli("verify", "--tenant", "nobody")).exit_code == 0


async def test_indexes_are_rebuilt(scene: Scene) -> None:
    lost = await key_like(scene.world, "pendingJobs/")
    await scene.world.store.delete(lost)
    assert (await scene.cli("verify")).exit_code == 1
    dry = await scene.cli("rebuild", "--dry-run")
    assert dry.exit_code == 0 and "index-missing" in dry.stdout
    assert (await scene.cli("verify")).exit_code == 1
    done = await scene.cli("rebuild")
    assert done.exit_code == 0 and "repaired" in done.stdout
    assert lost in await scene.world.keys()
    assert (await scene.cli("verify")).exit_code == 0


async def test_garbage_is_collected(scene: Scene) -> None:
    folder = (await key_like(scene.world, "000000001.json")).partition("versions/")[0]
    garbage = f"{folder}blobs/{'0' * 64}"
    await overwrite(scene.world.store, garbage, b"left over")
    assert "0 are garbage" in (await scene.cli("gc")).stderr
    assert isinstance(scene.world.store, SteppingStore)
    await scene.world.store.age()
    dry = await scene.cli("gc", "--dry-run")
    assert garbage in dry.stdout and garbage in await scene.world.keys()
    async with scene.client() as client:
        found = [e async for e in client.collect_garbage() if isinstance(e, Finding)]
    assert [(f.object_key, f.action, f.size_bytes) for f in found] == [
        (garbage, Action.QUARANTINED, 9)
    ]
    assert garbage not in await scene.world.keys()
    assert (await scene.cli("verify")).exit_code == 0


async def test_the_grace_period_is_at_least_an_hour(scene: Scene) -> None:
    async with scene.client() as client:
        with pytest.raises(InvalidArgument):
            _ = [e async for e in client.collect_garbage(grace_s=timedelta(minutes=59).seconds)]
    assert (await scene.cli("gc", "--grace-hours", "0.5")).exit_code == 3


async def test_it_is_for_operators(scene: Scene) -> None:
    async with scene.client() as operator:
        tenant = (await operator.create_tenant("rival")).key
    async with scene.client(tenant) as client:
        for call in (client.verify_store(), client.collect_garbage(), client.rebuild_indexes()):
            with pytest.raises(PermissionDenied):
                _ = [event async for event in call]
        with pytest.raises(PermissionDenied):
            await client.store()
