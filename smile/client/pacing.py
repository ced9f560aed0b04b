"""Coming back when the processor says so: what a client was refused for now is asked again later.

A refusal concerns more than the request that got it: a full queue everything its client asks, a
rate that was rented all of that vPLM that is as large. Until the time that it names nothing of the
kind is sent by anyone who shares the client and can wait, so refusals do not multiply. Whoever
waited comes back at a random moment within about as long again, and waits on if another one, who
was a little earlier, was refused once more.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from smile.errors import Overloaded

WAIT_S_FIRST = 0.05
WAIT_S_MAX = 30.0
OF_ONE_VPLM = "RATE_LIMITED"
HOPELESS = "DEADLINE_UNMEETABLE"  # waiting leaves even less time
REFUSALS_MAX = 1_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What was refused, until when, for how long, how often in a row, and how many texts."""

    error: Overloaded
    until: float
    wait_s: float
    in_a_row: int
    texts: int


class Pace:
    """When a client may ask again. For use on one event loop only.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusals: dict[str, _Refusal] = {}  # by vPLM; of all under an empty name

    async def ask(
        self, vplm: str, texts: int, call: Callable[[float], Awaitable[T]], timeout: float
    ) -> T:
        """What `call` gives, which is told how many seconds are left; sent when it may be, and at
        once where `timeout` seconds are too few to wait.

        Raises:
            Overloaded: it was refused, and what is left is too little to come back.
        """
        end = self._clock() + timeout
        while True:
            if self._refusals:
                await self._turn(vplm, texts, end)
            try:
                answer = await call(end - self._clock())
            except Overloaded as error:
                if (
                    error.reason == HOPELESS
                    or self._clock() + self._refused(vplm, texts, error) >= end
                ):
                    raise
            else:
                if self._refusals:
                    self._answered(vplm)
                return answer

    def forget(self, vplm: str) -> None:
        """The terms of a vPLM have changed."""
        self._refusals.pop(vplm, None)

    async def _turn(self, vplm: str, texts: int, end: float) -> None:
        while (refusal := self._refusal(vplm, texts)) is not None:
            now = self._clock()
            left_s = refusal.until - now
            if left_s <= 0 or now + left_s >= end:
                return
            later_s = min(refusal.wait_s, (end - now - left_s) / 2)
            await asyncio.sleep(left_s + random.uniform(0.0, later_s))  # noqa: S311 -- spreads load

    def _refusal(self, vplm: str, texts: int) -> _Refusal | None:
        """The refusal that lasts longest of those that so many texts of `vplm` would meet."""
        found = [self._refusals[key] for key in ("", vplm) if key in self._refusals]
        found = [one for one in found if one.error.reason != OF_ONE_VPLM or texts >= one.texts]
        return max(found, key=lambda refusal: refusal.until, default=None)

    def _refused(self, vplm: str, texts: int, error: Overloaded) -> float:
        """Remember a refusal; for how many seconds it lasts."""
        key = vplm if error.reason == OF_ONE_VPLM else ""
        now = self._clock()
        known = self._refusals.get(key)
        if known is not None and known.until > now:  # sent before that one was known
            return max(known.until - now, error.retry_after or 0.0)
        in_a_row = 1 if known is None else known.in_a_row + 1
        least_s = min(WAIT_S_FIRST * 2.0 ** min(in_a_row - 1, 16), WAIT_S_MAX)
        wait_s = max(error.retry_after or 0.0, least_s)
        if len(self._refusals) >= REFUSALS_MAX:
            self._refusals.clear()
        self._refusals[key] = _Refusal(error, now + wait_s, wait_s, in_a_row, texts)
        return wait_s

    def _answered(self, vplm: str) -> None:
        """Forget refusals that are over."""
        now = self._clock()
        for key in ("", vplm):
            if (known := self._refusals.get(key)) is not None and known.until <= now:
                del self._refusals[key]
