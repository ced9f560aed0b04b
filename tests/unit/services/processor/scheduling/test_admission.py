"""Admission: bounded in total and per tenant, and counted back to zero."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.scheduling.admission import (
    DEADLINE_MARGIN,
    RETRY_S_MAX,
    RETRY_S_MIN,
    STALE_MAX,
    UNMEETABLE,
    Admission,
    Load,
    QueueLimits,
)
from smile.errors import DeadlineExceeded, InvalidArgument, Overloaded, Unavailable
from smile.names import tenant_id

ACME, RIVAL = tenant_id("acme"), tenant_id("rival")


@pytest.fixture
def admission() -> Admission:
    admission = Admission(QueueLimits(texts_max=10, tokens_max=1_000, tenant_share=0.6))
    admission.open()
    return admission


def test_nothing_is_admitted_before_the_start_and_after_the_end() -> None:
    admission = Admission(QueueLimits(10, 1_000, 0.5))
    with pytest.raises(Unavailable, match="starting"):
        admission.admit(ACME, 1, 1)
    admission.open()
    with admission.admit(ACME, 1, 1):
        admission.close("stopping")
        with pytest.raises(Unavailable, match="stopping"):
            admission.admit(ACME, 1, 1)


def test_a_tenant_has_its_share_and_others_the_rest(admission: Admission) -> None:
    with admission.admit(ACME, 6, 10):
        with pytest.raises(Overloaded, match="6 texts and 600 tokens; inside are 6") as caught:
            admission.admit(ACME, 1, 1)
        assert caught.value.reason == "TENANT_QUEUE_FULL"
        with admission.admit(RIVAL, 4, 10), pytest.raises(Overloaded) as caught:
            admission.admit(RIVAL, 1, 1)
        assert caught.value.reason == "QUEUE_FULL"
    assert admission.refused == 2
    with admission.admit(ACME, 6, 600):
        pass


def test_tokens_are_bounded_too(admission: Admission) -> None:
    with admission.admit(ACME, 1, 500), pytest.raises(Overloaded):
        admission.admit(ACME, 1, 101)


def test_a_request_that_never_fits_is_not_told_to_come_back(admission: Admission) -> None:
    with pytest.raises(InvalidArgument, match=r"at most 6 texts.* got 7") as caught:
        admission.admit(ACME, 7, 1)
    assert caught.value.reason == "REQUEST_TOO_LARGE"
    assert caught.value.retry_after is None


def test_exact_tokens_replace_estimates(admission: Admission) -> None:
    with admission.admit(ACME, 2, 300) as permit:
        permit.settle(150, 20)
        assert admission.inside.tokens == 170
    assert admission.inside == Load(0, 0)


def test_the_wait_follows_the_drain_rate(admission: Admission) -> None:
    assert admission.retry_after(Load(1, 100)) == 1.0
    admission.computed(tokens=1_000, seconds=1.0)
    assert admission.retry_after(Load(1, 2_000)) == pytest.approx(1.0)
    assert admission.retry_after(Load(1, 1)) == RETRY_S_MIN
    assert admission.retry_after(Load(1, 10**9)) == RETRY_S_MAX
    for _ in range(50):
        admission.computed(tokens=500, seconds=1.0)
    assert admission.retry_after(Load(1, 2_000)) == pytest.approx(2.0, rel=0.01)


@given(st.lists(st.tuples(st.sampled_from([ACME, RIVAL]), st.integers(1, 8), st.integers(1, 700))))
def test_never_beyond_the_limits(asked: list[tuple[str, int, int]]) -> None:
    admission = Admission(QueueLimits(10, 1_000, 0.6))
    admission.open()
    permits = []
    for tenant, texts, tokens in asked:
        try:
            permits.append(admission.admit(tenant_id(tenant), texts, tokens))
        except (Overloaded, InvalidArgument):
            continue
        assert admission.inside.texts <= 10
        assert admission.inside.tokens <= 1_000
        assert sum(permit.texts for permit in permits if permit.tenant == ACME) <= 6
    for permit in permits:
        permit.__exit__(None, None, None)
    assert admission.inside == Load(0, 0)


def timed(slack_tokens: int = 0) -> Admission:
    """1 ms a token, and a queue that is never full."""
    limits = QueueLimits(1_000_000, 100_000_000, 1.0)
    admission = Admission(
        limits, bulk_s=lambda tokens, _: tokens / 1_000, slack_tokens=slack_tokens
    )
    admission.open()
    return admission


def test_what_takes_longer_than_is_left_is_refused_without_coming_back() -> None:
    admission = timed()
    with pytest.raises(DeadlineExceeded, match=r"about 1\.000 s, and 0\.400 s are left") as caught:
        admission.admit(ACME, 10, 1_000, 0.4)
    assert caught.value.reason == "DEADLINE_UNMEETABLE"
    assert caught.value.metadata == {"predicted_s": "1.000", "left_s": "0.400"}
    assert caught.value.retry_after is None
    assert admission.refusals == {"DEADLINE_UNMEETABLE": 1}
    assert admission.inside == Load(0, 0)


@given(tokens=st.integers(1, 100_000), ahead=st.floats(1.0, 10.0))
def test_nothing_is_refused_when_idle_that_fits_its_deadline(tokens: int, ahead: float) -> None:
    assert timed().admit(ACME, 1, tokens, ahead * tokens / 1_000).tokens == tokens


def test_own_backlog_counts_in_full_and_says_when_to_come_back() -> None:
    admission = timed()
    with admission.admit(ACME, 10, 3_000):
        with pytest.raises(Overloaded) as caught:
            admission.admit(ACME, 1, 100, 1.0)
        assert caught.value.reason == "DEADLINE_UNMEETABLE"
        assert caught.value.retry_after == pytest.approx(2.1)
        assert admission.admit(ACME, 1, 100, 3.1 * DEADLINE_MARGIN + 0.01)
    assert admission.admit(ACME, 1, 100, 1.0)


@given(flood=st.integers(0, 1_000_000), tokens=st.integers(1, 1_000))
def test_a_flooding_neighbour_costs_at_most_its_share(flood: int, tokens: int) -> None:
    """One neighbour of the same weight at most doubles the wait, however much it has inside."""
    admission = timed()
    if flood:
        admission.admit(RIVAL, 1, flood)
    left_s = 2 * tokens / 1_000 * DEADLINE_MARGIN + 1e-6
    assert admission.admit(ACME, 1, tokens, left_s).tokens == tokens


def test_a_newcomer_is_not_refused_for_what_it_overtakes() -> None:
    admission = timed(slack_tokens=100)
    for number in range(500):
        admission.admit(tenant_id(f"t{number}"), 1, 10_000)
    assert admission.admit(ACME, 1, 90, 0.1).tokens == 90
    with pytest.raises(Overloaded, match="come back in"):
        admission.admit(ACME, 1, 190, 1.0)


def test_shares_are_as_if_told_of_everything_at_once() -> None:
    """A flood is compared with what is inside then, whoever came and went before."""
    admission = Admission(
        QueueLimits(100_000, 1_000_000, 1.0), bulk_s=lambda tokens, _: tokens / 1_000
    )
    admission.open()
    flood = [admission.admit(tenant_id(f"tenant-{n}"), 1, 100) for n in range(2 * STALE_MAX)]
    assert len(admission._stale) <= STALE_MAX
    for permit in flood[1:]:
        permit.__exit__()
    with admission.admit(ACME, 1, 100, left_s=0.15):  # behind as much of one other tenant alone
        pass
    with pytest.raises(Overloaded) as caught:
        again = [admission.admit(tenant_id(f"tenant-{n}"), 1, 100) for n in range(1, 4)]
        assert len(again) == 3
        admission.admit(ACME, 1, 100, left_s=0.15)
    assert caught.value.reason == UNMEETABLE
