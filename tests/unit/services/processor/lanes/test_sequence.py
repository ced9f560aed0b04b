"""The turnstile of sequential execution."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from services.processor.lanes.sequence import Turnstile
from services.processor.scheduling.admission import Admission, Permit, QueueLimits
from smile.names import tenant_id

pytestmark = pytest.mark.asyncio


@dataclass
class Gate:
    """A turnstile and what it told."""

    expected: list[int] = field(default_factory=list)
    left: int = 0
    inside: list[str] = field(default_factory=list)
    turnstile: Turnstile = field(init=False)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.turnstile = Turnstile(100, 3, 0.01, self.expected.append, self.leave)
        self.admission = Admission(QueueLimits(1_000, 100_000, 1.0))
        self.admission.open()

    def leave(self) -> None:
        self.left += 1

    def permit(self, texts: int = 1, tokens: int = 10) -> Permit:
        return self.admission.admit(tenant_id("acme"), texts, tokens)

    async def ride(self, name: str, permit: Permit, go: asyncio.Event) -> None:
        async with self.turnstile.turn(permit):
            self.inside.append(name)
            await go.wait()
            self.inside.remove(name)


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def test_a_micro_batch_enters_when_the_one_before_has_left(gate: Gate) -> None:
    go = asyncio.Event()
    rides = [asyncio.create_task(gate.ride(str(n), gate.permit(), go)) for n in range(5)]
    await asyncio.sleep(0.005)
    assert gate.inside == ["0", "1", "2"], "a full micro-batch does not wait"
    await asyncio.sleep(0.03)
    assert gate.inside == ["0", "1", "2"]
    go.set()
    await asyncio.gather(*rides)
    assert gate.expected == [3, 2]
    assert gate.left == 5


async def test_tokens_bound_a_micro_batch_and_one_too_large_goes_alone(gate: Gate) -> None:
    go = asyncio.Event()
    sizes = [60, 60, 500, 10]
    rides = [
        asyncio.create_task(gate.ride(str(n), gate.permit(1, size), go))
        for n, size in enumerate(sizes)
    ]
    go.set()
    await asyncio.gather(*rides)
    assert gate.expected == [1, 1, 1, 1]


async def test_estimates_that_are_too_high_are_learned(gate: Gate) -> None:
    go = asyncio.Event()
    go.set()
    for _ in range(100):
        permit = gate.permit(1, 60)
        async with gate.turnstile.turn(permit):
            permit.settle(60, 30)
    gate.expected.clear()
    await asyncio.gather(*(gate.ride(str(n), gate.permit(1, 60), go) for n in range(3)))
    assert gate.expected == [3], "ninety tokens, not a hundred and eighty"


async def test_who_gives_up_waiting_or_inside_holds_nobody_up(gate: Gate) -> None:
    go = asyncio.Event()
    inside = [asyncio.create_task(gate.ride(str(n), gate.permit(), go)) for n in range(3)]
    waiting = [asyncio.create_task(gate.ride(str(n), gate.permit(), go)) for n in range(3, 6)]
    await asyncio.sleep(0.02)
    waiting[0].cancel()
    inside[1].cancel()
    await asyncio.sleep(0.02)
    assert gate.left == 1
    go.set()
    await asyncio.gather(*inside, *waiting, return_exceptions=True)
    assert gate.expected == [3, 2]
    assert gate.left == 5
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(1):
            await stack.enter_async_context(gate.turnstile.turn(gate.permit()))
