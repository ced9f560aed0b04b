"""A few faults of each kind, drawn by a seed; `python -m tests.faults --all` plays all."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.scenarios import SCENARIOS, Ground, ground

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.e2e,
    pytest.mark.timeout(900),  # each takes seconds; a machine may be starved
]
SEED = int(os.environ.get("SMILE_TEST_FAULTS_SEED", "0"))
DRAWS_MAX = 6


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on() -> AsyncIterator[Ground]:
    async with ground() as made:
        yield made


@pytest.mark.parametrize("name", sorted(SCENARIOS))
async def test_nothing_acknowledged_is_lost(on: Ground, name: str) -> None:
    scenario = SCENARIOS[name]
    if not scenario.possible():
        pytest.skip("this machine does not allow it")
    for seed in range(SEED, SEED + DRAWS_MAX):
        tally = await scenario.play(on, seed=seed)
        if tally.faults:
            break  # how many steps a job has goes by its time, too: the one drawn may not come
    assert tally.faults > 0, "no fault was injected"
    assert tally.acknowledged > 0
    assert tally.lost == []
    assert tally.torn == []
