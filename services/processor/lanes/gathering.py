"""Who waits for which chunks: one future for all that are queued together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.processor.requests import Answered, Chunk, Failed, Outcome


def _nobody(_: Outcome) -> None:
    """Who wants to hear of all chunks together only."""


@dataclass(slots=True, eq=False)
class _Group:
    """Chunks queued together, and what has come of them."""

    left: int
    strict: bool
    done: asyncio.Future[None]
    heard: Callable[[Outcome], None]
    outcomes: dict[int, Outcome] = field(default_factory=dict)


class Gathering:
    """Chunks that are queued or computed, and who waits. For use on the event loop only."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}

    async def answers(
        self, chunks: Sequence[Chunk], put: Callable[[Sequence[Chunk]], None]
    ) -> list[Answered]:
        """Queue chunks and wait for all. Raises what the first to fail failed with."""
        outcomes = await self._wait(chunks, put, strict=True)
        return [outcome for outcome in outcomes if isinstance(outcome, Answered)]

    async def outcomes(
        self,
        chunks: Sequence[Chunk],
        put: Callable[[Sequence[Chunk]], None],
        heard: Callable[[Outcome], None],
    ) -> list[Outcome]:
        """Queue chunks and wait until something has come of each; `heard` is told at once."""
        return await self._wait(chunks, put, strict=False, heard=heard)

    def settle(self, outcome: Outcome) -> None:
        """Hand an outcome to who waits for it, if anyone still does."""
        group = self._groups.pop(outcome.chunk.number, None)
        if group is None or group.done.done():
            return
        if group.strict and isinstance(outcome, Failed):
            group.done.set_exception(outcome.error)
            return
        group.outcomes[outcome.chunk.number] = outcome
        group.left -= 1
        group.heard(outcome)
        if not group.left:
            group.done.set_result(None)

    async def _wait(
        self,
        chunks: Sequence[Chunk],
        put: Callable[[Sequence[Chunk]], None],
        *,
        strict: bool,
        heard: Callable[[Outcome], None] = _nobody,
    ) -> list[Outcome]:
        if not chunks:
            return []
        group = _Group(len(chunks), strict, asyncio.get_running_loop().create_future(), heard)
        for chunk in chunks:
            self._groups[chunk.number] = group
        try:
            put(chunks)
            await group.done
        finally:
            for chunk in chunks:
                self._groups.pop(chunk.number, None)
        return [group.outcomes[chunk.number] for chunk in chunks]
