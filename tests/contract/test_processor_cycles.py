"""A thousand vPLMs rented, asked and released: memory ends where it began."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from smile.model.toy import write_toy_backbone
from tests.contract.processor_world import PETS, World, processor_world

pytestmark = pytest.mark.asyncio

STATM = Path("/proc/self/statm")
PAGE_BYTES = 4096
CYCLES = 1_000
AT_A_TIME = 8
WARM_UP = 300  # pools, caches and the allocator reach their size
GROWTH_BYTES_MAX = 8 << 20  # of 700 cycles: their modules' bytes alone are more


async def cycles(world: World, count: int) -> None:
    """Rent, ask and release, several at a time."""
    async with world.client("acme") as client:

        async def one_by_one(vplm: str) -> None:
            for _ in range(count // AT_A_TIME):
                await client.rent(vplm, wait=True)
                result = await client.infer(vplm, "money")
                assert result.version.startswith(f"tenants/acme/vplms/{vplm}/")
                await client.release(vplm)

        await asyncio.gather(*(one_by_one(f"v{number}") for number in range(AT_A_TIME)))


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * PAGE_BYTES


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
async def test_a_thousand_cycles_leave_no_memory_behind(tmp_path: Path) -> None:
    backbone = write_toy_backbone(tmp_path)
    async with processor_world(backbone, resolve_ttl_s=60) as world:
        for number in range(AT_A_TIME):
            world.add("acme", f"v{number}", pet=list(PETS)[number % len(PETS)], seed=number)
        await cycles(world, WARM_UP)
        before, loads = resident_bytes(), world.stats.module_loads_total
        await cycles(world, CYCLES - WARM_UP)
        grown = resident_bytes() - before
        assert world.stats.module_loads_total - loads > CYCLES // 2, "each cycle loads"
        assert world.stats.modules_bytes == 0
        assert grown < GROWTH_BYTES_MAX, f"{grown} bytes more after {CYCLES - WARM_UP} cycles"
