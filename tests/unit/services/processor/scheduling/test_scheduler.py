"""Which chunks travel: every one once, no batch too large, nobody starved."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.processor.memory.residency import ModuleState
from services.processor.requests import Chunk, ModuleKey
from services.processor.scheduling.room import BatchLimits
from services.processor.scheduling.scheduler import Plan, Waiting, next_batch
from tests.unit.services.processor.conftest import Maker, key

LIMITS = BatchLimits(tokens_max=100, texts_max=8, quantum_tokens=25)


def ready(_: ModuleKey) -> ModuleState:
    return ModuleState.READY


def plan_of(waiting: Waiting, now: float = 0.0) -> Plan:
    return next_batch(waiting, ready, LIMITS, now)


def taken(plan: Plan) -> list[Chunk]:
    return [] if plan.batch is None else list(plan.batch.chunks)


def waiting_with(*chunks: Chunk) -> Waiting:
    waiting = Waiting()
    for chunk in chunks:
        waiting.add(chunk)
    return waiting


def test_nothing_waits() -> None:
    assert plan_of(Waiting()).empty


def test_earliest_due_first_inside_a_tenant(make: Maker) -> None:
    late, soon = make.chunk(tokens=60, deadline=9.0), make.chunk(tokens=60, deadline=3.0)
    waiting = waiting_with(late, soon)
    assert taken(plan_of(waiting)) == [soon]
    assert taken(plan_of(waiting)) == [late]


def test_equal_dues_in_order_of_arrival(make: Maker) -> None:
    chunks = [make.chunk() for _ in range(5)]
    assert taken(plan_of(waiting_with(*chunks))) == chunks


def test_chunks_of_one_module_lie_together(make: Maker) -> None:
    chunks = [make.chunk(module=name) for name in "abab"]
    batch = plan_of(waiting_with(*chunks)).batch
    assert batch is not None
    assert [part.module.digest for part in batch.parts] == ["a", "b"]
    assert [len(part.chunks) for part in batch.parts] == [2, 2]


def test_a_flooding_tenant_leaves_room_for_others(make: Maker) -> None:
    flood = [make.chunk("flood", 20, deadline=1.0) for _ in range(50)]
    guest = make.chunk("guest", 20, deadline=90.0)
    assert guest in taken(plan_of(waiting_with(*flood, guest)))


def test_a_text_larger_than_a_batch_travels_alone(make: Maker) -> None:
    huge, small = make.chunk("big", 500, deadline=1.0), make.chunk("small", 10)
    waiting = waiting_with(huge, small)
    batches = [taken(plan_of(waiting)), taken(plan_of(waiting))]
    assert sorted(map(len, batches)) == [1, 1]
    assert len(waiting) == 0


def test_backbones_take_turns(make: Maker) -> None:
    chunks = [make.chunk(backbone=name, tokens=90) for name in ("one", "one", "two", "two")]
    waiting = waiting_with(*chunks)
    turns = [plan_of(waiting).batch for _ in range(4)]
    assert [batch.backbone for batch in turns if batch] == ["one", "two", "one", "two"]


def test_expired_chunks_are_dropped_and_never_taken(make: Maker) -> None:
    dead, alive = make.chunk(deadline=1.0), make.chunk(deadline=3.0)
    plan = plan_of(waiting_with(dead, alive), now=2.0)
    assert plan.expired == [dead]
    assert taken(plan) == [alive]


def test_absent_modules_are_wanted_once_and_overtaken(make: Maker) -> None:
    cold = [make.chunk(module="cold", deadline=1.0) for _ in range(3)]
    warm = make.chunk(module="warm", deadline=50.0)
    waiting = waiting_with(*cold, warm)
    states = {key("cold"): ModuleState.ABSENT}
    plan = next_batch(waiting, lambda k: states.get(k, ModuleState.READY), LIMITS, 0.0)
    assert list(plan.wanted) == [key("cold")]
    assert taken(plan) == [warm]
    assert not waiting.ready
    assert len(waiting) == 3
    assert waiting.unpark(key("cold")) == cold
    assert taken(plan_of(waiting)) == cold


def test_parked_chunks_still_expire(make: Maker) -> None:
    cold = make.chunk(module="cold", deadline=1.0)
    waiting = waiting_with(cold)
    next_batch(waiting, lambda _: ModuleState.LOADING, LIMITS, 0.0)
    waiting.unpark(key("cold"))
    assert plan_of(waiting, now=2.0).expired == [cold]


def test_chunks_of_a_failed_module_are_told(make: Maker) -> None:
    chunk = make.chunk()
    plan = next_batch(waiting_with(chunk), lambda _: ModuleState.FAILED, LIMITS, 0.0)
    assert plan.failed == [chunk]
    assert plan.batch is None


@pytest.mark.parametrize("parked", [False, True])
def test_dropping_a_request_frees_all_its_room(make: Maker, parked: bool) -> None:
    mine = [make.chunk(request=7, texts=2) for _ in range(3)]
    waiting = waiting_with(*mine)
    if parked:
        next_batch(waiting, lambda _: ModuleState.LOADING, LIMITS, 0.0)
    assert sorted(chunk.number for chunk in waiting.drop(7)) == [c.number for c in mine]
    assert (waiting.texts, waiting.tokens, len(waiting)) == (0, 0, 0)
    assert waiting.unpark(key("m")) == []
    assert plan_of(waiting).empty


def test_a_tenant_that_left_comes_back_without_credit(make: Maker) -> None:
    waiting = waiting_with(make.chunk("a", 10))
    plan_of(waiting)
    for _ in range(4):
        waiting.add(make.chunk("b", 25))
    for _ in range(4):
        waiting.add(make.chunk("a", 25))
    assert Counter(chunk.tenant for chunk in taken(plan_of(waiting))) == {"a": 2, "b": 2}


CHUNKS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d"]),
        st.integers(1, 140),
        st.sampled_from(["warm", "cold", "bad"]),
        st.floats(0.0, 20.0),
        st.sampled_from(["one", "two"]),
        st.integers(1, 5),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(chunks=CHUNKS, drops=st.lists(st.integers(1, 60), max_size=6), load_at=st.integers(0, 30))
def test_every_chunk_ends_exactly_once(
    chunks: list[tuple[str, int, str, float, str, int]], drops: list[int], load_at: int
) -> None:
    make, waiting, ends = Maker(), Waiting(), Counter[int]()
    loaded = False

    def state(module: ModuleKey) -> ModuleState:
        if module.digest == "bad":
            return ModuleState.FAILED
        cold = module.digest == "cold" and not loaded
        return ModuleState.LOADING if cold else ModuleState.READY

    made = [
        make.chunk(tenant, tokens, module=module, deadline=due, backbone=lane, texts=min(n, tokens))
        for tenant, tokens, module, due, lane, n in chunks
    ]
    for turn in range(200):
        if made:
            waiting.add(made.pop(0))
        if turn == load_at + 60:
            loaded = True
            for tenant in "abcd":
                waiting.unpark(key("cold", tenant))
        if turn % 10 == 0 and drops:
            ends.update(chunk.number for chunk in waiting.drop(drops.pop()))
        plan = next_batch(waiting, state, LIMITS, now=turn / 20)
        out = taken(plan)
        ends.update(chunk.number for chunk in [*out, *plan.expired, *plan.failed])
        assert all(chunk.deadline > turn / 20 for chunk in out)
        assert len({chunk.backbone for chunk in out}) <= 1
        if len(out) > 1:
            assert sum(chunk.tokens for chunk in out) <= LIMITS.tokens_max
            assert sum(len(chunk.texts) for chunk in out) <= LIMITS.texts_max
    assert ends == Counter(range(1, len(chunks) + 1))
    assert (waiting.texts, waiting.tokens, len(waiting)) == (0, 0, 0)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 60), min_size=40, max_size=40), min_size=2, max_size=4),
    batches=st.integers(1, 12),
)
def test_no_backlogged_tenant_falls_behind_another(sizes: list[list[int]], batches: int) -> None:
    make, waiting = Maker(), Waiting()
    for number, tokens in enumerate(sizes):
        for count in tokens:
            waiting.add(make.chunk(f"t{number}", count))
    served: dict[str, int] = defaultdict(int)
    left = {f"t{number}": len(tokens) for number, tokens in enumerate(sizes)}
    for _ in range(batches):
        for chunk in taken(plan_of(waiting)):
            served[chunk.tenant] += chunk.tokens
            left[chunk.tenant] -= 1
        if min(left.values()) == 0:
            break
        totals = [served[tenant] for tenant in left]
        assert max(totals) - min(totals) <= 2 * LIMITS.quantum_tokens + 60
