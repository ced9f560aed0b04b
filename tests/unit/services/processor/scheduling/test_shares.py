"""What goes before a tenant's work: never more than the exact sum, and not much less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.scheduling.shares import INSIDE_MIN, FairShares
from smile.names import tenant_id

ACME = tenant_id("acme")
OTHERS = st.dictionaries(
    st.integers(0, 30), st.tuples(st.integers(1, 10**7), st.floats(0.1, 100.0)), max_size=30
)


@given(others=OTHERS, held=st.integers(0, 10**6), tokens=st.integers(1, 10**6))
def test_the_buckets_tell_almost_the_exact_sum(
    others: dict[int, tuple[int, float]], held: int, tokens: int
) -> None:
    shares = FairShares()
    for number, (count, weight) in others.items():
        shares.set(tenant_id(f"t{number}"), count, weight)
    shares.set(ACME, held, 2.0)
    own = held + tokens
    exact = own + sum(min(count, own / 2.0 * weight) for count, weight in others.values())
    for _ in range(2):  # asking changes nothing
        found = shares.before(ACME, tokens, 2.0)
        assert INSIDE_MIN * exact - 1e-6 * exact <= found <= exact * (1 + 1e-9)


@given(changes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5_000)), max_size=60))
def test_nothing_is_left_once_all_have_gone(changes: list[tuple[int, int]]) -> None:
    shares = FairShares()
    for number, count in changes:
        shares.set(tenant_id(f"t{number}"), count, 0.3)
    for number in range(5):
        shares.set(tenant_id(f"t{number}"), 0, 0.3)
    assert shares.before(ACME, 7, 1.0) == 7


@pytest.mark.parametrize(("tokens", "others"), [(100, 0), (150, 50), (1_000, 500)])
def test_a_first_turn_waits_for_nobody(tokens: int, others: int) -> None:
    shares = FairShares(slack_tokens=100)
    shares.set(tenant_id("rival"), 500, 1.0)
    found = shares.before(ACME, tokens, 1.0) - tokens
    assert INSIDE_MIN * others - 1e-6 <= found <= others + 1e-6
