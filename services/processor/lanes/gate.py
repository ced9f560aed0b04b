"""How many texts of a vPLM are tokenised, queued and computed at a time; the others wait as text.

A tenant may have tens of thousands of texts inside. Tokenised as they come, they would take the
processor from what is being computed, and memory for as long as they wait; so each of its vPLMs has
about as many on their way as streams can hold, earliest due first, and is tokenised as it is
computed. By vPLM, as one whose module is still being loaded must not keep the others waiting.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field

from services.processor.requests import ModuleKey


@dataclass(slots=True)
class _Door:
    """One module's: what is on its way, and who waits for that, earliest due first."""

    inside: int = 0
    waiting: list[tuple[float, int, int, asyncio.Future[None]]] = field(default_factory=list)


class Gate:
    """Lets every module's texts through as there is room. For use on the event loop only.

    Args:
        texts_max: Texts of one module on their way; more than these in one go travel alone.
    """

    def __init__(self, texts_max: int) -> None:
        self._texts_max = texts_max
        self._doors: dict[ModuleKey, _Door] = {}
        self._numbers = itertools.count()
        self.texts_waiting = 0  # of all modules

    def __len__(self) -> int:
        """Modules with texts on their way."""
        return len(self._doors)

    async def enter(self, module: ModuleKey, texts: int, due: float) -> None:
        """Wait until so many texts may be on their way; `leave` must follow, unless this raises."""
        door = self._doors.setdefault(module, _Door())
        if not door.waiting and self._fits(door, texts):
            door.inside += texts
            return
        let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(door.waiting, (due, next(self._numbers), texts, let_in))
        self.texts_waiting += texts
        try:
            await let_in
        except asyncio.CancelledError:
            if let_in.cancelled():
                self.texts_waiting -= texts
                self.leave(module, 0)  # what came after it may fit
            else:
                self.leave(module, texts)
            raise

    def leave(self, module: ModuleKey, texts: int) -> None:
        """So many texts of a module are through."""
        door = self._doors[module]
        door.inside -= texts
        while door.waiting:
            _, _, more, let_in = door.waiting[0]
            if not let_in.cancelled():
                if not self._fits(door, more):
                    break
                door.inside += more
                self.texts_waiting -= more
                let_in.set_result(None)
            heapq.heappop(door.waiting)
        if not door.inside and not door.waiting:
            del self._doors[module]

    def _fits(self, door: _Door, texts: int) -> bool:
        return not door.inside or door.inside + texts <= self._texts_max
