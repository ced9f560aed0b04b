"""Which chunks form the next batch. Pure: no clock, no lock, no I/O; times are arguments.

Between tenants: deficit round robin by weight, in tokens, newcomers first (`turns`). Inside a
tenant: earliest due first. Between tracks (backbones, exact or not): in turn, a batch each. A batch
ends where the next chunk would pass its tokens, its texts or its predicted seconds; `Plan.closed`
tells which.

How many seconds: large batches suit the device, small ones whoever comes next, who has to wait for
the batch that is being computed. So a batch may take `seconds_max`; but a tenant that has more
waiting than a batch holds (bulky) fills it up to `shared_seconds_max` only for as long as others,
its guests, have been coming, and in a batch that guests ride in makes it hardly longer than it is
(`room.SHARED_MORE`). Where batches of bulky tenants alone give way to all others while they are
computed (`bulk_batches_max`), nobody waits for those, and they need not be short. What guests bring
may always fill `seconds_max`: under a load of many small tenants batches grow with it. No limit
makes batches so small that the device spends itself on starting them (`LatencyModel.efficient_s`),
so a machine slower than the limits foresee loses latency alone.

A chunk whose module is not in memory is parked, its module reported as wanted, and others overtake
it; one whose vPLM computes as many requests as it may is held likewise. Both come back to their
places by due time, so nothing waits for ever. Chunks are dropped before they are computed if their
deadline has passed, or would have passed by the end of a batch with nothing else in it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from services.processor.memory.residency import ModuleState
from services.processor.requests import Batch, Chunk, ModuleKey, Track
from services.processor.scheduling.latency import LatencyModel, Tally
from services.processor.scheduling.room import BatchLimits, Closed, Room
from services.processor.scheduling.turns import ByDue, Entry, Lane, Place, Turn
from smile.names import TenantId, VplmName

WEIGHT_MIN, WEIGHT_MAX = 0.1, 100.0
GUESTS_FEW = 8  # chunks of theirs that wait; a batch holds these even where each is large
LATE_MARGIN = 0.8  # of the predicted seconds; a chunk with less time left than that is dropped

StateOf: TypeAlias = Callable[[ModuleKey], ModuleState]


def _weight_one(_: TenantId) -> float:
    return 1.0


def _unlimited(_: VplmName) -> int | None:
    return None


def _unmeasured(_: Track) -> LatencyModel | None:
    return None


@dataclass(frozen=True, slots=True)
class Terms:
    """What scheduling asks of others, looked up as it goes.

    Attributes:
        weight_of: A tenant's weight; kept within `WEIGHT_MIN` and `WEIGHT_MAX`.
        requests_max_of: Requests of a vPLM that may be computed at a time, 1 or more; None: any.
        latency_of: The measured model of a track; None: batches are bounded by tokens and texts.
    """

    weight_of: Callable[[TenantId], float] = _weight_one
    requests_max_of: Callable[[VplmName], int | None] = _unlimited
    latency_of: Callable[[Track], LatencyModel | None] = _unmeasured


DEFAULT = Terms()


@dataclass(slots=True)
class Plan:
    """What `next_batch` decided.

    Attributes:
        batch: What to compute; None if nothing can be.
        wanted: Modules that chunks were parked for, in the order they came up.
        expired: Chunks dropped because their deadline has passed.
        late: Chunks dropped because they would end after their deadline, computed at once or not.
        failed: Chunks dropped because their module could not be loaded.
        held: Chunks set aside because their vPLM computes as many requests as it may.
        closed: Why the batch has nothing more in it; None without a batch.
        predicted_s: What the batch will take; 0 where nothing was measured.
        table_s: What the tables alone say of that; likewise.
        bulk: Whether the batch is of bulky tenants alone, and is to give way to others.
    """

    batch: Batch | None = None
    wanted: dict[ModuleKey, None] = field(default_factory=dict)
    expired: list[Chunk] = field(default_factory=list)
    late: list[Chunk] = field(default_factory=list)
    failed: list[Chunk] = field(default_factory=list)
    held: int = 0
    closed: Closed | None = None
    predicted_s: float = 0.0
    table_s: float = 0.0
    bulk: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do and nobody to tell."""
        return self.batch is None and not (self.wanted or self.expired or self.late or self.failed)


