"""Which chunks form the next batch. Pure: no clock, no lock, no I/O; times are arguments.

Between tenants: deficit round robin (Shreedhar & Varghese, SIGCOMM 1995), in tokens. A tenant's
turn adds a quantum to its deficit, and it may send chunks while the deficit covers them; what is
left is kept while it has chunks waiting. Any two tenants that always have chunks waiting thus
differ by at most two quanta and the largest chunk, however much either of them sends. Inside a
tenant: earliest due first. Between backbones: in turn, a batch each.

A chunk whose module is not in memory is parked, its module reported as wanted, and others overtake
it. It comes back to its place by due time when the module is there, so nothing waits for ever.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from services.processor.requests import Batch, Chunk, ModuleKey
from services.processor.residency import ModuleState
from smile.names import TenantId

StateOf: TypeAlias = Callable[[ModuleKey], ModuleState]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batch may hold, and how much of it a tenant's turn is worth.

    Attributes:
        tokens_max: Tokens of a batch; a single text beyond it travels alone.
        texts_max: Texts of a batch.
        quantum_tokens: What a tenant's turn adds to its deficit.
    """

    tokens_max: int
    texts_max: int
    quantum_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.quantum_tokens <= self.tokens_max or self.texts_max < 1:
            raise ValueError(f"expected 1 <= quantum <= tokens and 1 <= texts, got {self}")


@dataclass(slots=True)
class Plan:
    """What `next_batch` decided.

    Attributes:
        batch: What to compute; None if nothing can be.
        wanted: Modules that chunks were parked for, in the order they came up.
        expired: Chunks dropped because their deadline has passed.
        failed: Chunks dropped because their module could not be loaded.
    """

    batch: Batch | None = None
    wanted: dict[ModuleKey, None] = field(default_factory=dict)
    expired: list[Chunk] = field(default_factory=list)
    failed: list[Chunk] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return self.batch is None and not (self.wanted or self.expired or self.failed)


@dataclass(slots=True)
class _Turn:
    """One tenant's chunks, latest due first (so that the next one is taken off the end)."""

    chunks: list[Chunk] = field(default_factory=list)
    deficit: int = 0
    paid: bool = False  # this turn's quantum has been added


def _order(chunk: Chunk) -> tuple[float, int]:
    return (-chunk.due, -chunk.number)


@dataclass(slots=True)
class _Lane:
    """The tenants that wait for one backbone; whose turn it is stands first."""

    turns: OrderedDict[TenantId, _Turn] = field(default_factory=OrderedDict)

    def add(self, chunk: Chunk) -> None:
        turn = self.turns.setdefault(chunk.tenant, _Turn())
        bisect.insort(turn.chunks, chunk, key=_order)

    def remove(self, chunk: Chunk) -> bool:
        """Whether the chunk was here."""
        turn = self.turns.get(chunk.tenant)
        if turn is None:
            return False
        place = bisect.bisect_left(turn.chunks, _order(chunk), key=_order)
        if place == len(turn.chunks) or turn.chunks[place] is not chunk:
            return False
        del turn.chunks[place]
        if not turn.chunks:
            del self.turns[chunk.tenant]
        return True


