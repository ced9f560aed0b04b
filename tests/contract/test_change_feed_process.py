"""The feed and storage's own process: killed in the middle of a write, and ended in order."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import time
from pathlib import Path

import pytest

from smile.errors import SmileError
from smile.v1 import storage_pb2
from tests.contract.feed_world import FeedWorld, Replica, feed_world, until
from tests.contract.storage_world import new_id, put_parts
from tests.contract.test_storage_process import Process, environment, running
from tests.unit.services.storage import world as domain

pytestmark = pytest.mark.asyncio
TTL_S = 0.3
KILLED_AT = """
    import os, signal
    from smile.store.directory import DirectoryStore
    swap = DirectoryStore.compare_and_swap
    async def failing(self, key, data, etag):
        if b'"set-alias"' not in data:
            return await swap(self, key, data, etag)
        if {after}:
            await swap(self, key, data, etag)
        os.kill(os.getpid(), signal.SIGKILL)
    DirectoryStore.compare_and_swap = failing
    import runpy
    runpy.run_module("services.storage", run_name="__main__")
"""


async def started(it: FeedWorld, folder: Path, *, program: str | None = None) -> Process:
    """Storage as a process, beside the replicas of this one."""
    variables = environment(
        f"file://{folder}/objects",
        SMILE_STORAGE_REDIS_URL=it.redis.url,
        SMILE_SERVICE_KEY=it.service,
    )
    if program is None:
        return await it.stack.enter_async_context(running(variables))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=variables, stderr=asyncio.subprocess.PIPE
    )
    process = Process(child)
    following = asyncio.create_task(process.follow())
    it.stack.callback(following.cancel)
    return process


async def two_versions(replica: Replica) -> str:
    await replica.world.create_tenant("acme")
    name = str((await replica.world.commit()).name)
    parts = put_parts(name, domain.module(1))
    await replica.world.call("StorageService.PutVersion", parts, replica.world.keys["acme"])
    return name


@pytest.mark.parametrize("after", [False, True])
async def test_a_replica_killed_in_a_move_leaves_no_old_answer(tmp_path: Path, after: bool) -> None:
    async with feed_world(tmp_path) as it:
        replica = await it.replica()
        await until(lambda: replica.hub.live)
        name = await two_versions(replica)
        follower = await it.follower(replica, ttl_s=TTL_S)
        await follower.covered()
        assert await follower.serving(name) == 1
        program = textwrap.dedent(KILLED_AT.format(after=after))
        process = await started(it, tmp_path, program=program)
        await process.health(ready=True)
        world = process.world()
        request = storage_pb2.SetAliasRequest(
            name=name, alias="serving", version=2, request_id=new_id()
        )
        with pytest.raises(SmileError):
            await world.call("StorageService.SetAlias", request, it.service, "acme")
        assert await process.child.wait() < 0
        await world.close()
        await asyncio.sleep(TTL_S)
        assert await follower.serving(name) == (2 if after else 1)
        assert follower.freshness.live


async def test_a_stream_does_not_hold_up_the_end_of_storage(tmp_path: Path) -> None:
    async with feed_world(tmp_path) as it:
        process = await started(it, tmp_path)
        await process.health(ready=True)
        replica = await it.replica()
        replica.address = process.address
        follower = await it.follower(replica, ttl_s=TTL_S)
        await until(lambda: follower.freshness.live)
        process.child.terminate()
        began = time.monotonic()
        assert await process.child.wait() == 0
        assert time.monotonic() - began < 5.0  # it would drain for 10
        await until(lambda: not follower.freshness.live)