class Waiting:
    """All chunks that wait: queued, parked or held. Every chunk is in one place.

    Args:
        bulk_tokens: A tenant that has more queued is bulky.
    """

    def __init__(self, bulk_tokens: float = math.inf) -> None:
        self._bulk_tokens = bulk_tokens
        self._lanes: OrderedDict[Track, Lane] = OrderedDict()
        self._parked: dict[ModuleKey, dict[int, Entry]] = {}
        self._held: dict[VplmName, ByDue] = {}
        self._flying: dict[VplmName, dict[int, int]] = {}  # chunks being computed, by request
        self._requests: dict[int, dict[int, Entry]] = {}
        self._count = 0
        self.bulk_full = False  # no batch of bulky tenants alone is wanted
        self.texts = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self._count

    @property
    def ready(self) -> bool:
        """Whether a chunk waits that is neither parked nor held, and that is wanted."""
        return bool(self.tracks() if self.bulk_full else self._lanes)

    def add(self, chunk: Chunk) -> None:
        """Let a new chunk wait."""
        entry = Entry(chunk)
        self._requests.setdefault(chunk.request, {})[chunk.number] = entry
        self._count += 1
        self.texts += len(chunk.texts)
        self.tokens += chunk.tokens
        self._queue(entry)

    def drop(self, request: int) -> list[Chunk]:
        """Take out all chunks of a request nobody waits for any more."""
        entries = self._requests.get(request)
        return self._remove_all(list(entries.values())) if entries else []

    def unpark(self, module: ModuleKey) -> list[Chunk]:
        """Put the chunks that waited for `module` back in their places."""
        entries = list(self._parked.pop(module, {}).values())
        for entry in entries:
            self._queue(entry)
        return [entry.chunk for entry in entries]

    def abandon(self, module: ModuleKey) -> list[Chunk]:
        """Take out the chunks that are parked for `module`."""
        return self._remove_all(list(self._parked.get(module, {}).values()))

    def clear(self) -> list[Chunk]:
        """Take out everything."""
        held = list(self._requests.values())
        return self._remove_all([entry for entries in held for entry in entries.values()])

    def done(self, batch: Batch, terms: Terms) -> None:
        """A batch has been computed: what its vPLMs held back may take its place."""
        for chunk in batch.chunks:
            if chunk.vplm is None or chunk.vplm not in self._flying:
                continue
            requests = self._flying[chunk.vplm]
            requests[chunk.request] -= 1
            if not requests[chunk.request]:
                del requests[chunk.request]
            if not requests:
                del self._flying[chunk.vplm]
            limit = terms.requests_max_of(chunk.vplm)
            self._unhold(chunk.vplm, 1 if limit is None else limit - len(requests))

    def tracks(self) -> tuple[Track, ...]:
        """Tracks with chunks that could travel, in turn."""
        if not self.bulk_full:
            return tuple(self._lanes)
        return tuple(track for track, lane in self._lanes.items() if lane.guests)

    def flying(self, vplm: VplmName) -> dict[int, int]:
        """Chunks of a vPLM that are being computed, by request."""
        return self._flying.get(vplm, {})

    def lane(self, track: Track) -> Lane:
        return self._lanes[track]

    def fly(self, lane: Lane, turn: Turn) -> Chunk:
        """Take a turn's next chunk out, to be computed."""
        chunk = self.leave(lane, turn)
        if chunk.vplm is not None:
            requests = self._flying.setdefault(chunk.vplm, {})
            requests[chunk.request] = requests.get(chunk.request, 0) + 1
        return chunk

    def leave(self, lane: Lane, turn: Turn) -> Chunk:
        """Take a turn's next chunk out for good."""
        entry = lane.pop(turn)
        self._forget(entry)
        return entry.chunk

    def skip(self, lane: Lane, turn: Turn) -> Chunk:
        """Take a turn's next chunk out, not to be computed."""
        chunk = self.leave(lane, turn)
        self._unhold(chunk.vplm, 1)
        return chunk

    def park(self, lane: Lane, turn: Turn) -> None:
        """A turn's next chunk waits for its module."""
        entry = lane.pop(turn)
        entry.place = Place.PARKED
        self._parked.setdefault(entry.chunk.module, {})[entry.chunk.number] = entry

    def hold(self, lane: Lane, turn: Turn, vplm: VplmName) -> None:
        """A turn's next chunk waits for others of its vPLM."""
        self._held.setdefault(vplm, ByDue(Place.HELD)).push(lane.pop(turn))

    def tidy(self, track: Track) -> None:
        """A batch was taken from this track's lane: the others come first now."""
        if self._lanes[track].count:
            self._lanes.move_to_end(track)
        else:
            del self._lanes[track]

    def _queue(self, entry: Entry) -> None:
        track = entry.chunk.track
        lane = self._lanes.get(track)
        if lane is None:
            lane = self._lanes[track] = Lane(self._bulk_tokens)
        lane.add(entry)

    def _remove_all(self, entries: list[Entry]) -> list[Chunk]:
        for entry in entries:
            self._remove(entry)
        return [entry.chunk for entry in entries]

    def _remove(self, entry: Entry) -> None:
        chunk, was_held = entry.chunk, entry.place is Place.HELD
        if entry.place is Place.PARKED:
            parked = self._parked[chunk.module]
            del parked[chunk.number]
            if not parked:
                del self._parked[chunk.module]
        elif was_held:
            assert chunk.vplm is not None, "only vPLMs are held"
            self._held[chunk.vplm].remove(entry)
            if not self._held[chunk.vplm].count:
                del self._held[chunk.vplm]
        else:
            lane = self._lanes[chunk.track]
            lane.remove(entry)
            if not lane.count:
                del self._lanes[chunk.track]
        self._forget(entry)
        if not was_held:
            self._unhold(chunk.vplm, 1)

    def _unhold(self, vplm: VplmName | None, count: int) -> None:
        """A chunk that came before those held is gone: put at least one back, so that whenever some
        are held, one is queued, parked or being computed that will do the same for them.
        """
        if vplm is None or (held := self._held.get(vplm)) is None:
            return
        for _ in range(min(max(count, 1), held.count)):
            self._queue(held.pop())
        if not held.count:
            del self._held[vplm]

    def _forget(self, entry: Entry) -> None:
        chunk = entry.chunk
        entry.place = Place.GONE
        waiting = self._requests[chunk.request]
        del waiting[chunk.number]
        if not waiting:
            del self._requests[chunk.request]
        self._count -= 1
        self.texts -= len(chunk.texts)
        self.tokens -= chunk.tokens


