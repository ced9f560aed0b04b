"""Eviction policies: who leaves, in what order, and that nobody is lost."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.processor.memory.policy import LeastRecentlyUsed, Policy, S3Fifo


def nobody(_: object) -> bool:
    return False


def hits(policy: Policy[int], trace: list[int], room: int) -> list[bool]:
    """Which uses of a trace found their key, in a cache of `room` keys of one byte."""
    inside: set[int] = set()
    found = []
    for key in trace:
        found.append(key in inside)
        if key in inside:
            policy.touch(key)
            continue
        if len(inside) == room:
            victim = policy.evict(nobody)
            assert victim is not None
            inside.remove(victim)
        policy.insert(key, 1)
        inside.add(key)
    return found


def test_lru_evicts_in_order_of_last_use() -> None:
    policy: LeastRecentlyUsed[str] = LeastRecentlyUsed()
    for key in "abc":
        policy.insert(key, 1)
    policy.touch("a")
    assert [policy.evict(nobody) for _ in range(4)] == ["b", "c", "a", None]


def test_s3_fifo_keeps_what_was_asked_for_twice_through_a_scan() -> None:
    """The point of it: a scan ten times the cache leaves the working set where it is."""
    working = list(range(50)) * 4
    scan = list(range(1_000, 2_000))
    after = list(range(50))
    trace = working + scan + after
    assert sum(hits(S3Fifo(), trace, 100)[-50:]) >= 45
    assert sum(hits(LeastRecentlyUsed(), trace, 100)[-50:]) == 0


def test_s3_fifo_survives_a_loop_larger_than_the_cache() -> None:
    loop = list(range(110)) * 20
    assert sum(hits(S3Fifo(), loop, 100)) > len(loop) / 2
    assert sum(hits(LeastRecentlyUsed(), loop, 100)) == 0


def test_s3_fifo_takes_back_at_once_whom_it_has_just_evicted() -> None:
    policy: S3Fifo[str] = S3Fifo()
    for key in "abcdefghij":
        policy.insert(key, 10)
    assert policy.evict(nobody) == "a"
    policy.insert("a", 10)
    policy.insert("k", 10)
    left = [policy.evict(nobody) for _ in range(11)]
    assert left[-1] == "a", "the only one in the main queue"


def test_s3_fifo_remembers_no_more_names_than_fit() -> None:
    policy: S3Fifo[int] = S3Fifo()
    for key in range(10_000):
        policy.insert(key, 1)
        if key >= 100:
            policy.evict(nobody)
    assert len(policy._ghosts) <= 101


@pytest.mark.parametrize("make", [LeastRecentlyUsed, S3Fifo])
def test_what_is_restored_is_next(make: Callable[[], Policy[int]]) -> None:
    policy = make()
    for key in range(10):
        policy.insert(key, 1)
    policy.touch(3)
    first = policy.evict(nobody)
    assert first is not None
    policy.restore(first, 1)
    assert policy.evict(nobody) == first


class Machine(RuleBasedStateMachine):
    """Any order of calls, against a set."""

    make: Callable[[], Policy[int]] = S3Fifo

    def __init__(self) -> None:
        super().__init__()
        self.policy: Policy[int] = type(self).make()
        self.inside: set[int] = set()
        self.held: set[int] = set()

    @rule(key=st.integers(0, 20), nbytes=st.integers(1, 100))
    def use(self, key: int, nbytes: int) -> None:
        if key in self.inside:
            self.policy.touch(key)
        else:
            self.policy.insert(key, nbytes)
            self.inside.add(key)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        self.held.add(data.draw(st.sampled_from(sorted(self.inside))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        self.held.remove(key)
        self.policy.free(key)

    @precondition(lambda self: self.inside - self.held)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.inside - self.held)))
        self.policy.remove(key)
        self.inside.remove(key)

    @rule(restored=st.booleans())
    def evict(self, restored: bool) -> None:
        key = self.policy.evict(self.held.__contains__)
        assert (key is None) == (not self.inside - self.held)
        if key is None:
            return
        assert key in self.inside - self.held
        if restored:
            self.policy.restore(key, 1)
        else:
            self.inside.remove(key)

    @invariant()
    def everyone_can_leave(self) -> None:
        assert self.held <= self.inside

    def teardown(self) -> None:
        for key in self.held:
            self.policy.free(key)
        left = {self.policy.evict(nobody) for _ in range(len(self.inside))}
        assert left == self.inside, "each leaves once"
        assert self.policy.evict(nobody) is None


class LruMachine(Machine):
    make = LeastRecentlyUsed


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLruMachine = LruMachine.TestCase
TestLruMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_eviction_touches_a_bounded_number_of_keys_on_average() -> None:
    chance = random.Random(1)
    asked = 0

    def held(_: int) -> bool:
        nonlocal asked
        asked += 1
        return False

    policy: S3Fifo[int] = S3Fifo()
    inside: set[int] = set()
    evictions = 0
    for _ in range(50_000):
        key = int(2_000 * chance.random() ** 2)
        if key in inside:
            policy.touch(key)
            continue
        policy.insert(key, 1)
        inside.add(key)
        if len(inside) > 500:
            victim = policy.evict(held)
            assert victim is not None
            inside.remove(victim)
            evictions += 1
    assert asked / evictions < 4
