"""After a loss, `smile storage rebuild` alone brings the platform back: queue, indexes, records."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import smile
from services.storage import keys
from smile.cli.app import build
from smile.errors import NotFound, PermissionDenied
from smile.names import VplmName
from smile.resources import JobState
from tests.contract.platform_world import Platform, platform_world

pytestmark = pytest.mark.asyncio
LABELS = ["sport", "money"]
ROWS = [
    {"text": text, "label": label}
    for text, label in (("they win the game", "sport"), ("prices on the market", "money"))
] * 20


async def rebuilt(platform: Platform) -> Result:
    arguments = [
        "--api-key",
        platform.operator_key,
        "--endpoints",
        platform.endpoints,
        "-o",
        "json",
    ]
    run = CliRunner().invoke
    return await asyncio.to_thread(run, build(), ["storage", "rebuild", *arguments])


def rows(told: Result) -> list[dict[str, Any]]:
    """What the command says, without what the trainer in this process logs meanwhile."""
    return [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]


async def test_jobs_run_after_redis_its_indexes_and_a_record_were_lost() -> None:
    async with platform_world("acme") as platform, platform.client("acme") as client:
        await client.create_vplm("topics", backbone="toy", pet=smile.Pfeiffer(4), labels=LABELS)
        await client.create_vplm("other", backbone="toy", pet=smile.Pfeiffer(4), labels=LABELS)
        await client.upload_dataset("news", ROWS)
        async with platform.worker():
            await client.wait(await client.train("topics", "news", epochs=1))
        jobs = [await client.train(vplm, "news", epochs=1) for vplm in ("topics", "other")]
        platform.redis.kill()
        for info in await platform.store.list_objects(keys.PENDING_JOBS):
            await platform.store.delete(info.key)
        await platform.store.delete(keys.vplm(VplmName.parse("tenants/acme/vplms/topics")))
        with pytest.raises(NotFound):
            await client.vplm("topics")
        platform.redis.start()  # with nothing in it
        assert platform.jobs is not None
        assert await platform.jobs.reconcile() == 0  # by itself the trainer finds no job

        told = await rebuilt(platform)
        assert told.exit_code == 0, told.output
        lines = rows(told)
        found = sorted(row["finding"]["kind"] for row in lines if "finding" in row)
        assert found == ["index-missing", "index-missing", "record-missing"]
        assert lines[-1] == {"jobs_queued": 2}
        async with platform.worker():
            for job in jobs:
                assert (await client.wait(job, timeout=60)).state is JobState.SUCCEEDED
        assert (await client.vplm("topics")).aliases == {"serving": 3}
        assert rows(await rebuilt(platform))[-1] == {"jobs_queued": 0}


async def test_without_a_trainer_it_is_said_who_queues_jobs() -> None:
    async with platform_world("acme") as platform:
        storage = next(e for e in platform.endpoints.split(",") if e.startswith("storage="))
        arguments = [
            "--api-key",
            platform.operator_key,
            "--endpoints",
            f"{storage},trainer=[::1]:1",
        ]
        told = await asyncio.to_thread(
            CliRunner().invoke, build(), ["storage", "rebuild", *arguments]
        )
        assert told.exit_code == 0, told.output
        assert "SMILE_TRAINER_RECONCILE_S" in told.output


async def test_only_operators_have_jobs_queued_again() -> None:
    async with platform_world("acme") as platform, platform.client("acme") as client:
        with pytest.raises(PermissionDenied):
            await client.requeue_jobs()