class Waiting:
    """All chunks that wait, ready or parked, and whose turn it is. Every chunk is in one place."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        self._parked: dict[ModuleKey, dict[int, Chunk]] = {}
        self._requests: dict[int, dict[int, Chunk]] = {}
        self.texts = 0
        self.tokens = 0

    def __len__(self) -> int:
        return sum(len(held) for held in self._requests.values())

    @property
    def ready(self) -> bool:
        """Whether a chunk waits that is not parked."""
        return bool(self._lanes)

    def add(self, chunk: Chunk) -> None:
        """Let a new chunk wait."""
        self._requests.setdefault(chunk.request, {})[chunk.number] = chunk
        self.texts += len(chunk.texts)
        self.tokens += chunk.tokens
        self._lane(chunk.backbone).add(chunk)

    def drop(self, request: int) -> list[Chunk]:
        """Take out all chunks of a request nobody waits for any more."""
        chunks = list(self._requests.get(request, {}).values())
        for chunk in chunks:
            self._remove(chunk)
        return chunks

    def unpark(self, module: ModuleKey) -> list[Chunk]:
        """Put the chunks that waited for `module` back in their places."""
        chunks = list(self._parked.pop(module, {}).values())
        for chunk in chunks:
            self._lane(chunk.backbone).add(chunk)
        return chunks

    def abandon(self, module: ModuleKey) -> list[Chunk]:
        """Take out the chunks that are parked for `module`."""
        chunks = list(self._parked.get(module, {}).values())
        for chunk in chunks:
            self._remove(chunk)
        return chunks

    def clear(self) -> list[Chunk]:
        """Take out everything."""
        chunks = [chunk for held in self._requests.values() for chunk in held.values()]
        for chunk in chunks:
            self._remove(chunk)
        return chunks

    def backbones(self) -> tuple[str, ...]:
        """Backbones with chunks that are not parked, in turn."""
        return tuple(self._lanes)

    def _lane(self, backbone: str) -> _Lane:
        return self._lanes.setdefault(backbone, _Lane())

    def _remove(self, chunk: Chunk) -> None:
        lane = self._lanes.get(chunk.backbone)
        if lane is None or not lane.remove(chunk):
            parked = self._parked[chunk.module]
            del parked[chunk.number]
            if not parked:
                del self._parked[chunk.module]
        elif not lane.turns:
            del self._lanes[chunk.backbone]
        self._forget(chunk)

    def _forget(self, chunk: Chunk) -> None:
        held = self._requests[chunk.request]
        del held[chunk.number]
        if not held:
            del self._requests[chunk.request]
        self.texts -= len(chunk.texts)
        self.tokens -= chunk.tokens

    def fill(self, backbone: str, limits: BatchLimits, sort: _Sorter) -> list[Chunk]:
        """The next batch's chunks of one lane, taken out; those `sort` keeps out are parked or
        dropped.
        """
        lane = self._lanes.pop(backbone)
        taken = self._rounds(lane, limits, sort)
        if lane.turns:
            self._lanes[backbone] = lane  # behind the other backbones
        return taken

    def _rounds(self, lane: _Lane, limits: BatchLimits, sort: _Sorter) -> list[Chunk]:
        taken: list[Chunk] = []
        room = _Room(limits.tokens_max, limits.texts_max)
        while lane.turns:
            tenant, turn = next(iter(lane.turns.items()))
            if not turn.paid:
                turn.deficit += limits.quantum_tokens
                turn.paid = True
            full = self._turn(turn, room, taken, sort)
            if not turn.chunks:
                del lane.turns[tenant]
            elif full:
                break  # the same tenant goes on in the next batch
            else:
                turn.paid = False
                lane.turns.move_to_end(tenant)
        return taken

    def _turn(self, turn: _Turn, room: _Room, taken: list[Chunk], sort: _Sorter) -> bool:
        """Take what one turn allows. Whether the batch is full before the turn is over."""
        while turn.chunks:
            chunk = turn.chunks[-1]
            if sort.keeps_out(chunk):
                turn.chunks.pop()
                if not sort.parks(chunk):
                    self._forget(chunk)
                else:
                    self._parked.setdefault(chunk.module, {})[chunk.number] = chunk
                continue
            if chunk.tokens > turn.deficit:
                return False
            if taken and not room.fits(chunk):
                return True
            turn.deficit -= chunk.tokens
            room.take(chunk)
            taken.append(turn.chunks.pop())
            self._forget(chunk)
        return False


@dataclass(slots=True)
class _Room:
    """What is left of a batch."""

    tokens: int
    texts: int

    def fits(self, chunk: Chunk) -> bool:
        return chunk.tokens <= self.tokens and len(chunk.texts) <= self.texts

    def take(self, chunk: Chunk) -> None:
        self.tokens -= chunk.tokens
        self.texts -= len(chunk.texts)


@dataclass(slots=True)
class _Sorter:
    """Tells which chunks cannot travel now, and writes down why in a plan."""

    plan: Plan
    state_of: StateOf
    now: float

    def keeps_out(self, chunk: Chunk) -> bool:
        return chunk.deadline <= self.now or self.state_of(chunk.module) is not ModuleState.READY

    def parks(self, chunk: Chunk) -> bool:
        """Whether a chunk kept out shall wait for its module; else it is dropped."""
        if chunk.deadline <= self.now:
            self.plan.expired.append(chunk)
            return False
        if self.state_of(chunk.module) is ModuleState.FAILED:
            self.plan.failed.append(chunk)
            return False
        self.plan.wanted[chunk.module] = None
        return True


def next_batch(waiting: Waiting, state_of: StateOf, limits: BatchLimits, now: float) -> Plan:
    """The next batch, taken out of `waiting`, with what was found on the way.

    Every chunk taken out is in exactly one of the plan's `batch`, `expired` and `failed`.
    """
    plan = Plan()
    sort = _Sorter(plan, state_of, now)
    for backbone in waiting.backbones():
        if taken := waiting.fill(backbone, limits, sort):
            plan.batch = Batch.of(backbone, taken)
            break
    return plan
