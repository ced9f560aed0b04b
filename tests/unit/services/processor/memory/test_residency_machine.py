"""Residency under any order of calls, and how much work a call is."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.processor.memory.policy import LeastRecentlyUsed, Policy, S3Fifo
from services.processor.memory.residency import InPlace, Memory, ModuleState, Residency
from services.processor.memory.space import Space
from services.processor.requests import ModuleKey
from smile.errors import DataCorrupted, Overloaded
from tests.unit.services.processor.conftest import key

BUDGET = 100
DEVICE = 70


def memory(policy: Callable[[], Policy[ModuleKey]], budget: int, device: int) -> Memory[ModuleKey]:
    return Memory(
        host=Space(budget, slab_bytes=budget, granule=1),
        device=Space(device, slab_bytes=device, granule=1),
        host_policy=policy(),
        device_policy=policy(),
        mover=InPlace(),
        pinned_share=0.3,
    )


class Machine(RuleBasedStateMachine):
    """Any order of loads, uses, pins, failures and leavings."""

    names = st.sampled_from("abcdefgh").map(key)
    policy: Callable[[], Policy[ModuleKey]] = S3Fifo

    def __init__(self) -> None:
        super().__init__()
        self.residency = Residency(memory(type(self).policy, BUDGET, DEVICE), failed_s=1.0)
        self.sizes: dict[ModuleKey, int] = {}
        self.loading: set[ModuleKey] = set()
        self.placing: dict[ModuleKey, int] = {}
        self.held: list[ModuleKey] = []
        self.demanded: list[ModuleKey] = []
        self.pinned: set[ModuleKey] = set()
        self.now = 0.0

    def ready(self, name: ModuleKey) -> bool:
        return self.residency.state(name, self.now) is ModuleState.READY

    @rule(name=names)
    def begin(self, name: ModuleKey) -> None:
        absent = self.residency.state(name, self.now) is ModuleState.ABSENT
        assert self.residency.begin(name, self.now) == absent
        if absent:
            self.loading.add(name)

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), nbytes=st.integers(1, DEVICE), split=st.booleans())
    def reserve(self, data: st.DataObject, nbytes: int, split: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.loading, key=str)))
        sizes = (nbytes // 2, nbytes - nbytes // 2) if split and nbytes > 1 else (nbytes,)
        if self.residency.reserve(name, sizes) is not None:
            self.loading.remove(name)
            self.placing[name] = nbytes

    @precondition(lambda self: self.placing)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.placing, key=str)))
        self.residency.publish(name, name, self.now)
        self.sizes[name] = self.placing.pop(name)

    @precondition(lambda self: self.loading or self.placing)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted({*self.loading, *self.placing}, key=str)))
        self.loading.discard(name)
        self.placing.pop(name, None)
        self.residency.fail(name, DataCorrupted("bad"), self.now)

    @rule(name=names)
    def acquire(self, name: ModuleKey) -> None:
        if self.ready(name) and (module := self.residency.acquire(name, self.now)) is not None:
            assert module == name
            self.held.append(name)

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        self.residency.release(self.held.pop(0))

    @rule(name=names)
    def demand(self, name: ModuleKey) -> None:
        self.residency.demand(name, self.now)
        self.demanded.append(name)

    @precondition(lambda self: self.demanded)
    @rule()
    def undemand(self) -> None:
        self.residency.undemand(self.demanded.pop(0))

    @rule(name=names)
    def pin(self, name: ModuleKey) -> None:
        try:
            if self.residency.pin(name):
                self.pinned.add(name)
        except Overloaded:
            assert name not in self.pinned

    @rule(name=names)
    def unpin(self, name: ModuleKey) -> None:
        self.residency.unpin(name)
        self.pinned.discard(name)

    @rule(name=names)
    def unload(self, name: ModuleKey) -> None:
        needed = name in self.held or name in self.pinned or name in self.demanded
        assert self.residency.unload(name) <= (not needed)

    @rule(seconds=st.floats(0.0, 2.0))
    def sweep(self, seconds: float) -> None:
        self.now += seconds
        self.residency.sweep(self.now, idle_s=2.0)

    @invariant()
    def within_budget(self) -> None:
        residency = self.residency
        resident = {name for name in self.sizes if self.ready(name)}
        placed = sum(self.sizes[name] for name in resident) + sum(self.placing.values())
        assert residency.host.space.nbytes == placed <= BUDGET
        assert len(residency) == len(resident)
        hot = {name for name in resident if name in residency.device}
        assert len(residency.device) == len(hot), "who is on the device is in host memory, too"
        assert residency.device.space.nbytes == sum(self.sizes[name] for name in hot) <= DEVICE
        assert sum(self.sizes[name] for name in self.pinned) <= 0.3 * DEVICE

    @invariant()
    def in_use_is_resident(self) -> None:
        for name in (*self.held, *self.pinned):
            assert self.ready(name)
            assert name in self.residency.device

    def teardown(self) -> None:
        """With everyone gone, all memory is given back, and any module finds room."""
        while self.held:
            self.release()
        while self.demanded:
            self.undemand()
        for name in (*self.loading, *self.placing):
            self.residency.fail(name, DataCorrupted("bad"), self.now)
        for name in list(self.pinned):
            self.residency.unpin(name)
        assert self.residency.begin(key("last"), self.now)
        assert self.residency.reserve(key("last"), (DEVICE,)) is not None, "progress"
        self.residency.publish(key("last"), key("last"), self.now)
        self.residency.sweep(self.now + 3.0, idle_s=2.0)
        assert len(self.residency) == 0
        assert (self.residency.host.space.nbytes, self.residency.device.space.nbytes) == (0, 0)


class LruMachine(Machine):
    policy = LeastRecentlyUsed


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLruMachine = LruMachine.TestCase
TestLruMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def work(call: Callable[[], object]) -> int:
    """How many lines of Python `call` runs."""
    lines = 0

    def count(frame: object, event: str, arg: object) -> object:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)  # type: ignore[arg-type]
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("policy", [S3Fifo, LeastRecentlyUsed])
def test_a_module_costs_the_same_however_many_there_are(
    policy: Callable[[], Policy[ModuleKey]],
) -> None:
    """Counted in lines run, for the 10th module and the 10,500th; the last 1,000 evict."""
    count = 12_000
    residency = Residency(memory(policy, count - 1_000, count - 1_000), failed_s=1.0)

    def once(number: int) -> None:
        name = key(f"m{number}")
        residency.demand(name, 0.0)
        residency.begin(name, 0.0)
        residency.reserve(name, (1,))
        residency.publish(name, name, 0.0)
        residency.acquire(name, 0.0)
        residency.release(name)
        residency.undemand(name)

    costs = {}
    for number in range(count):
        if number in (10, 5_000, 10_500, count - 1):
            costs[number] = work(lambda number=number: once(number))  # type: ignore[misc]
        else:
            once(number)
    alike = [costs[number] for number in (10, 5_000, 10_500)]
    assert max(alike) <= 1.1 * min(alike), costs  # a few lines more where a slab begins
    assert costs[count - 1] <= 2 * costs[10], "one eviction from each tier more"
    assert residency.host.counters.evictions == 1_000


def test_what_is_held_is_met_once_and_not_at_every_eviction() -> None:
    count = 5_000
    residency = Residency(memory(LeastRecentlyUsed, count, count), failed_s=1.0)
    for number in range(count):
        name = key(f"m{number}")
        if number < count - 10:
            residency.demand(name, 0.0)  # loaded for a request that has not used it yet
        residency.begin(name, 0.0)
        residency.reserve(name, (1,))
        residency.publish(name, name, 0.0)

    def load(number: int) -> None:
        residency.begin(key(f"n{number}"), 0.0)
        assert residency.reserve(key(f"n{number}"), (1,)) is not None

    first = work(lambda: load(0))
    assert first > count, "it finds all of the others held"
    assert work(lambda: load(1)) < 400
