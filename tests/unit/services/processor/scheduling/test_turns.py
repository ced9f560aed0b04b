"""Turns under adversaries: fair by weight, newcomers at once, nobody starved, no work wasted."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from services.processor.memory.residency import ModuleState
from services.processor.requests import Chunk, ModuleKey, Track
from services.processor.scheduling.latency import Curve, LatencyModel, LatencyTables
from services.processor.scheduling.room import BatchLimits, Closed
from services.processor.scheduling.scheduler import (
    WEIGHT_MAX,
    WEIGHT_MIN,
    Plan,
    Terms,
    Waiting,
    enough,
    next_batch,
)
from smile.names import TenantId, VplmName, tenant_id
from tests.unit.services.processor.conftest import Maker

QUANTUM, CHUNK_MAX = 25, 60
LIMITS = BatchLimits(tokens_max=100, texts_max=8, quantum_tokens=QUANTUM)
TABLES = LatencyTables(Curve((10, 1_000), (0.010, 1.0)))  # 1 ms a token


def ready(_: ModuleKey) -> ModuleState:
    return ModuleState.READY


def taken(plan: Plan) -> list[Chunk]:
    return [] if plan.batch is None else list(plan.batch.chunks)


def weighted(weights: dict[str, float]) -> Terms:
    return Terms(weight_of=lambda tenant: weights.get(tenant, 1.0))


def drain(
    waiting: Waiting, terms: Terms, batches: int, limits: BatchLimits = LIMITS
) -> list[list[Chunk]]:
    return [taken(next_batch(waiting, ready, limits, 0.0, terms)) for _ in range(batches)]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(
        st.lists(st.integers(1, CHUNK_MAX), min_size=60, max_size=60), min_size=2, max_size=4
    ),
    weights=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 1e9]), min_size=4, max_size=4),
    batches=st.integers(1, 25),
)
def test_backlogged_tenants_get_tokens_by_weight(
    sizes: list[list[int]], weights: list[float], batches: int
) -> None:
    make, waiting = Maker(), Waiting()
    left = {f"t{number}": len(tokens) for number, tokens in enumerate(sizes)}
    given_weights = dict(zip(left, weights, strict=False))
    for tenant, tokens in zip(left, sizes, strict=True):
        for count in tokens:
            waiting.add(make.chunk(tenant, count))
    served: dict[str, int] = defaultdict(int)
    kept = {t: min(max(given_weights[t], WEIGHT_MIN), WEIGHT_MAX) for t in left}
    for _ in range(batches):
        for chunk in taken(next_batch(waiting, ready, LIMITS, 0.0, weighted(given_weights))):
            served[chunk.tenant] += chunk.tokens
            left[chunk.tenant] -= 1
        if min(left.values()) == 0:
            break
        shares = [served[tenant] / kept[tenant] for tenant in left]
        bound = 2 * QUANTUM + CHUNK_MAX / min(kept.values())
        assert max(shares) - min(shares) <= bound + 1e-6


OTHERS = 6
WIDE = BatchLimits(tokens_max=100, texts_max=100, quantum_tokens=QUANTUM)
BATCH_MIN = LIMITS.tokens_max - CHUNK_MAX + 1  # of a batch that is full by tokens
FIRST_BATCHES = math.ceil(OTHERS * (QUANTUM + CHUNK_MAX) / BATCH_MIN) + 1
ROUNDS = math.ceil(CHUNK_MAX / (QUANTUM * 0.5)) + 1
ROUND_BATCHES = math.ceil(OTHERS * (QUANTUM * 4.0 + CHUNK_MAX) / BATCH_MIN)

ARRIVALS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(5, CHUNK_MAX), st.floats(0.0, 3.0)),
    max_size=15,
)


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    rounds=st.lists(ARRIVALS, min_size=1, max_size=12),
    weights=st.lists(st.sampled_from([0.1, 1.0, 4.0]), min_size=6, max_size=6),
)
def test_nobody_starves_whatever_the_others_send(
    rounds: list[list[tuple[str, int, float]]], weights: list[float]
) -> None:
    """The victim sends once. Others send for ever, with any weights, sizes and earlier dues, and
    come back after leaving. The victim's first chunk comes after the first turns of at most six
    other newcomers, its second once its debt is paid, which takes a known number of rounds.
    """
    make, waiting = Maker(), Waiting()
    terms = weighted({**dict(zip("abcdef", weights, strict=True)), "victim": 0.5})
    victims = [make.chunk("victim", CHUNK_MAX, deadline=1e6) for _ in range(2)]
    travelled: list[int] = []
    for number in range(400):
        for tenant, tokens, due in rounds[number % len(rounds)]:
            waiting.add(make.chunk(tenant, tokens, deadline=1e6, due=due))
        if number == 5:
            for victim in victims:
                waiting.add(victim)
        out = taken(next_batch(waiting, ready, WIDE, 0.0, terms))
        travelled += [number - 5 for chunk in out if chunk in victims]
        if len(travelled) == 2:
            break
    assert len(travelled) == 2
    first, second = travelled
    assert first <= FIRST_BATCHES
    assert second <= FIRST_BATCHES + ROUNDS * ROUND_BATCHES


def test_a_heavy_newcomer_does_not_keep_a_light_one_waiting(make: Maker) -> None:
    waiting, terms = Waiting(), weighted({"heavy": 100.0})
    for _ in range(100):
        waiting.add(make.chunk("heavy", 50))
    light = make.chunk("light", 50)
    waiting.add(light)
    assert light in drain(waiting, terms, 1)[0]
    rest = [chunk.tenant for batch in drain(waiting, terms, 40) for chunk in batch]
    assert rest == ["heavy"] * len(rest)


def test_a_far_deadline_is_overtaken_only_by_what_is_due_before_it(make: Maker) -> None:
    """Due times are at most `due_s_max` after arrival, so a tenant's own stream of urgent requests
    passes a patient one for no longer than that.
    """
    waiting, due_s_max = Waiting(), 3.0
    patient = make.chunk(tokens=50, deadline=1e6, due=0.0 + due_s_max)
    waiting.add(patient)
    for number in range(100):
        now = number / 10
        for _ in range(3):
            waiting.add(make.chunk(tokens=50, deadline=now + 0.5, due=now + 0.5))
        if patient in taken(next_batch(waiting, ready, LIMITS, now)):
            break
    assert now <= due_s_max + 0.1


@settings(max_examples=60, deadline=None)
@given(
    backlog=st.lists(st.integers(1, CHUNK_MAX), min_size=1, max_size=40),
    warm_up=st.integers(0, 30),
    tenants=st.integers(1, 20),
)
def test_a_newcomer_rides_in_the_very_next_batch(
    backlog: list[int], warm_up: int, tenants: int
) -> None:
    make, waiting = Maker(), Waiting()
    for number in range(tenants):
        for tokens in backlog:
            waiting.add(make.chunk(f"t{number}", tokens, deadline=1.0))
    while any(turn.newcomer for turn in waiting.lane(Track("toy"))._turns.values()):
        drain(waiting, Terms(), 1)
        if not len(waiting):
            return
    for _ in range(warm_up):
        waiting.add(make.chunk("t0", CHUNK_MAX, deadline=1.0))
        drain(waiting, Terms(), 1)
    guest = make.chunk("guest", CHUNK_MAX, deadline=90.0)
    waiting.add(guest)
    assert guest in drain(waiting, Terms(), 1)[0]


def test_leaving_and_coming_back_gains_nothing(make: Maker) -> None:
    """Sending one chunk at a time, each after the last was computed, gets no more than the share of
    those that queue.
    """
    waiting, served = Waiting(), {"sly": 0, "fair": 0, "other": 0}
    for _ in range(200):
        waiting.add(make.chunk("fair", 50))
        waiting.add(make.chunk("other", 50))
    for _ in range(40):
        if not any(chunk.tenant == "sly" for chunk in waiting_chunks(waiting)):
            waiting.add(make.chunk("sly", 50))
        for chunk in drain(waiting, Terms(), 1)[0]:
            served[chunk.tenant] += chunk.tokens
    assert served["sly"] <= served["fair"] + 2 * QUANTUM + 50


def waiting_chunks(waiting: Waiting) -> list[Chunk]:
    return [e.chunk for held in waiting._requests.values() for e in held.values()]


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 40), st.sampled_from([0.1, 100.0])),
        min_size=1,
        max_size=50,
    )
)
def test_work_is_conserved(chunks: list[tuple[str, int, float]]) -> None:
    """A batch ends early only where the next chunk would not have fitted."""
    make, waiting = Maker(), Waiting()
    terms = weighted({tenant: weight for tenant, _, weight in chunks})
    for tenant, tokens, _ in chunks:
        waiting.add(make.chunk(tenant, tokens))
    while len(waiting):
        plan = next_batch(waiting, ready, LIMITS, 0.0, terms)
        out = taken(plan)
        assert out
        if plan.closed is Closed.EMPTY:
            assert not len(waiting)
        elif plan.closed is Closed.TOKENS:
            assert sum(chunk.tokens for chunk in out) > LIMITS.tokens_max - 40
        else:
            assert plan.closed is Closed.TEXTS
            assert sum(len(chunk.texts) for chunk in out) == LIMITS.texts_max


class Timed:
    """Batches of at most 60 ms, 20 ms while newcomers are about."""

    limits = BatchLimits(
        tokens_max=1_000,
        texts_max=1_000,
        quantum_tokens=10,
        seconds_max=0.061,
        shared_seconds_max=0.021,
        shared_for_s=5.0,
    )

    def __init__(self) -> None:
        model = LatencyModel(TABLES)
        self.terms = Terms(latency_of=lambda _: model)

    def plan(self, waiting: Waiting, now: float = 0.0) -> Plan:
        return next_batch(waiting, ready, self.limits, now, self.terms)


def test_batches_are_bounded_by_predicted_seconds(make: Maker) -> None:
    waiting = Waiting()
    for _ in range(20):
        waiting.add(make.chunk(tokens=10))
    plan = Timed().plan(waiting)
    assert (len(taken(plan)), plan.closed) == (6, Closed.SECONDS)
    assert plan.predicted_s == pytest.approx(0.06)


def test_a_device_that_takes_long_for_little_gets_large_batches_all_the_same(make: Maker) -> None:
    """A second for anything up to 64 tokens: limits of milliseconds must not cost throughput."""
    model = LatencyModel(LatencyTables(Curve((10, 64, 640), (1.0, 1.0, 5.0))))
    terms, waiting = Terms(latency_of=lambda _: model), Waiting()
    for _ in range(40):
        waiting.add(make.chunk(tokens=10))
    plan = next_batch(waiting, ready, Timed.limits, 0.0, terms)
    assert (len(taken(plan)), plan.closed) == (6, Closed.SECONDS)
    assert len(taken(plan)) * 10 / plan.predicted_s >= 0.5 * 1 / model.tables.alpha.per_token * 0.9


def test_bulk_keeps_batches_short_while_guests_are_about(make: Maker) -> None:
    waiting, timed = Waiting(bulk_tokens=500), Timed()
    for _ in range(100):
        waiting.add(make.chunk("bulk", 10))
    assert timed.plan(waiting, 0.0).closed is Closed.SECONDS
    waiting.add(make.chunk("guest", 10))
    with_guest = timed.plan(waiting, 1.0)
    assert [chunk.tenant for chunk in taken(with_guest)] == ["guest"]
    assert with_guest.closed is Closed.SHARED
    assert len(taken(timed.plan(waiting, 5.9))) == 2
    assert len(taken(timed.plan(waiting, 6.1))) == 6


def test_many_newcomers_fill_a_whole_batch(make: Maker) -> None:
    waiting = Waiting()
    for number in range(20):
        waiting.add(make.chunk(f"t{number}", 10))
    plan = Timed().plan(waiting)
    assert (len(taken(plan)), plan.closed) == (6, Closed.SECONDS)


def test_a_tenant_alone_is_nobodys_guest(make: Maker) -> None:
    waiting, timed = Waiting(bulk_tokens=500), Timed()
    for number in range(5):
        for _ in range(12):
            waiting.add(make.chunk("bulk", 10))
        assert len(taken(timed.plan(waiting, float(number)))) == 6


def test_a_batch_that_could_not_end_in_time_is_not_begun(make: Maker) -> None:
    waiting = Waiting()
    late, soon = make.chunk(tokens=50, deadline=0.03), make.chunk(tokens=50, deadline=0.06)
    waiting.add(late)
    waiting.add(soon)
    plan = Timed().plan(waiting)
    assert plan.late == [late]
    assert taken(plan) == [soon]
    assert not plan.expired


def test_a_model_gone_wrong_does_not_refuse_for_ever(make: Maker) -> None:
    model = LatencyModel(LatencyTables(Curve((10,), (30.0,))))
    terms, waiting = Terms(latency_of=lambda _: model), Waiting()
    for now in range(30):
        waiting.add(make.chunk(tokens=10, deadline=now + 1.0))
        if taken(next_batch(waiting, ready, LIMITS, float(now), terms)):
            break
    else:
        raise AssertionError("everything was refused")


def test_waiting_for_company_ends_with_a_full_batch(make: Maker) -> None:
    waiting, timed = Waiting(), Timed()
    waiting.add(make.chunk(tokens=10))
    assert not enough(waiting, timed.limits, timed.terms)
    waiting.add(make.chunk(tokens=15))
    assert enough(waiting, timed.limits, timed.terms)
    assert not enough(waiting, timed.limits)


ONE, TWO = (VplmName(tenant_id("acme"), name) for name in ("one", "two"))


def limited(limit: int) -> Terms:
    return Terms(requests_max_of=lambda vplm: limit if vplm == ONE else None)


def test_a_vplm_computes_as_many_requests_as_it_may(make: Maker) -> None:
    waiting, terms = Waiting(), limited(2)
    mine = [make.chunk(vplm=ONE, tokens=5) for _ in range(5)]
    other = make.chunk(vplm=TWO, tokens=5)
    for chunk in [*mine, other]:
        waiting.add(chunk)
    plan = next_batch(waiting, ready, LIMITS, 0.0, terms)
    assert taken(plan) == [*mine[:2], other]
    assert plan.held == 3
    assert next_batch(waiting, ready, LIMITS, 0.0, terms).empty
    assert not waiting.ready
    assert plan.batch is not None
    waiting.done(plan.batch, terms)
    assert taken(next_batch(waiting, ready, LIMITS, 0.0, terms)) == mine[2:4]


def test_chunks_of_one_request_count_once(make: Maker) -> None:
    waiting, terms = Waiting(), limited(1)
    mine = [make.chunk(vplm=ONE, tokens=5, request=7) for _ in range(3)]
    for chunk in mine:
        waiting.add(chunk)
    assert taken(next_batch(waiting, ready, LIMITS, 0.0, terms)) == mine


@settings(max_examples=80, deadline=None)
@given(
    chunks=st.lists(
        st.tuples(st.sampled_from([ONE, TWO]), st.integers(1, 60), st.floats(0.0, 30.0)),
        max_size=40,
    ),
    limits=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    drops=st.sets(st.integers(1, 40), max_size=8),
)
def test_held_chunks_all_travel_and_never_too_many(
    chunks: Sequence[tuple[VplmName, int, float]], limits: list[int], drops: set[int]
) -> None:
    make, waiting, ended = Maker(), Waiting(), set[int]()
    for vplm, tokens, deadline in chunks:
        waiting.add(make.chunk(vplm=vplm, tokens=tokens, deadline=deadline))
    flying: list[Plan] = []
    for turn in range(300):
        terms = limited(limits[turn % len(limits)])
        plan = next_batch(waiting, ready, LIMITS, turn / 20, terms)
        ended |= {chunk.number for chunk in [*taken(plan), *plan.expired]}
        if plan.batch:
            flying.append(plan)
        now = [c for each in flying for c in taken(each) if c.vplm == ONE]
        assert len({chunk.request for chunk in now}) <= max(limits)
        if len(flying) == 2 or (flying and turn % 3 == 0):
            done = flying.pop(0)
            assert done.batch is not None
            waiting.done(done.batch, terms)
        if turn in drops:
            ended |= {chunk.number for chunk in waiting.drop(turn)}
    assert ended == set(range(1, len(chunks) + 1))
    assert (waiting.texts, waiting.tokens, len(waiting)) == (0, 0, 0)


class Counting:
    """Counts what scheduling asks, which is what it does per chunk and per turn."""

    def __init__(self) -> None:
        self.asked = 0

    def weight(self, _: TenantId) -> float:
        self.asked += 1
        return 0.1  # ten rounds a chunk, were rounds walked through

    def state(self, _: ModuleKey) -> ModuleState:
        self.asked += 1
        return ModuleState.READY


def test_a_plan_costs_its_batch_not_the_queue(make: Maker) -> None:
    waiting, counting = Waiting(), Counting()
    terms = Terms(weight_of=counting.weight)
    for number in range(20_000):
        waiting.add(make.chunk(f"t{number % 5_000}", CHUNK_MAX))
    limits = BatchLimits(tokens_max=600, texts_max=100, quantum_tokens=QUANTUM)
    for _ in range(200):
        before = counting.asked
        out = taken(next_batch(waiting, counting.state, limits, 0.0, terms))
        assert len(out) == 10
        assert counting.asked - before <= 2 * (len(out) + 1)


def test_dropping_everything_leaves_nothing_behind(make: Maker) -> None:
    waiting = Waiting()
    for number in range(2_000):
        waiting.add(make.chunk(f"t{number % 10}", request=number % 100))
    for request in range(99):
        waiting.drop(request)
    lane = waiting.lane(Track("toy"))
    stale = sum(len(turn.chunks._heap) for turn in lane._turns.values())
    assert stale <= 2 * len(waiting) + 16 * len(lane)
    assert len(drain(waiting, Terms(), 1)[0]) == LIMITS.texts_max
