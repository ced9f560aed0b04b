"""A client that was refused for now comes back when it was told to, and does not multiply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from smile.client.pacing import HOPELESS, OF_ONE_VPLM, Pace
from smile.errors import Overloaded

pytestmark = pytest.mark.asyncio
HINT_S = 0.05


class Server:
    """Refuses until told otherwise, and knows when it was asked."""

    def __init__(self, refusals: Sequence[Overloaded | None]) -> None:
        self._refusals = list(refusals)
        self.asked_at: list[float] = []

    async def __call__(self, left_s: float) -> str:
        self.asked_at.append(time.monotonic())
        assert left_s > 0
        refusal = self._refusals.pop(0) if self._refusals else None
        await asyncio.sleep(0)
        if refusal is not None:
            raise refusal
        return "answer"


def full(retry_after: float = HINT_S, reason: str | None = None) -> Overloaded:
    return Overloaded("full", reason=reason, retry_after=retry_after)


async def test_what_was_refused_is_asked_again_when_the_server_said() -> None:
    server = Server([full(), full(), None])
    assert await Pace().ask("v", 1, server, 10.0) == "answer"
    first, second, third = server.asked_at
    assert second - first >= HINT_S
    assert third - second >= HINT_S


async def test_nobody_else_is_sent_meanwhile_and_few_are_refused() -> None:
    """Fifty callers of a server that has no room for half a second."""
    pace, opens = Pace(), time.monotonic() + 0.5
    asked, refused = 0, 0

    async def call(_: float) -> None:
        nonlocal asked, refused
        asked += 1
        await asyncio.sleep(0.001)
        if time.monotonic() < opens:
            refused += 1
            raise full(0.1)

    await asyncio.gather(pace.ask("v", 1, call, 20.0))
    assert refused >= 2
    opens, asked, refused = time.monotonic() + 0.5, 0, 0
    with pytest.raises(Overloaded):
        await pace.ask("v", 1, call, 0.01)
    await asyncio.gather(*(pace.ask(f"v{number}", 1, call, 20.0) for number in range(50)))
    assert asked - refused == 50
    assert refused <= 30  # 250 if each came back by itself whenever it was told


async def test_a_rate_concerns_as_many_texts_of_its_vplm_alone() -> None:
    pace, started = Pace(), time.monotonic()
    with pytest.raises(Overloaded):
        await pace.ask("slow", 2, Server([full(0.3, OF_ONE_VPLM)]), 0.2)
    assert await pace.ask("other", 2, Server([]), 1.0) == "answer"
    assert await pace.ask("slow", 1, Server([]), 1.0) == "answer"
    assert await pace.ask("slow", 2, Server([]), 0.1) == "answer", "it cannot wait: the server says"
    assert time.monotonic() - started < 0.3
    assert await pace.ask("slow", 2, Server([]), 5.0) == "answer"
    assert time.monotonic() - started >= 0.3


async def test_new_terms_are_tried_at_once() -> None:
    pace, started = Pace(), time.monotonic()
    with pytest.raises(Overloaded):
        await pace.ask("slow", 2, Server([full(5.0, OF_ONE_VPLM)]), 1.0)
    pace.forget("slow")
    assert await pace.ask("slow", 2, Server([]), 10.0) == "answer"
    assert time.monotonic() - started < 4.0


async def test_too_little_time_and_a_hopeless_deadline_raise_at_once() -> None:
    started = time.monotonic()
    server = Server([full(30.0)])
    with pytest.raises(Overloaded):
        await Pace().ask("v", 1, server, 10.0)
    hopeless = Server([full(0.01, HOPELESS)])
    with pytest.raises(Overloaded):
        await Pace().ask("v", 1, hopeless, 10.0)
    assert len(server.asked_at) == len(hopeless.asked_at) == 1
    assert time.monotonic() - started < 5.0


async def test_after_an_answer_nobody_waits() -> None:
    pace = Pace()
    await pace.ask("v", 1, Server([full()]), 10.0)
    started = time.monotonic()
    for _ in range(5):
        await pace.ask("v", 1, Server([]), 10.0)
    assert time.monotonic() - started < HINT_S
