"""One tenant floods, others ask now and then: how many batches they wait, and what each gets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.processor.memory.residency import ModuleState
from services.processor.requests import Chunk, ModuleKey, Track
from services.processor.scheduling.latency import Curve, LatencyModel, LatencyTables
from services.processor.scheduling.room import SHARED_MORE, BatchLimits, Closed
from services.processor.scheduling.scheduler import Plan, Terms, Waiting, next_batch
from smile.names import tenant_id
from tests.unit.services.processor.conftest import Maker

TEXT, CHUNK, QUANTUM, GUESTS = 10, 40, 25, 20
LIKE_ANY = BatchLimits(
    tokens_max=300,
    texts_max=1_000,
    quantum_tokens=QUANTUM,
    seconds_max=0.1,
    shared_seconds_max=0.04,
)
APART = replace(LIKE_ANY, bulk_batches_max=3)
MODEL = LatencyModel(LatencyTables(Curve((10, 1_000), (0.010, 1.0))))  # 1 ms a token
TERMS = Terms(latency_of=lambda _: MODEL)


def ready(_: ModuleKey) -> ModuleState:
    return ModuleState.READY


class Scene:
    """A flood that never ends, and guests; counts batches instead of seconds."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits, self.make, self.now = limits, Maker(), 0.0
        self.waiting = Waiting(bulk_tokens=limits.tokens_max)
        self.got = Counter[str]()
        self.ages: dict[int, int] = {}  # guests' chunks: batches formed since they came
        self.waited = Counter[int]()
        self.refill()

    def refill(self) -> None:
        lane = self.waiting._lanes.get(Track("toy"))
        turn = lane._turns.get(tenant_id("flood")) if lane else None
        flood = turn.tokens if turn else 0
        for _ in range((1_000 - flood) // CHUNK):
            self.waiting.add(self.make.chunk("flood", CHUNK))

    def ask(self, tenant: str) -> None:
        chunk = self.make.chunk(tenant, TEXT)
        self.ages[chunk.number] = 0
        self.waiting.add(chunk)

    def form(self) -> Plan:
        """One batch more; those that give way to others make nobody wait."""
        self.now += 0.01
        plan = next_batch(self.waiting, ready, self.limits, self.now, TERMS)
        for chunk in taken(plan):
            self.got[chunk.tenant] += chunk.tokens
            if (age := self.ages.pop(chunk.number, None)) is not None:
                self.waited[age] += 1
        if plan.batch is not None and not plan.bulk:
            self.ages = {number: age + 1 for number, age in self.ages.items()}
        self.refill()
        return plan


def taken(plan: Plan) -> list[Chunk]:
    return [] if plan.batch is None else list(plan.batch.chunks)


@pytest.mark.parametrize("limits", [LIKE_ANY, APART])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_guests_within_their_share_wait_for_few_batches(limits: BatchLimits, seed: int) -> None:
    scene, random = Scene(limits), Random(seed)
    for _ in range(400):
        for _ in range(random.choice([0, 0, 1, 1, 2])):  # about a quarter of what a batch holds
            scene.ask(f"guest-{random.randrange(GUESTS)}")
        scene.form()
    waits = sorted(scene.waited.elements())
    assert waits[len(waits) * 9 // 10] == 0, "nine of ten ride in the very next batch"
    assert waits[len(waits) * 98 // 100] <= 3
    assert waits[-1] <= GUESTS, "a round has a turn of each"
    assert scene.got["flood"] > 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), limits=st.sampled_from([LIKE_ANY, APART]))
def test_what_guests_ride_in_is_hardly_longer_for_the_flood(seed: int, limits: BatchLimits) -> None:
    scene, random = Scene(limits), Random(seed)
    for _ in range(200):
        for _ in range(random.choice([0, 0, 1, 3])):
            scene.ask(f"guest-{random.randrange(20)}")
        plan = scene.form()
        own = sum(chunk.tokens for chunk in taken(plan) if chunk.tenant != "flood")
        flood = sum(chunk.tokens for chunk in taken(plan)) - own
        assert not (own and plan.bulk)
        if own and taken(plan)[0].tenant != "flood":
            assert flood <= SHARED_MORE * own
        elif own:  # the flood's turn, which it had to wait for
            assert flood <= QUANTUM + CHUNK


@pytest.mark.parametrize("bulk_full", [False, True])
@pytest.mark.parametrize("limits", [LIKE_ANY, APART])
def test_where_guests_ask_for_everything_the_flood_gets_its_share(
    limits: BatchLimits, bulk_full: bool
) -> None:
    scene = Scene(limits)
    guests = [f"guest-{number}" for number in range(4)]
    for _ in range(400):
        for guest in guests:  # never without, and never more than a batch holds
            for _ in range(20 - len(queued(scene.waiting, guest))):
                scene.ask(guest)
        scene.waiting.bulk_full = bulk_full and limits is APART
        scene.form()
    least = min(scene.got[guest] for guest in guests)
    assert abs(scene.got["flood"] - least) <= 3 * QUANTUM + CHUNK


def queued(waiting: Waiting, tenant: str) -> list[Chunk]:
    turn = waiting.lane(Track("toy"))._turns.get(tenant_id(tenant))
    return [] if turn is None else [item[2].chunk for item in turn.chunks._heap]


def test_bulk_alone_gives_way_and_is_as_long_as_any(make: Maker) -> None:
    scene = Scene(APART)
    scene.ask("guest")
    assert not scene.form().bulk
    plan = scene.form()
    assert plan.bulk
    assert (sum(chunk.tokens for chunk in taken(plan)), plan.closed) == (80, Closed.SECONDS)


def test_no_more_bulk_than_is_wanted_and_guests_all_the_same() -> None:
    scene = Scene(APART)
    scene.waiting.bulk_full = True
    assert scene.waiting.tracks() == ()
    assert scene.form().empty
    scene.ask("guest")
    assert scene.waiting.tracks() == (Track("toy"),)
    plan = scene.form()
    assert "guest" in [chunk.tenant for chunk in taken(plan)]
    assert not plan.bulk
    assert scene.waiting.tracks() == ()


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 90), st.booleans()), max_size=80
    ),
    drops=st.sets(st.integers(1, 80), max_size=20),
)
def test_guests_are_counted_whatever_comes_and_goes(
    steps: list[tuple[str, int, bool]], drops: set[int]
) -> None:
    make, waiting = Maker(), Waiting(bulk_tokens=100)
    for number, (tenant, tokens, form) in enumerate(steps):
        waiting.add(make.chunk(tenant, tokens))
        if number in drops:
            waiting.drop(number)
        if form:
            next_batch(waiting, ready, APART, number / 100, TERMS)
        for lane in waiting._lanes.values():
            turns = lane._turns.values()
            assert lane.guests == sum(turn.chunks.count for turn in turns if not turn.bulky)
            for turn in turns:
                queued = [i[2] for i in turn.chunks._heap if i[2].place is turn.chunks.place]
                assert turn.tokens == sum(entry.chunk.tokens for entry in queued)
