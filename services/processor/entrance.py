"""The way into the processor: room, a deadline, and a turn where requests take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType

from services.processor.lanes.sequence import Turnstile
from services.processor.scheduling.admission import Admission, Permit
from smile.errors import DeadlineExceeded
from smile.names import TenantId


@dataclass(frozen=True, slots=True)
class Ask:
    """How much a request is, and whose."""

    tenant: TenantId
    texts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Doors:
    """What every request passes.

    Attributes:
        turnstile: Of sequential execution; None lets everybody go at once.
        clock: Monotonic seconds.
        admitted: Told how many texts came in.
    """

    admission: Admission
    turnstile: Turnstile | None
    clock: Callable[[], float]
    admitted: Callable[[int], None]


class Entrance:
    """Room for one request while entered, until its deadline.

    Raises:
        As `Admission.admit`, on entry.
        DeadlineExceeded: the time ran out inside.
    """

    __slots__ = ("_arrived", "_ask", "_deadline", "_doors", "_permit", "_timeout", "_turn")

    def __init__(self, doors: Doors, ask: Ask, arrived: float, deadline: float) -> None:
        self._doors = doors
        self._ask = ask
        self._arrived = arrived
        self._deadline = deadline
        self._turn: AbstractAsyncContextManager[None] | None = None

    async def __aenter__(self) -> Permit:
        doors, ask = self._doors, self._ask
        left_s = self._deadline - doors.clock()
        self._permit = doors.admission.admit(ask.tenant, ask.texts, ask.tokens, left_s)
        doors.admitted(ask.texts)
        self._timeout = asyncio.timeout(max(left_s, 0.0))
        await self._timeout.__aenter__()
        if doors.turnstile is not None:
            await self._take_turn(doors.turnstile)
        return self._permit

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._turn is not None:
                await self._turn.__aexit__(kind, error, trace)
        finally:
            await self._leave(kind, error, trace)

    async def _take_turn(self, turnstile: Turnstile) -> None:
        turn = turnstile.turn(self._permit)
        try:
            await turn.__aenter__()
        except BaseException as error:
            await self._leave(type(error), error, error.__traceback__)
            raise
        self._turn = turn

    async def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
            if isinstance(error, TimeoutError):
                raise error
        except TimeoutError:
            waited = self._doors.clock() - self._arrived
            raise DeadlineExceeded(
                f"the deadline passed after {waited:.3f} s, before all texts were answered"
            ) from None
        finally:
            self._permit.__exit__()
