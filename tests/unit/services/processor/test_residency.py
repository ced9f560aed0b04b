"""Modules in memory: never over budget, never gone while in use."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.processor.requests import ModuleKey
from services.processor.residency import ModuleState, Residency
from smile.errors import DataCorrupted, FailedPrecondition
from tests.unit.services.processor.conftest import key

BUDGET = 100


def loaded(residency: Residency[str], name: str, nbytes: int = 40) -> bool:
    assert residency.begin(key(name), 0.0)
    return residency.admit(key(name), name, nbytes)


@pytest.fixture
def residency() -> Residency[str]:
    return Residency(BUDGET, failed_s=2.0)


def test_a_module_goes_from_absent_over_loading_to_ready(residency: Residency[str]) -> None:
    assert residency.state(key("a"), 0.0) is ModuleState.ABSENT
    assert residency.begin(key("a"), 0.0)
    assert residency.state(key("a"), 0.0) is ModuleState.LOADING
    assert not residency.begin(key("a"), 0.0), "one load at a time"
    assert residency.admit(key("a"), "a", 40)
    assert residency.state(key("a"), 0.0) is ModuleState.READY
    assert residency.acquire(key("a")) == "a"
    assert (residency.nbytes, residency.loads, len(residency)) == (40, 1, 1)


def test_the_least_recently_used_leaves(residency: Residency[str]) -> None:
    loaded(residency, "a")
    loaded(residency, "b")
    residency.acquire(key("a"))
    residency.release(key("a"))
    assert loaded(residency, "c")
    assert residency.state(key("b"), 0.0) is ModuleState.ABSENT
    assert residency.state(key("a"), 0.0) is ModuleState.READY
    assert residency.evictions == 1


def test_what_is_in_use_stays(residency: Residency[str]) -> None:
    loaded(residency, "a", 60)
    residency.acquire(key("a"))
    assert not loaded(residency, "b", 60)
    assert residency.state(key("b"), 0.0) is ModuleState.LOADING
    residency.release(key("a"))
    assert residency.admit(key("b"), "b", 60)


def test_what_was_loaded_for_a_request_stays_until_used(residency: Residency[str]) -> None:
    residency.demand(key("a"))
    loaded(residency, "a", 60)
    assert not loaded(residency, "b", 60)
    residency.acquire(key("a"))
    residency.release(key("a"))
    assert residency.admit(key("b"), "b", 60)


def test_what_nobody_waits_for_any_more_may_leave(residency: Residency[str]) -> None:
    residency.demand(key("a"))
    loaded(residency, "a", 60)
    residency.undemand(key("a"))
    assert loaded(residency, "b", 60)


def test_eviction_takes_nothing_where_it_would_not_do(residency: Residency[str]) -> None:
    loaded(residency, "a", 50)
    loaded(residency, "b", 50)
    residency.acquire(key("a"))
    assert not loaded(residency, "c", 60)
    assert residency.state(key("b"), 0.0) is ModuleState.READY
    assert residency.evictions == 0


def test_a_module_larger_than_the_budget_is_refused(residency: Residency[str]) -> None:
    residency.begin(key("a"), 0.0)
    with pytest.raises(FailedPrecondition, match=r"101 bytes.* 100") as caught:
        residency.admit(key("a"), "a", 101)
    assert caught.value.reason == "MODULE_TOO_LARGE"


def test_a_failure_is_remembered_for_a_while(residency: Residency[str]) -> None:
    error = DataCorrupted("bad")
    residency.begin(key("a"), 0.0)
    residency.fail(key("a"), error, 10.0)
    assert residency.state(key("a"), 11.9) is ModuleState.FAILED
    assert residency.error(key("a")) is error
    assert not residency.begin(key("a"), 11.9)
    assert residency.begin(key("a"), 12.0)
    assert residency.error(key("a")) is None


def test_hits_count_requests_that_found_their_module(residency: Residency[str]) -> None:
    residency.demand(key("a"))
    loaded(residency, "a")
    residency.demand(key("a"))
    assert (residency.hits, residency.loads) == (1, 1)


def test_tenants_do_not_share_equal_bytes() -> None:
    assert key("same", "acme") != key("same", "rival")


class Machine(RuleBasedStateMachine):
    """Any order of loads, uses, failures and leavings."""

    names = st.sampled_from("abcdefgh").map(key)

    def __init__(self) -> None:
        super().__init__()
        self.residency: Residency[ModuleKey] = Residency(BUDGET, failed_s=1.0)
        self.sizes: dict[ModuleKey, int] = {}
        self.loading: set[ModuleKey] = set()
        self.held: list[ModuleKey] = []
        self.demanded: list[ModuleKey] = []
        self.now = 0.0

    @rule(name=names)
    def begin(self, name: ModuleKey) -> None:
        absent = self.residency.state(name, self.now) is ModuleState.ABSENT
        assert self.residency.begin(name, self.now) == absent
        if absent:
            self.loading.add(name)

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), nbytes=st.integers(1, BUDGET))
    def admit(self, data: st.DataObject, nbytes: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.loading, key=str)))
        if self.residency.admit(name, name, nbytes):
            self.loading.remove(name)
            self.sizes[name] = nbytes

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.loading, key=str)))
        self.loading.remove(name)
        self.residency.fail(name, DataCorrupted("bad"), self.now)

    @rule(name=names)
    def acquire(self, name: ModuleKey) -> None:
        if self.residency.state(name, self.now) is ModuleState.READY:
            assert self.residency.acquire(name) == name
            self.held.append(name)

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        self.residency.release(self.held.pop(0))

    @rule(name=names)
    def demand(self, name: ModuleKey) -> None:
        self.residency.demand(name)
        self.demanded.append(name)

    @precondition(lambda self: self.demanded)
    @rule()
    def undemand(self) -> None:
        self.residency.undemand(self.demanded.pop(0))

    @rule(seconds=st.floats(0.0, 2.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def within_budget(self) -> None:
        resident = [
            name for name in self.sizes if self.residency.state(name, self.now) is ModuleState.READY
        ]
        assert self.residency.nbytes == sum(self.sizes[name] for name in resident) <= BUDGET
        assert len(self.residency) == len(resident)

    @invariant()
    def in_use_is_resident(self) -> None:
        for name in self.held:
            assert self.residency.state(name, self.now) is ModuleState.READY


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
