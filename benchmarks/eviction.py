"""Which eviction policy the processor's memory shall have: hit rates on traces of module uses.

    python -m benchmarks.eviction [--quick] [--record]

Modules have the sizes that the mix of kinds has on MiniLM, the cache holds a part of their bytes.
A miss admits the module, as a request that waits for it does; nothing is held. Everything is
seeded, so the figures are the same on every machine. The last line is JSON; its figures are
`{"hit_rates": {"trace@cache share": {policy: [by count, by bytes]}}, "means": {policy: [...]}}`.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Protocol

from benchmarks.eviction_peers import Sieve, WTinyLfu
from benchmarks.harness.command import Run, script
from benchmarks.harness.json_types import Figures
from services.processor.memory.policy import LeastRecentlyUsed, S3Fifo

MODULES = 10_000
REQUESTS = 200_000
REQUESTS_QUICK = 40_000
CACHE_SHARES = (0.1, 0.3)
SEED = 7
KIND_BYTES = ((0.4, 602_112), (0.3, 454_656), (0.2, 94_208), (0.1, 1_200_128))  # share, bytes


class Contender(Protocol):
    """As much of a policy as a trace needs."""

    def insert(self, key: int, nbytes: int) -> None: ...
    def touch(self, key: int) -> None: ...
    def evict(self, held: Callable[[int], bool], /) -> int | None: ...


POLICIES: Mapping[str, Callable[[], Contender]] = {
    "lru": LeastRecentlyUsed,
    "sieve": Sieve,
    "s3_fifo": S3Fifo,
    "w_tinylfu": WTinyLfu,
}


@dataclass(frozen=True, slots=True)
class HitRate:
    """Part of the requests, and of the bytes they asked for, that were in the cache."""

    by_count: float
    by_bytes: float


@dataclass(frozen=True, slots=True)
class World:
    """Modules by number with their sizes, and a cache for a part of them."""

    sizes: tuple[int, ...]
    cache_bytes: int
    requests: int

    @classmethod
    def of(cls, share: float, requests: int, seed: int = SEED) -> World:
        """A shuffled mix of kinds."""
        chance = random.Random(seed)  # noqa: S311
        weights = [weight for weight, _ in KIND_BYTES]
        sizes = chance.choices([nbytes for _, nbytes in KIND_BYTES], weights, k=MODULES)
        return cls(tuple(sizes), int(share * sum(sizes)), requests)

    @property
    def fit(self) -> int:
        """About how many modules the cache holds."""
        return self.cache_bytes * MODULES // sum(self.sizes)


def _zipf(exponent: float) -> Callable[[random.Random], int]:
    cumulated = list(accumulate(rank**-exponent for rank in range(1, MODULES + 1)))
    ranks = random.Random(SEED).sample(range(MODULES), MODULES)  # noqa: S311

    def draw(chance: random.Random) -> int:
        return ranks[bisect_left(cumulated, chance.random() * cumulated[-1])]

    return draw


def uniform(world: World, chance: random.Random) -> Iterator[int]:
    """Every module equally likely."""
    for _ in range(world.requests):
        yield chance.randrange(MODULES)


def zipf(exponent: float) -> Callable[[World, random.Random], Iterator[int]]:
    """The module of rank r with weight r ** -exponent."""

    def trace(world: World, chance: random.Random) -> Iterator[int]:
        for _ in range(world.requests):
            yield draw(chance)

    draw = _zipf(exponent)
    return trace


def zipf_with_scans(world: World, chance: random.Random) -> Iterator[int]:
    """Zipf 1.0, and now and then someone asks every module of a stretch twice the cache, once."""
    draw, at, pause = _zipf(1.0), 0, 4 * world.fit
    for number in range(world.requests):
        if number % (pause + 2 * world.fit) < pause:
            yield draw(chance)
        else:
            at = (at + 1) % MODULES
            yield at


def shifting(world: World, chance: random.Random) -> Iterator[int]:
    """Zipf 1.0 over names that move on by a tenth of the modules, ten times."""
    draw, every = _zipf(1.0), world.requests // 10
    for number in range(world.requests):
        yield (draw(chance) + number // every * MODULES // 10) % MODULES


def loop(world: World, _: random.Random) -> Iterator[int]:
    """The same modules in the same order, a tenth more than fit."""
    for number in range(world.requests):
        yield number % (world.fit * 11 // 10)


def bursts(world: World, chance: random.Random) -> Iterator[int]:
    """A module is asked for eight times within a moment, then not for long; Zipf 0.8 between."""
    draw, left, now = _zipf(0.8), 0, 0
    for _ in range(world.requests):
        if left == 0:
            left, now = 8, draw(chance)
        left -= 1
        yield now if chance.random() < 0.5 else draw(chance)


TRACES: Mapping[str, Callable[[World, random.Random], Iterator[int]]] = {
    "uniform": uniform,
    "zipf_0.8": zipf(0.8),
    "zipf_1.0": zipf(1.0),
    "zipf_1.2": zipf(1.2),
    "zipf_scans": zipf_with_scans,
    "shifting": shifting,
    "bursts": bursts,
    "loop": loop,
}


def replay(world: World, trace: Iterator[int], policy: Contender) -> HitRate:
    """Run a trace through a cache that starts empty; its first tenth warms it up."""
    inside: set[int] = set()
    nbytes = hits = hit_bytes = asked = asked_bytes = 0
    for number, key in enumerate(trace):
        size, counts = world.sizes[key], number >= world.requests // 10
        asked += counts
        asked_bytes += counts * size
        if key in inside:
            policy.touch(key)
            hits += counts
            hit_bytes += counts * size
            continue
        while nbytes + size > world.cache_bytes:
            victim = policy.evict(_nobody)
            assert victim is not None, "nothing is held"
            inside.remove(victim)
            nbytes -= world.sizes[victim]
        policy.insert(key, size)
        inside.add(key)
        nbytes += size
    return HitRate(hits / asked, hit_bytes / asked_bytes)


def compare(requests: int) -> dict[str, dict[str, HitRate]]:
    """Hit rates by trace (and cache size) and policy."""
    found: dict[str, dict[str, HitRate]] = {}
    for share in CACHE_SHARES:
        world = World.of(share, requests)
        for name, trace in TRACES.items():
            chances = {policy: random.Random(SEED) for policy in POLICIES}  # noqa: S311
            found[f"{name}@{share}"] = {
                policy: replay(world, trace(world, chances[policy]), make())
                for policy, make in POLICIES.items()
            }
    return found


def _nobody(_: int) -> bool:
    return False


def measure(run: Run) -> Figures:
    """Hit rates, and their means over all traces, as `[by count, by bytes]`."""
    found = compare(run.choose(REQUESTS, REQUESTS_QUICK))
    return {
        "hit_rates": {
            trace: {policy: _pair([rate]) for policy, rate in rates.items()}
            for trace, rates in found.items()
        },
        "means": {
            policy: _pair([rates[policy] for rates in found.values()]) for policy in POLICIES
        },
    }


def _pair(rates: Sequence[HitRate]) -> list[float]:
    return [fmean(rate.by_count for rate in rates), fmean(rate.by_bytes for rate in rates)]


if __name__ == "__main__":
    script("eviction", measure)
