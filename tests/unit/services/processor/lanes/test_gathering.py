"""Waiting for chunks that were queued together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from services.processor.lanes.gathering import Gathering
from services.processor.requests import Answered, Chunk, Failed, Outcome, Ride
from smile.errors import DataCorrupted, Unavailable
from tests.unit.services.processor.conftest import Maker

pytestmark = pytest.mark.asyncio


def answered(chunk: Chunk) -> Answered:
    outputs = tuple(np.zeros(1, dtype=np.float32) for _ in chunk.texts)
    return Answered(chunk, outputs, Ride(1, 0.0, 0.0, 1, 1))


def nowhere(_: Sequence[Chunk]) -> None:
    """Chunks whose outcomes the test makes up."""


async def test_answers_come_in_the_order_of_their_chunks(make: Maker) -> None:
    gathering, chunks = Gathering(), [make.chunk() for _ in range(3)]
    waiting = asyncio.create_task(gathering.answers(chunks, nowhere))
    await asyncio.sleep(0)
    for chunk in reversed(chunks):
        assert not waiting.done()
        gathering.settle(answered(chunk))
    assert [answer.chunk for answer in await waiting] == chunks


async def test_the_first_failure_ends_a_request(make: Maker) -> None:
    gathering, chunks = Gathering(), [make.chunk() for _ in range(3)]
    waiting = asyncio.create_task(gathering.answers(chunks, nowhere))
    await asyncio.sleep(0)
    gathering.settle(Failed(chunks[1], DataCorrupted("bad")))
    with pytest.raises(DataCorrupted, match="bad"):
        await waiting
    for chunk in chunks:
        gathering.settle(answered(chunk))  # nobody waits any more
    assert not gathering._groups


async def test_outcomes_keep_failures_apart(make: Maker) -> None:
    gathering, chunks = Gathering(), [make.chunk() for _ in range(2)]
    heard: list[Outcome] = []
    waiting = asyncio.create_task(gathering.outcomes(chunks, nowhere, heard.append))
    await asyncio.sleep(0)
    failed = Failed(chunks[0], DataCorrupted("bad"))
    gathering.settle(failed)
    assert heard == [failed], "at once"
    gathering.settle(answered(chunks[1]))
    assert [one.chunk for one in heard] == chunks
    first, second = await waiting
    assert first is failed
    assert isinstance(second, Answered)
    assert await gathering.outcomes([], nowhere, heard.append) == []


async def test_a_queue_that_refuses_leaves_nothing_behind(make: Maker) -> None:
    def refuse(_: Sequence[Chunk]) -> None:
        raise Unavailable("stopping")

    gathering = Gathering()
    with pytest.raises(Unavailable):
        await gathering.answers([make.chunk()], refuse)
    assert not gathering._groups
