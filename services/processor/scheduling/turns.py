"""Whose turn it is: deficit round robin with its rounds kept in a calendar. Pure.

Deficit round robin (Shreedhar & Varghese, SIGCOMM 1995) as Linux's fq_codel runs it (RFC 8290,
section 4.1): a tenant in turn sends while its deficit is above zero, and so may end a turn in debt
by less than one chunk; each round adds its quantum. Here no round is walked through: after a turn
it is known in how many rounds the debt is paid, and that is where the tenant's next place is, in a
heap. A visit thus always finds something to send or somebody to forget, and costs O(log tenants),
whatever weights and chunk sizes are.

Newcomers (RFC 8290, section 4.2, "new flows") have their first turn at the front of the round that
is going on; what a weight above 1 adds to it they send in their place. Anti-gaming as there: a
tenant that has nothing left keeps its place, and its debt, until the place comes up, and only then
becomes a stranger; so it cannot be new twice in a round. Tenants that have more waiting than a
batch holds have their turns at the end of each round, which changes nobody's share.

In any stretch of time, two tenants that always have chunks waiting get tokens per weight that
differ by at most two quanta and the largest chunk by the smaller weight.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from dataclasses import dataclass, field
from typing import TypeAlias

from services.processor.requests import Chunk
from smile.names import TenantId

STALE_MIN = 16  # entries of a heap that may be stale before anybody counts


class Place(enum.Enum):
    """Where a waiting chunk is."""

    QUEUED = enum.auto()
    PARKED = enum.auto()  # its module is not in memory
    HELD = enum.auto()  # its vPLM computes as many requests as it may
    GONE = enum.auto()


@dataclass(slots=True, eq=False)
class Entry:
    """A chunk and where it is. Heaps keep entries that have left until these come up."""

    chunk: Chunk
    place: Place = Place.QUEUED


Item: TypeAlias = tuple[float, int, Entry]


@dataclass(slots=True, eq=False)
class ByDue:
    """Entries, earliest due first, and in order of arrival where that is equal."""

    place: Place
    count: int = 0
    _heap: list[Item] = field(default_factory=list)

    def push(self, entry: Entry) -> None:
        entry.place = self.place
        self.count += 1
        heapq.heappush(self._heap, (entry.chunk.due, entry.chunk.number, entry))

    def first(self) -> Entry:
        """The entry in front; there must be one."""
        heap = self._heap
        while heap[0][2].place is not self.place:
            heapq.heappop(heap)
        return heap[0][2]

    def pop(self) -> Entry:
        """Take out the entry in front."""
        entry = self.first()
        heapq.heappop(self._heap)
        entry.place = Place.GONE
        self.count -= 1
        return entry

    def remove(self, entry: Entry) -> None:
        """Take out an entry of this heap: O(1), as the heap is swept once half of it is stale."""
        entry.place = Place.GONE
        self.count -= 1
        if len(self._heap) > 2 * self.count + STALE_MIN:
            self._heap = [item for item in self._heap if item[2].place is self.place]
            heapq.heapify(self._heap)


@dataclass(slots=True, eq=False)
class Turn:
    """One tenant's chunks, and what it may send.

    Attributes:
        deficit: Tokens it may still send; below zero it has sent as much ahead.
        rounds: Whose quanta are added when its place comes up.
        newcomer: It has its first turn before it.
        kept: What of its first quantum it may not send ahead of others, but in its place.
        tokens: Of its chunks.
        bulky: It has had more waiting than one batch holds, since it was last a stranger.
    """

    tenant: TenantId
    chunks: ByDue = field(default_factory=lambda: ByDue(Place.QUEUED))
    deficit: float = 0.0
    rounds: int = 1
    newcomer: bool = True
    kept: float = 0.0
    tokens: int = 0
    bulky: bool = False

    def pay(self, quantum: float, first_max: float) -> None:
        """Add the quanta of the rounds since the last turn, once."""
        self.deficit = min(self.deficit + self.rounds * quantum, quantum)
        if self.newcomer and self.rounds:
            self.kept = max(self.deficit - first_max, 0.0)
            self.deficit -= self.kept
        self.rounds = 0


class Lane:
    """The tenants that wait for one track.

    Every tenant has exactly one place in the calendar: (round, newcomers first and bulky ones last,
    order of arrival).

    Args:
        bulk_tokens: A tenant that has more waiting is bulky.
    """

    def __init__(self, bulk_tokens: float = math.inf) -> None:
        self.count = 0  # chunks
        self.guests = 0  # and those of tenants that are not bulky
        self.guest_at = -math.inf  # when one of those was last taken
        self._bulk_tokens = bulk_tokens
        self._turns: dict[TenantId, Turn] = {}
        self._calendar: list[tuple[int, int, int, Turn]] = []
        self._round = 0
        self._order = itertools.count()

    def __len__(self) -> int:
        """Tenants with a place, some of them perhaps with nothing to send any more."""
        return len(self._turns)

    def add(self, entry: Entry) -> None:
        tenant = entry.chunk.tenant
        turn = self._turns.get(tenant)
        if turn is None:
            turn = self._turns[tenant] = Turn(tenant)
            heapq.heappush(self._calendar, (self._round, 0, next(self._order), turn))
        turn.chunks.push(entry)
        self._count(turn, entry, 1)
        if turn.tokens > self._bulk_tokens and not turn.bulky:
            turn.bulky = True
            self.guests -= turn.chunks.count

    def remove(self, entry: Entry) -> None:
        """Take out an entry that waits in this lane."""
        turn = self._turns[entry.chunk.tenant]
        turn.chunks.remove(entry)
        self._count(turn, entry, -1)

    def pop(self, turn: Turn) -> Entry:
        """Take out a turn's next entry."""
        entry = turn.chunks.pop()
        self._count(turn, entry, -1)
        return entry

    def _count(self, turn: Turn, entry: Entry, by: int) -> None:
        """An entry of a turn came or left."""
        self.count += by
        self.guests += 0 if turn.bulky else by
        turn.tokens += by * entry.chunk.tokens

    def front(self) -> Turn | None:
        """Whose turn it is; those with nothing to send are forgotten on the way."""
        while self._calendar:
            self._round, _, _, turn = self._calendar[0]
            if turn.chunks.count:
                return turn
            heapq.heappop(self._calendar)
            del self._turns[turn.tenant]
        return None

    def end(self, turn: Turn, quantum: float) -> None:
        """The turn in front is over: its next place is in the round in which it may send again."""
        turn.deficit += turn.kept
        if turn.deficit <= 0 or not turn.kept or not turn.chunks.count:
            turn.deficit = min(turn.deficit, 0.0)
            turn.rounds = 1 + math.floor(-turn.deficit / quantum)
        turn.newcomer, turn.kept = False, 0.0
        place = (self._round + turn.rounds, 1 + turn.bulky, next(self._order), turn)
        heapq.heapreplace(self._calendar, place)
