"""The comparison of eviction policies counts right, on traces whose answer is known."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random

import pytest

from benchmarks.eviction import POLICIES, TRACES, Contender, World, replay
from benchmarks.eviction_peers import Sieve, Sketch, WTinyLfu


def small(requests: int, cache: int) -> World:
    """Modules of one byte."""
    return World(sizes=(1,) * 10_000, cache_bytes=cache, requests=requests)


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
def test_what_fits_always_hits(make: Callable[[], Contender]) -> None:
    rate = replay(small(1_000, 50), iter([*range(50)] * 20), make())
    assert (rate.by_count, rate.by_bytes) == (1.0, 1.0)


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
def test_what_never_comes_back_never_hits(make: Callable[[], Contender]) -> None:
    assert replay(small(1_000, 50), iter(range(1_000)), make()).by_count == 0.0


def test_bytes_and_counts_are_told_apart() -> None:
    world = World(sizes=(90, 1), cache_bytes=90, requests=20)
    rate = replay(world, iter([0] * 18 + [0, 1]), POLICIES["lru"]())
    assert rate.by_count == pytest.approx(17 / 18)
    assert rate.by_bytes == pytest.approx(17 * 90 / (17 * 90 + 1))


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_traces_are_long_enough_and_the_same_each_time(
    trace: Callable[[World, Random], object],
) -> None:
    world = World.of(0.1, 3_000)
    first = list(trace(world, Random(1)))  # type: ignore[call-overload]
    assert len(first) == 3_000
    assert first == list(trace(world, Random(1)))  # type: ignore[call-overload]
    assert all(0 <= key < len(world.sizes) for key in first)


def test_a_hot_set_survives_a_scan_in_the_peers() -> None:
    trace = [*range(40)] * 10 + [*range(1_000, 1_600)] + [*range(40)]
    for make in (Sieve, WTinyLfu):
        policy: Contender = make()
        world = small(len(trace), 60)
        tail = replay(world, iter(trace), policy).by_count
        assert tail > replay(world, iter(trace), POLICIES["lru"]()).by_count, make.__name__


def test_the_sketch_never_counts_too_few() -> None:
    sketch = Sketch()
    sketch.grow(500)
    seen: dict[Hashable, int] = {}
    chance = Random(2)
    for _ in range(2_000):
        key = chance.randrange(500)
        seen[key] = seen.get(key, 0) + 1
        sketch.add(key)
    assert all(sketch.count(key) >= min(count, 15) for key, count in seen.items())
