"""Token buckets: never more than rate and burst allow, and the hint is the truth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.scheduling.rates import RateLimit, RateLimiter
from smile.errors import Overloaded

LIMIT = RateLimit(per_s=10.0, burst=5.0)


def test_a_burst_and_then_the_rate() -> None:
    limiter = RateLimiter[str]()
    taken = [number for number in range(300) if limiter.take("a", LIMIT, number / 100) == 0.0]
    assert taken[:5] == [0, 1, 2, 3, 4]
    assert len(taken) == pytest.approx(5 + 29, abs=1)


@given(
    gaps=st.lists(st.floats(0.0, 0.4), min_size=1, max_size=80),
    costs=st.lists(st.floats(0.1, 5.0), min_size=1, max_size=5),
)
def test_no_stretch_of_time_gets_more_than_rate_and_burst(
    gaps: list[float], costs: list[float]
) -> None:
    limiter, now, taken = RateLimiter[str](), 0.0, list[tuple[float, float]]()
    for number, gap in enumerate(gaps):
        now += gap
        cost = costs[number % len(costs)]
        if limiter.take("a", LIMIT, now, cost) == 0.0:
            taken.append((now, cost))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            got = sum(cost for _, cost in taken[first : last + 1])
            span_s = taken[last][0] - taken[first][0]
            assert got <= LIMIT.burst + LIMIT.per_s * span_s + 1e-6


@given(used=st.integers(5, 50), cost=st.floats(0.1, 20.0))
def test_the_hint_is_when_it_works_and_not_earlier(used: int, cost: float) -> None:
    limiter = RateLimiter[str]()
    for _ in range(used):
        limiter.take("a", LIMIT, 0.0)
    wait_s = limiter.take("a", LIMIT, 0.0, cost)
    assert wait_s > 0
    assert limiter.take("a", LIMIT, 0.9 * wait_s, cost) > 0
    assert limiter.take("a", LIMIT, wait_s + 1e-6, cost) == 0.0


def test_more_than_a_burst_goes_from_a_full_bucket_and_is_paid_for() -> None:
    limiter = RateLimiter[str]()
    assert limiter.take("a", LIMIT, 0.0, 50.0) == 0.0
    assert limiter.take("a", LIMIT, 0.0) == pytest.approx(4.6)


def test_keys_do_not_share_a_bucket() -> None:
    limiter = RateLimiter[str]()
    while limiter.take("a", LIMIT, 0.0) == 0.0:
        pass
    assert limiter.take("b", LIMIT, 0.0) == 0.0


def test_full_buckets_are_forgotten() -> None:
    limiter = RateLimiter[int]()
    for number in range(100_000):
        limiter.take(number, LIMIT, number / 1_000)
    assert len(limiter) < 1_000


def test_the_refusal_says_when_to_come_back() -> None:
    limiter = RateLimiter[str]()
    limiter.check("a", LIMIT, 0.0, 5.0)
    with pytest.raises(Overloaded, match="10 requests per second and 5 at once") as caught:
        limiter.check("a", LIMIT, 0.0)
    assert caught.value.reason == "RATE_LIMITED"
    assert caught.value.retry_after == pytest.approx(0.1)


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (1, 0), (float("inf"), 1), (-1, 1)])
def test_a_limit_is_above_zero(per_s: float, burst: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        RateLimit(per_s, burst)
