"""How many texts of a vPLM are on their way at a time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.processor.lanes.gate import Gate
from tests.unit.services.processor.conftest import key

pytestmark = pytest.mark.asyncio

ONE, TWO = key("one"), key("two")


async def turn() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_fits_goes_through_at_once_and_the_rest_as_there_is_room() -> None:
    gate = Gate(10)
    await gate.enter(ONE, 6, 1.0)
    second = asyncio.create_task(gate.enter(ONE, 6, 1.0))
    await turn()
    assert (second.done(), gate.texts_waiting) == (False, 6)
    await gate.enter(TWO, 10, 1.0)
    gate.leave(ONE, 6)
    await second
    assert gate.texts_waiting == 0
    gate.leave(ONE, 6)
    gate.leave(TWO, 10)
    assert len(gate) == 0


async def test_more_than_there_ever_is_room_for_travels_alone() -> None:
    gate = Gate(10)
    await gate.enter(ONE, 50, 1.0)
    small = asyncio.create_task(gate.enter(ONE, 1, 1.0))
    await turn()
    assert not small.done()
    gate.leave(ONE, 50)
    await small


async def test_earliest_due_goes_first() -> None:
    gate, came = Gate(1), list[float]()

    async def come(due: float) -> None:
        await gate.enter(ONE, 1, due)
        came.append(due)
        gate.leave(ONE, 1)

    await gate.enter(ONE, 1, 0.0)
    tasks = [asyncio.create_task(come(due)) for due in (3.0, 1.0, 2.0)]
    await turn()
    gate.leave(ONE, 1)
    await asyncio.gather(*tasks)
    assert came == [1.0, 2.0, 3.0]


async def test_whoever_gives_up_leaves_nothing_behind() -> None:
    gate = Gate(10)
    await gate.enter(ONE, 8, 0.0)
    large = asyncio.create_task(gate.enter(ONE, 5, 1.0))
    small = asyncio.create_task(gate.enter(ONE, 2, 2.0))
    await turn()
    assert not small.done(), "nobody overtakes what is due earlier"
    large.cancel()
    await turn()
    assert small.done()
    let_in = asyncio.create_task(gate.enter(ONE, 5, 1.0))
    await turn()
    gate.leave(ONE, 8)
    let_in.cancel()  # let in, and cancelled before it heard of that
    await asyncio.gather(large, let_in, return_exceptions=True)
    gate.leave(ONE, 2)
    assert (len(gate), gate.texts_waiting) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(
    asks=st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.integers(1, 15)), max_size=40),
    leave_early=st.sets(st.integers(0, 39)),
)
async def test_never_more_than_allowed_and_everyone_gets_through(
    asks: list[tuple[object, int]], leave_early: set[int]
) -> None:
    gate, inside, through = Gate(10), {ONE: [0], TWO: [0]}, set[int]()

    async def come(number: int) -> None:
        module, texts = asks[number]
        assert module in (ONE, TWO)
        held = inside[ONE if module == ONE else TWO]
        await gate.enter(ONE if module == ONE else TWO, texts, float(number % 5))
        held.append(texts)
        assert sum(held) <= 10 or len(held) == 2
        through.add(number)
        try:
            await asyncio.sleep(0)
        finally:
            held.remove(texts)
            gate.leave(ONE if module == ONE else TWO, texts)

    tasks = [asyncio.create_task(come(number)) for number in range(len(asks))]
    await asyncio.sleep(0)
    for number in leave_early & set(range(len(asks))):
        tasks[number].cancel()
    async with asyncio.timeout(10):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [one for one in found if isinstance(one, AssertionError)]
    assert through >= set(range(len(asks))) - leave_early
    assert (len(gate), gate.texts_waiting) == (0, 0)
