"""One world with one tenant."""

from __future__ import annotations

import pytest_asyncio

from tests.unit.services.storage.world import World


@pytest_asyncio.fixture
async def world() -> World:
    made = World()
    await made.tenant()
    return made
