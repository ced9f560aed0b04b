"""Who is asked, when, and what: seeded, so that every variant answers the same requests."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from demo.news import load_news

Times: TypeAlias = NDArray[np.float64]
Choices: TypeAlias = NDArray[np.int64]

WORDS_MIN = 4
ZIPF_EXPONENT = 1.0


@cache
def sentences() -> tuple[str, ...]:
    """Sentences of BBC news with their natural lengths, shuffled with a fixed seed.

    Raises:
        FailedPrecondition: the package with the corpus is not installed.
    """
    news = load_news()
    found = itertools.chain.from_iterable(
        sentences_of(document.text) for document in (*news.train, *news.held_out)
    )
    unique = list(dict.fromkeys(found))
    order = np.random.default_rng(0).permutation(len(unique))
    return tuple(unique[index] for index in order)


def texts(count: int, *, start: int = 0) -> tuple[str, ...]:
    """`count` sentences, from the `start`-th; the corpus begins again where it ends."""
    corpus = sentences()
    return tuple(corpus[(start + number) % len(corpus)] for number in range(count))


def sentences_of(text: str) -> list[str]:
    """The whole sentences of a text; what stands after the last full stop is cut off."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", text)
    return [part for part in parts if part[-1:] in ".!?" and len(part.split()) >= WORDS_MIN]


def uniform(count: int, members: int, *, seed: int) -> Choices:
    """[count] int64: each of `members` equally likely."""
    return np.random.default_rng(seed).integers(0, members, count)


def zipf(count: int, members: int, *, seed: int, exponent: float = ZIPF_EXPONENT) -> Choices:
    """[count] int64: the k-th of `members` with a probability of 1 / k ** exponent, normalised.

    Which member is the k-th is drawn from the seed too, so popularity and order of creation have
    nothing to do with each other.
    """
    random = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, members + 1) ** exponent
    ranks = random.choice(members, size=count, p=weights / weights.sum())
    return random.permutation(members)[ranks]


def poisson(rate_per_s: float, duration_s: float, *, seed: int) -> Times:
    """Ascending times in [0, duration_s) of a Poisson process."""
    random = np.random.default_rng(seed)
    count = random.poisson(rate_per_s * duration_s)
    return np.sort(random.uniform(0.0, duration_s, count))


@dataclass(frozen=True, slots=True)
class Burst:
    """Traffic that comes in bursts: for `on_s` in every `period_s` it is `factor` times as high.

    The mean rate stays what was asked for.
    """

    period_s: float = 2.0
    on_s: float = 0.2
    factor: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.on_s < self.period_s or self.factor < 1:
            raise ValueError(f"expected 0 < on < period and a factor of at least 1, got {self}")


def bursts(rate_per_s: float, duration_s: float, burst: Burst, *, seed: int) -> Times:
    """Ascending times in [0, duration_s) of a Poisson process whose rate follows `burst`."""
    share = burst.on_s / burst.period_s
    base = rate_per_s / (1 + share * (burst.factor - 1))
    peak = poisson(base * burst.factor, duration_s, seed=seed)
    random = np.random.default_rng(seed + 1)
    on = peak % burst.period_s < burst.on_s
    kept = on | (random.uniform(0.0, 1.0, len(peak)) < 1 / burst.factor)
    return peak[kept]


def once_a_period(
    members: int, period_s: float, duration_s: float, *, seed: int
) -> tuple[Times, Choices]:
    """Times, ascending, and who asks: each member once in every period, at a random time in it."""
    random = np.random.default_rng(seed)
    periods = int(np.ceil(duration_s / period_s))
    starts = np.repeat(np.arange(periods) * period_s, members)
    times = starts + random.uniform(0.0, period_s, members * periods)
    who = np.tile(np.arange(members), periods)
    order = np.argsort(times, kind="stable")
    order = order[times[order] < duration_s]
    return times[order], who[order]


def drawn(pool: Sequence[str], count: int, *, seed: int) -> tuple[str, ...]:
    """`count` of `pool`, drawn with replacement."""
    picks = np.random.default_rng(seed).integers(0, len(pool), count)
    return tuple(pool[index] for index in picks)
