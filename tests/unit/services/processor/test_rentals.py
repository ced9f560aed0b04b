"""Rented processors: terms, bounds, rates, weights, and who has gone idle."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.processor.rentals import TENANT_WEIGHT_MAX, Rental, RentalLimits, Rentals
from smile.errors import Internal, NotFound, Overloaded, QuotaExceeded
from smile.names import ProcessorName, TenantId, VplmName
from smile.processors import ProcessorCounters, ProcessorTerms

ACME, RIVAL = TenantId("acme"), TenantId("rival")
TIME = datetime(2026, 1, 1, tzinfo=UTC)


def vplm(name: str = "topic", tenant: TenantId = ACME) -> VplmName:
    return VplmName(tenant, name)


def processor(name: str = "topic", tenant: TenantId = ACME) -> ProcessorName:
    return ProcessorName(tenant, name)


@pytest.fixture
def rentals() -> Rentals:
    return Rentals(RentalLimits(total_max=5, tenant_max=3, idle_s=10.0))


def rent(rentals: Rentals, name: str = "topic", now: float = 0.0, **terms: float) -> Rental:
    return rentals.rent(vplm(name), ProcessorTerms(**terms), now, TIME)  # type: ignore[arg-type]


def test_what_is_not_rented_has_defaults(rentals: Rentals) -> None:
    assert rentals.of(vplm()) is None
    assert rentals.weight_of(ACME) == 1.0
    assert rentals.requests_max_of(vplm()) is None
    with pytest.raises(NotFound):
        rentals.get(processor())
    with pytest.raises(NotFound):
        rentals.release(processor())


def test_renting_again_changes_terms_and_keeps_counts(rentals: Rentals) -> None:
    first = rent(rentals, weight=2)
    rentals.begin(first, 3, 1.0)
    rentals.end(first, 3, None)
    again = rent(rentals, weight=3, concurrency_max=4)
    assert again is first and len(rentals) == 1
    assert again.counters == ProcessorCounters(requests=1, texts=3)
    assert (rentals.weight_of(ACME), rentals.requests_max_of(vplm())) == (3, 4)
    same = rent(rentals, weight=3, concurrency_max=4)
    assert same is first and rentals.weight_of(ACME) == 3


def test_weights_of_a_tenant_add_up_to_a_limit(rentals: Rentals) -> None:
    for name, sum_ in (("a", 7.0), ("b", 14.0), ("c", TENANT_WEIGHT_MAX)):
        rent(rentals, name, weight=7)
        assert rentals.weight_of(ACME) == sum_
    assert rentals.weight_of(RIVAL) == 1.0
    for name in ("a", "b", "c"):
        rentals.release(processor(name))
    assert rentals.weight_of(ACME) == 1.0


def test_as_many_as_may_be(rentals: Rentals) -> None:
    for name in "abc":
        rent(rentals, name)
    with pytest.raises(QuotaExceeded, match="at most 3 processors, and has 3"):
        rent(rentals, "d")
    rent(rentals, "c", weight=2)  # what is rented may change
    for name in "ab":
        rentals.rent(vplm(name, RIVAL), ProcessorTerms(), 0.0, TIME)
    with pytest.raises(Overloaded) as caught:
        rentals.rent(vplm("c", RIVAL), ProcessorTerms(), 0.0, TIME)
    assert (caught.value.reason, caught.value.metadata) == ("RENTALS_FULL", {"limit": "5"})
    rentals.release(processor("a"))
    rentals.rent(vplm("c", RIVAL), ProcessorTerms(), 0.0, TIME)


def test_faster_than_rented_is_refused_with_a_time(rentals: Rentals) -> None:
    rental = rent(rentals, texts_per_s=10, burst_texts=20)
    rentals.begin(rental, 20, 0.0)
    with pytest.raises(Overloaded, match="10 texts per second and 20 at once") as caught:
        rentals.begin(rental, 5, 0.0)
    assert caught.value.reason == "RATE_LIMITED"
    assert caught.value.retry_after == pytest.approx(0.5)
    rentals.begin(rental, 5, 0.5 + 1e-6)
    assert (rental.requests, rental.refused) == (3, 1)
    faster = rent(rentals, now=9.0, texts_per_s=1000, burst_texts=1000)
    rentals.begin(faster, 1000, 9.0)


def test_how_requests_end_is_counted(rentals: Rentals) -> None:
    rental = rent(rentals)
    ends = (None, Overloaded("full"), Internal("ours"), KeyboardInterrupt())
    for error in ends:
        rentals.begin(rental, 2, 0.0)
        rentals.end(rental, 2, error)
    rental.found(waited=True)
    rental.found(waited=False)
    assert rental.counters == ProcessorCounters(4, 2, 1, 2, 1, 1)


def test_idle_ones_are_told_once_until_used_again(rentals: Rentals) -> None:
    short, long, pinned = (
        rent(rentals, "a", idle_s=5),
        rent(rentals, "b"),
        rent(rentals, "c", idle_s=1, pinned=True),
    )
    assert list(rentals.gone_idle(4.9)) == []
    rentals.begin(short, 1, 4.0)
    assert list(rentals.gone_idle(5.0)) == [], "used meanwhile"
    assert list(rentals.gone_idle(9.0)) == [short]
    assert list(rentals.gone_idle(50.0)) == [long]
    assert list(rentals.gone_idle(99.0)) == []
    rentals.begin(short, 1, 100.0)
    assert list(rentals.gone_idle(105.0)) == [short]
    assert not pinned.watched
    rentals.rent(vplm("c"), ProcessorTerms(idle_s=1), 200.0, TIME)
    assert list(rentals.gone_idle(201.0)) == [pinned], "no longer pinned"
    rentals.begin(long, 1, 300.0)
    rentals.release(processor("b"))
    assert list(rentals.gone_idle(999.0)) == [], "released"


def test_who_is_pinned(rentals: Rentals) -> None:
    first, _ = rent(rentals, "a", pinned=True), rent(rentals, "b")
    assert rentals.pinned() == [first]
    rent(rentals, "a")
    assert rentals.pinned() == []
    rent(rentals, "b", pinned=True)
    rentals.release(processor("b"))
    assert rentals.pinned() == []


def test_pages_are_in_order(rentals: Rentals) -> None:
    for name in ("b", "c", "a"):
        rent(rentals, name)
    rentals.rent(vplm("z", RIVAL), ProcessorTerms(), 0.0, TIME)
    page, more = rentals.page(ACME, "", 2)
    assert ([each.vplm.vplm for each in page], more) == (["a", "b"], True)
    page, more = rentals.page(ACME, "b", 2)
    assert ([each.vplm.vplm for each in page], more) == (["c"], False)
    assert rentals.page(TenantId("nobody"), "", 2) == ([], False)


NAMES = st.sampled_from("abcd")
TENANTS = st.sampled_from([ACME, RIVAL])


class RentalMachine(RuleBasedStateMachine):
    """Rents and releases beside a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.rentals = Rentals(RentalLimits(total_max=6, tenant_max=3, idle_s=5.0))
        self.model: dict[VplmName, float] = {}
        self.now = 0.0

    @rule(name=NAMES, tenant=TENANTS, weight=st.floats(0.1, 10))
    def rent(self, name: str, tenant: TenantId, weight: float) -> None:
        key = VplmName(tenant, name)
        held = sum(each.tenant == tenant for each in self.model)

        def act() -> Rental:
            return self.rentals.rent(key, ProcessorTerms(weight), self.now, TIME)

        if key not in self.model and held >= 3:
            refused(act, QuotaExceeded)
        else:
            act()
            self.model[key] = weight

    @rule(name=NAMES, tenant=TENANTS)
    def release(self, name: str, tenant: TenantId) -> None:
        key = VplmName(tenant, name)
        if key in self.model:
            self.rentals.release(ProcessorName(tenant, name))
            del self.model[key]
        else:
            refused(lambda: self.rentals.release(ProcessorName(tenant, name)), NotFound)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for rental in self.rentals.gone_idle(self.now):
            assert rental.vplm in self.model
            assert rental.last_used + 5.0 <= self.now

    @invariant()
    def same_as_the_model(self) -> None:
        assert len(self.rentals) == len(self.model)
        for tenant in (ACME, RIVAL):
            mine = {key.vplm: w for key, w in self.model.items() if key.tenant == tenant}
            page, _ = self.rentals.page(tenant, "", 10)
            assert [each.vplm.vplm for each in page] == sorted(mine)
            expected = min(sum(mine.values()), TENANT_WEIGHT_MAX) if mine else 1.0
            assert self.rentals.weight_of(tenant) == pytest.approx(expected)


def refused(act: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        act()


TestRentals = RentalMachine.TestCase
TestRentals.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
