"""Storage as its own process says what its store can do, and is unready if that is too little."""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path

import pytest

from smile.client.client import AsyncClient
from smile.maintenance import Capability, StoreMode
from smile.rpc.probe import Health
from smile.v1 import storage_pb2
from tests.contract.test_storage_process import (
    OPERATOR_KEY,
    SERVICE_KEY,
    environment,
    running,
    until,
)

pytestmark = pytest.mark.asyncio


async def test_what_the_store_can_do_is_logged_and_told(tmp_path: Path) -> None:
    keys = tmp_path / "signing-keys"
    keys.write_text(f"k1:{secrets.token_urlsafe(32)}\n")
    variables = environment(f"file://{tmp_path}/objects", SMILE_STORAGE_SIGNING_KEYS_FILE=str(keys))
    async with running(variables) as process:
        assert (await process.health(ready=True)).ready
        (line,) = [line for line in process.lines if line["event"] == "object store probed"]
        assert "create-only" in str(line["capabilities"]) and "versioning" in str(line["missing"])
        async with AsyncClient(OPERATOR_KEY, endpoints=f"storage={process.address}") as client:
            report = await client.store()
            assert report.store == f"directory {tmp_path}/objects"
            assert report.probe_time is not None
            granted = {seen.capability for seen in report.capabilities if seen.granted}
            assert granted == set(Capability) - {Capability.VERSIONING}
            modes = {mode.mode: mode.granted for mode in report.modes}
            assert modes == {
                StoreMode.RECORDS: True,
                StoreMode.REPLICAS: True,
                StoreMode.VERSIONED: False,
            }
            assert (report.signing.key, report.signing.unsigned_accepted) == ("k1", False)
    assert keys.read_text().strip().partition(":")[2] not in str(process.lines)


async def test_a_mode_that_the_store_is_not_good_for_is_refused(tmp_path: Path) -> None:
    variables = environment(f"file://{tmp_path}/objects", SMILE_STORAGE_S3_VERSIONING="required")
    async with running(variables) as process:
        assert await process.health(ready=False) == Health(live=True, ready=False)

        async def told() -> bool:
            return bool(process.whys)

        await until(told)
        assert "mode 'versioned' needs 'versioning'" in process.whys[0]


async def test_what_others_sign_is_refused(tmp_path: Path) -> None:
    variables = environment(f"file://{tmp_path}/objects")
    first = {**variables, "SMILE_STORAGE_SIGNING_KEYS": f"k1:{secrets.token_urlsafe(32)}"}
    async with running(first) as process:
        await process.health(ready=True)
        world = process.world()
        await world.create_tenant("acme")
        made = await world.commit()
        await world.close()
    second = {**variables, "SMILE_STORAGE_SIGNING_KEYS": f"k2:{secrets.token_urlsafe(32)}"}
    async with running(second) as process:
        await process.health(ready=True)
        world = process.world()
        request = storage_pb2.GetVplmRecordRequest(name=made.name)
        error = await world.error("StorageService.GetVplm", request, SERVICE_KEY, "acme")
        assert error.reason == "SIGNATURE_KEY_UNKNOWN" and "'k1'" in error.message
        await world.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"SMILE_STORAGE_SIGNING_KEYS": "k1:short"},
        {"SMILE_STORAGE_SIGNING_KEYS_FILE": "/does/not/exist"},
        {"SMILE_STORAGE_SIGNING_KEYS": "k1:x", "SMILE_STORAGE_SIGNING_KEYS_FILE": "/etc/hostname"},
        {"SMILE_STORAGE_UNSIGNED": "perhaps"},
    ],
)
async def test_wrong_settings_end_the_process(tmp_path: Path, wrong: dict[str, str]) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.storage"),
        env={**environment(f"file://{tmp_path}"), **wrong},
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await child.communicate()
    assert child.returncode == 78
    assert next(iter(wrong)).partition("_FILE")[0].encode() in stderr or b"igning" in stderr