class _Forming:
    """One lane's next batch, while it is put together."""

    def __init__(self, waiting: Waiting, track: Track, question: _Question) -> None:
        self._waiting = waiting
        self._lane = waiting.lane(track)
        self._question = question
        self._model = question.terms.latency_of(track)
        if self._model is None:
            self._room = Room(question.limits, None)
        else:
            tally, least_s = Tally(self._model), self._model.efficient_s
            self._room = Room(question.limits, tally, least_s)
        guest_until = self._lane.guest_at + question.limits.shared_for_s
        self._guests = question.now < guest_until
        self.taken: list[Chunk] = []
        self.bulk = True

    @property
    def seconds(self) -> tuple[float, float]:
        """What the batch will take, and what the tables alone say of that."""
        tally = self._room.tally
        return (tally.seconds, tally.table_s) if tally else (0.0, 0.0)

    def fill(self) -> Closed:
        """Take chunks, turn by turn, until the batch is full or nothing is ready."""
        question, lane = self._question, self._lane
        while (turn := lane.front()) is not None:
            weight = min(max(question.terms.weight_of(turn.tenant), WEIGHT_MIN), WEIGHT_MAX)
            quantum = question.limits.quantum_tokens * weight
            turn.pay(quantum, question.limits.quantum_tokens)
            if self._stands_aside(turn):
                lane.end(turn, quantum)
                continue
            if (closed := self._turn(turn)) is not None:
                return closed  # the same tenant goes on in the next batch, behind newcomers
            lane.end(turn, quantum)
        return Closed.EMPTY

    def _stands_aside(self, turn: Turn) -> bool:
        """Whether it is a bulky tenant's, would begin a batch that guests then ride in, and these
        are few: theirs come first, and it has batches of its own. Where guests keep the device
        busy, it has its turn as they have theirs.
        """
        apart = self._question.limits.apart
        return apart and turn.bulky and not self.taken and 0 < self._lane.guests <= GUESTS_FEW

    def _turn(self, turn: Turn) -> Closed | None:
        """Take what one turn allows. Why the batch is full before the turn is over, if it is."""
        while turn.chunks.count and turn.deficit > 0:
            chunk = turn.chunks.first().chunk
            if self._set_aside(turn, chunk):
                continue
            shared = self._guests and turn.bulky
            if self.taken and (closed := self._room.full_for(chunk, shared=shared)) is not None:
                return closed
            turn.deficit -= chunk.tokens
            self._room.add(chunk, guest=not turn.bulky)
            self.taken.append(self._waiting.fly(self._lane, turn))
            self.bulk = self.bulk and turn.bulky
            if not turn.bulky:
                self._lane.guest_at = self._question.now
                self._guests = True
        return None

    def _set_aside(self, turn: Turn, chunk: Chunk) -> bool:
        """Whether the turn's next chunk cannot travel now; it has been dropped, parked or held."""
        waiting, lane, question = self._waiting, self._lane, self._question
        plan, now = question.plan, question.now
        if chunk.deadline <= now:
            plan.expired.append(waiting.skip(lane, turn))
        elif self._model is not None and self._late(chunk, self._model):
            self._model.doubt(now)
            plan.late.append(waiting.skip(lane, turn))
        elif (state := question.state_of(chunk.module)) is ModuleState.FAILED:
            plan.failed.append(waiting.skip(lane, turn))
        elif state is not ModuleState.READY:
            plan.wanted[chunk.module] = None
            waiting.park(lane, turn)
        elif chunk.vplm is not None and self._busy(chunk, chunk.vplm):
            plan.held += 1
            waiting.hold(lane, turn, chunk.vplm)
        else:
            return False
        return True

    def _late(self, chunk: Chunk, model: LatencyModel) -> bool:
        alone_s = model.seconds(chunk.tokens, len(chunk.texts), chunk.kind)
        return self._question.now + LATE_MARGIN * alone_s > chunk.deadline

    def _busy(self, chunk: Chunk, vplm: VplmName) -> bool:
        limit = self._question.terms.requests_max_of(vplm)
        if limit is None:
            return False
        flying = self._waiting.flying(vplm)
        return chunk.request not in flying and len(flying) >= max(limit, 1)


