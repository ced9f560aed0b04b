"""Who follows the change feed hears at once of rollbacks and of what is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.processor.requests import Asked
from smile.errors import NotFound
from smile.names import VplmName
from smile.resources import SERVING
from smile.v1 import storage_pb2
from tests.contract.feed_world import WAIT_S_MAX, FeedWorld, Follower, feed_world, move
from tests.contract.storage_world import new_id
from tests.contract.test_change_feed import ready

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def it(tmp_path: Path) -> AsyncIterator[FeedWorld]:
    async with feed_world(tmp_path) as made:
        yield made


async def becomes(follower: Follower, asked: Asked, version: int | None) -> None:
    """Wait until what is remembered of `asked` is that version; None: that there is none. Without a
    word from the feed it would be used for minutes.
    """
    async with asyncio.timeout(WAIT_S_MAX):
        while await _seen(follower, asked) != version:  # noqa: ASYNC110 -- what others do
            await asyncio.sleep(0.01)


async def _seen(follower: Follower, asked: Asked) -> int | None:
    try:
        return (await follower.resolver.target(asked)).name.number
    except NotFound:
        return None


async def test_a_rollback_is_heard(it: FeedWorld) -> None:
    (replica,), follower, name = await ready(it)
    asked = Asked(VplmName.parse(name), SERVING)
    await move(replica, name, 2)
    await becomes(follower, asked, 2)
    request = storage_pb2.RollbackAliasRequest(name=name, request_id=new_id())
    await replica.world.call("StorageService.RollbackAlias", request, replica.world.keys["acme"])
    await becomes(follower, asked, 1)


async def test_a_deleted_version_is_answered_by_nobody(it: FeedWorld) -> None:
    (replica,), follower, name = await ready(it)
    asked = Asked(VplmName.parse(name), "", 2)
    await becomes(follower, asked, 2)
    key = replica.world.keys["acme"]
    request = storage_pb2.DeleteVersionRequest(name=f"{name}/versions/2", request_id=new_id())
    await replica.world.call("StorageService.DeleteVersion", request, key)
    await becomes(follower, asked, None)
    undo = storage_pb2.UndeleteVersionRequest(name=f"{name}/versions/2", request_id=new_id())
    await replica.world.call("StorageService.UndeleteVersion", undo, key)
    await becomes(follower, asked, 2)


async def test_a_deleted_vplm_is_answered_by_nobody_until_it_is_back(it: FeedWorld) -> None:
    (replica,), follower, name = await ready(it)
    asked = Asked(VplmName.parse(name), SERVING)
    await becomes(follower, asked, 1)
    request = storage_pb2.DeleteVplmRecordRequest(name=name, request_id=new_id())
    await replica.world.call("StorageService.DeleteVplm", request, it.service, "acme")
    await becomes(follower, asked, None)
    undo = storage_pb2.UndeleteVplmRecordRequest(name=name, request_id=new_id())
    await replica.world.call("StorageService.UndeleteVplm", undo, it.service, "acme")
    await becomes(follower, asked, 1)
