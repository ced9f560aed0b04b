"""No answer is ever used past its time to live, whatever happens to the feed that renews it."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import pytest

from services.storage.feed.bus import Bus
from smile.rpc.freshness import Freshness
from tests.unit.services.storage.feed_simulation import SimulatedLoop, World

SECONDS = 300.0
SEEDS = range(5)


def simulated(seed: int, *, trouble: bool = True, seconds: float = SECONDS) -> World:
    async def run() -> World:
        world = World(seed)
        await world.run(seconds, trouble=trouble)
        return world

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(run())


@pytest.mark.parametrize("seed", SEEDS)
def test_no_answer_is_used_past_its_time_to_live(seed: int) -> None:
    world = simulated(seed)
    assert world.wrong == []
    assert world.asked > 2_000
    assert world.covered > 0.02 * world.asked, "the feed was of no use"


def test_without_trouble_the_feed_answers_for_storage() -> None:
    world = simulated(1, trouble=False)
    assert world.wrong == []
    assert world.covered > 0.2 * world.asked


def found() -> bool:
    """Whether any seed finds an answer that was too old."""
    return any(simulated(seed).wrong for seed in range(20))


def test_the_simulation_finds_a_missing_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: Bus, name: str) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    monkeypatch.setattr(Bus, "changing", silent)
    assert found()


def test_the_simulation_finds_a_missing_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    async def careless(self: Bus) -> None:
        """Nobody is warned."""

    monkeypatch.setattr(Bus, "_leave_mark", careless)
    assert found()


def test_the_simulation_finds_missing_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Freshness.opened

    def sure(self: Freshness, **told: Any) -> None:
        opened(self, **{**told, "doubt_s": 0.0})

    monkeypatch.setattr(Freshness, "opened", sure)
    assert found()


def test_the_simulation_finds_beats_that_are_believed_when_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.unit.services.storage import feed_simulation

    beat = Freshness.beat

    def believed(self: Freshness, as_of: float) -> None:
        beat(self, feed_simulation.now())

    monkeypatch.setattr(Freshness, "beat", believed)
    assert found()
