"""Which jobs of one worker process run at once: pure rules, and waiting by them.

Small jobs of one backbone share the process: its imports, its heap, the backbone. What is large,
and whatever died with a worker before, runs alone: so a job that kills its process takes others
down once at most, and they are not given up for its sake.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Passenger:
    """A job that wants to run.

    Attributes:
        backbone: That it trains on.
        shares: Whether it may run beside others.
    """

    backbone: str
    shares: bool

    def beside(self, other: Passenger) -> bool:
        """Whether both may run at once."""
        return self.shares and other.shares and self.backbone == other.backbone


class Berths:
    """The places of one process. For use on one event loop.

    Args:
        count: Jobs at once.
    """

    def __init__(self, count: int = 1) -> None:
        assert count >= 1, f"{count} places"
        self.count = count
        self._running: list[Passenger] = []
        self._waiting: deque[Passenger] = deque()
        self._changed = asyncio.Event()

    @property
    def taking(self) -> bool:
        """Whether one more job is worth claiming: nobody waits for others to end, or runs alone."""
        alone = any(not passenger.shares for passenger in self._running)
        return not self._waiting and not alone and len(self._running) < self.count

    async def until_taking(self) -> None:
        """Returns when one more job is worth claiming."""
        while not self.taking:
            await self._change()

    @asynccontextmanager
    async def taken(self, passenger: Passenger) -> AsyncIterator[None]:
        """A place as long as this is entered; whoever came first gets in first."""
        self._waiting.append(passenger)
        try:
            while self._waiting[0] is not passenger or not self._fits(passenger):
                await self._change()
        finally:
            self._waiting.remove(passenger)
            self._tell()
        self._running.append(passenger)
        try:
            yield
        finally:
            self._running.remove(passenger)
            self._tell()

    def _fits(self, passenger: Passenger) -> bool:
        if len(self._running) >= self.count:
            return False
        return all(passenger.beside(other) for other in self._running)

    async def _change(self) -> None:
        changed = self._changed
        await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