@dataclass(frozen=True, slots=True)
class _Question:
    """What `next_batch` was asked, and the plan that is to answer it."""

    plan: Plan
    state_of: StateOf
    limits: BatchLimits
    terms: Terms
    now: float


def next_batch(
    waiting: Waiting, state_of: StateOf, limits: BatchLimits, now: float, terms: Terms = DEFAULT
) -> Plan:
    """The next batch, taken out of `waiting`, with what was found on the way.

    Every chunk taken out is in exactly one of the plan's `batch`, `expired`, `late` and `failed`.
    Once the batch has been computed, `Waiting.done` must be told.
    """
    plan = Plan()
    question = _Question(plan, state_of, limits, terms, now)
    for track in waiting.tracks():
        forming = _Forming(waiting, track, question)
        closed = forming.fill()
        waiting.tidy(track)
        if forming.taken:
            plan.batch = Batch.of(track.backbone, forming.taken)
            plan.closed = closed
            plan.predicted_s, plan.table_s = forming.seconds
            plan.bulk = forming.bulk and limits.apart and not waiting.bulk_full
            break
    return plan


def enough(waiting: Waiting, limits: BatchLimits, terms: Terms = DEFAULT) -> bool:
    """Whether what waits may fill a batch, so that there is no point in waiting for company."""
    if waiting.tokens >= limits.tokens_max or waiting.texts >= limits.texts_max:
        return True
    seconds_max = min(limits.seconds_max, limits.shared_seconds_max)
    for track in waiting.tracks():
        model = terms.latency_of(track)
        if model is not None and model.bulk_s(waiting.tokens, waiting.texts) >= seconds_max:
            return True
    return False
