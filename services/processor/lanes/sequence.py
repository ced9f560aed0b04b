"""Sequential execution: one micro-batch at a time from look-up to answer, to measure overlap by.

The same requests go through the same code as in pipelined execution, at the same batch size; only,
a turnstile lets in a micro-batch's worth of them, and the next ones when all of those are answered.
Inside a micro-batch the stages follow one another: the batch is formed when every module it needs
is there, and `BATCHES_IN_FLIGHT` counts as 1. The modules of one micro-batch load beside each
other, as they do in pipelined execution: what is compared is the overlap between micro-batches.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from services.processor.scheduling.admission import Permit

RATIO_SMOOTHING = 0.05  # weight of the newest request in how tokens compare with their estimate


class Execution(enum.StrEnum):
    """Whether look-up, loading, preparing, computing and answering of several micro-batches
    overlap.
    """

    PIPELINED = "pipelined"
    SEQUENTIAL = "sequential"


@dataclass(slots=True, eq=False)
class _Turn:
    """A request that waits to be let in; its tokens are estimated."""

    texts: int
    tokens: int
    let_in: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class Turnstile:
    """Lets requests in, a micro-batch's worth at a time. For use on the event loop only.

    A request larger than a micro-batch goes in alone and makes several, one after another.

    Args:
        tokens_max: Tokens of a micro-batch.
        texts_max: Texts of a micro-batch.
        wait_s: How long a micro-batch that is not full waits for company.
        expect: Told how many requests a micro-batch has before they are let in.
        leave: Told of each of them that is over.
    """

    tokens_max: int
    texts_max: int
    wait_s: float
    expect: Callable[[int], None]
    leave: Callable[[], None]
    _waiting: deque[_Turn] = field(default_factory=deque)
    _inside: int = 0
    _ratio: float = 1.0  # exact tokens per estimated one
    _opening: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def turn(self, permit: Permit) -> AsyncIterator[None]:
        """Wait to be let in; leaving lets in the next micro-batch once everyone has left."""
        estimated = permit.tokens
        turn = _Turn(permit.texts, estimated, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._open_soon()
        try:
            await turn.let_in
            yield
            self._learn(estimated, permit.tokens)
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self.leave()
                self._inside -= 1
                self._open_soon()

    def _learn(self, estimated: int, exact: int) -> None:
        """A request's texts turned out to have `exact` tokens where `estimated` were counted."""
        self._ratio += RATIO_SMOOTHING * (exact / max(estimated, 1) - self._ratio)

    def _open_soon(self) -> None:
        """Let in a micro-batch if nobody is inside: at once if it is full, else in a moment."""
        if self._inside or not self._waiting:
            return
        if self._full():
            self._open()
        elif self._opening is None:
            loop = asyncio.get_running_loop()
            self._opening = loop.call_later(self.wait_s, self._open)

    def _open(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if self._inside or not self._waiting:
            return
        if not (group := self._group()):
            return
        self._inside = len(group)
        self.expect(len(group))
        for turn in group:
            turn.let_in.set_result(None)

    def _full(self) -> bool:
        waiting = sum(not turn.let_in.done() for turn in self._waiting)
        return len(self._members()) < waiting

    def _group(self) -> list[_Turn]:
        members = self._members()
        for turn in members:
            self._waiting.remove(turn)
        return members

    def _members(self) -> list[_Turn]:
        """Who waits first, as far as a micro-batch reaches."""
        members: list[_Turn] = []
        texts, tokens = 0, 0.0
        for turn in self._waiting:
            if turn.let_in.done():
                continue  # cancelled while it waited; it leaves by itself
            texts += turn.texts
            tokens += turn.tokens * self._ratio
            if members and (texts > self.texts_max or tokens > self.tokens_max):
                break
            members.append(turn)
        return members
