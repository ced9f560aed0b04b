"""Whose turn it is: shares by weight, caps, no saved-up turns, and positions that come true."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.queueing.turns import STRIDE, Pace, Share, Shares, Table, Waiting
from smile.names import TenantId, tenant_id

A, B, C = (tenant_id(name) for name in ("a", "b", "c"))


@dataclass
class Model:
    """What the scripts do with the table, in a few lines."""

    shares: Shares
    jobs: dict[TenantId, int]
    paid: dict[TenantId, int] = field(default_factory=dict)
    joined: dict[TenantId, int] = field(default_factory=dict)
    running: Counter[TenantId] = field(default_factory=Counter)
    level: int = 0
    clock: int = 0

    def come(self, tenant: TenantId, jobs: int) -> None:
        if jobs and not self.jobs.get(tenant):
            self.paid[tenant] = max(self.level, self.paid.get(tenant, 0))
            self.clock += 1
            self.joined[tenant] = self.clock
        self.jobs[tenant] = self.jobs.get(tenant, 0) + jobs

    def table(self) -> Table:
        return Table(
            tuple(
                Waiting(t, self.paid[t], self.joined[t], self.running[t], (f"{t}/j", n))
                for t, n in self.jobs.items()
                if n
            ),
            self.level,
        )

    def serve(self) -> TenantId | None:
        chosen = self.table().next(self.shares, open_=True)
        if chosen is None:
            return None
        tenant = chosen.tenant
        paid = max(self.paid[tenant], self.level)
        self.level, self.paid[tenant] = paid, paid + self.shares.of(tenant).stride
        self.jobs[tenant] -= 1
        return tenant


def model(shares: Shares, **jobs: int) -> Model:
    made = Model(shares, {})
    for name, count in jobs.items():
        made.come(tenant_id(name), count)
    return made


WEIGHTS = st.dictionaries(st.sampled_from([A, B, C]), st.integers(1, 16).map(Share), min_size=2)


@settings(deadline=None, max_examples=60)
@given(WEIGHTS, st.integers(1, 200))
def test_turns_are_shared_by_weight_at_every_moment(own: dict[TenantId, Share], turns: int) -> None:
    """No tenant that always has a job is ever more than one of its turns, and one of another's,
    from what its weight gives it."""
    queue = model(Shares(Share(), own), **{tenant: 10_000 for tenant in own})
    served = Counter(queue.serve() for _ in range(turns))
    for (one, mine), (other, others) in itertools.combinations(own.items(), 2):
        gap = abs(served[one] / mine.weight - served[other] / others.weight)
        assert gap <= 1 / mine.weight + 1 / others.weight


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 3)), max_size=40))
def test_nobody_saves_up_turns_while_it_has_no_job(events: list[tuple[TenantId, int]]) -> None:
    """Whatever came before, a newcomer gets at most one turn ahead of one who waited."""
    queue = model(Shares(), a=50)
    for tenant, jobs in events:
        queue.come(tenant, jobs)
        queue.serve()
    queue.come(A, 50)
    while queue.jobs.get(B):
        queue.serve()
    for _ in range(3):
        queue.serve()
    queue.come(B, 50)
    order = [queue.serve() for _ in range(12)]
    mine = [index for index, tenant in enumerate(order) if tenant == B]
    assert mine[0] <= 2, "it need not wait for the backlog of others"
    ahead = [order[: index + 1].count(B) - order[: index + 1].count(A) for index in range(12)]
    assert max(ahead) <= 1


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.sampled_from([A, B, C]), st.integers(1, 9), min_size=1),
    WEIGHTS,
    st.integers(0, 10),
)
def test_positions_come_true(
    jobs: dict[TenantId, int], own: dict[TenantId, Share], served: int
) -> None:
    shares = Shares(Share(), own)
    queue = model(shares, **{tenant: count for tenant, count in jobs.items()})
    for _ in range(served):
        queue.serve()
    told = {
        (tenant, rank): queue.table().jobs_ahead(tenant, rank, shares, open_=True)
        for tenant, count in queue.jobs.items()
        for rank in range(count)
    }
    ranks: Counter[TenantId] = Counter()
    for place in range(sum(queue.jobs.values())):
        tenant = queue.serve()
        assert tenant is not None
        assert told[tenant, ranks[tenant]] == place
        ranks[tenant] += 1


def test_a_cap_holds_and_others_go_on() -> None:
    shares = Shares(Share(), {A: Share(running_max=1)})
    waiting = [Waiting(A, 0, 1, 1, ("a/1", 5)), Waiting(B, STRIDE, 2, 7, ("b/1", 1))]
    chosen = Table(waiting, 0).next(shares, open_=True)
    assert chosen is not None
    assert chosen.tenant == B
    assert Table(waiting[:1], 0).next(shares, open_=True) is None


def test_jobs_that_wait_for_a_window_are_passed_over_until_it_opens() -> None:
    late = Waiting(A, 0, 1, off_peak=("a/1", 2))
    both = Waiting(B, STRIDE, 2, now=("b/2", 1), off_peak=("b/1", 1), off_peak_first=True)
    table = Table((late, both), 0)
    closed, opened = (table.next(Shares(), open_=open_) for open_ in (False, True))
    assert closed is both and opened is late
    assert (both.head(False), both.head(True)) == ("b/2", "b/1")
    assert (both.jobs(False), both.jobs(True)) == (1, 2)


def test_who_was_passed_over_starts_from_where_the_others_are() -> None:
    """Ten nights' turns are not taken at once in the first minute of the window."""
    late = Waiting(A, 0, 1, off_peak=("a/1", 50))
    other = Waiting(B, 10 * STRIDE, 2, now=("b/1", 50))
    table = Table((late, other), 10 * STRIDE)
    first = table.next(Shares(), open_=True)
    assert first is late
    paid = replace(late, paid=11 * STRIDE)
    assert Table((paid, other), 10 * STRIDE).next(Shares(), open_=True) is other


def test_the_wait_is_told_once_somebody_can() -> None:
    assert Pace(0.0, 2, 1).wait_s(5) is None
    assert Pace(60.0, 0, 0).wait_s(5) is None
    assert Pace(60.0, 2, 1).wait_s(0) == 0.0
    assert Pace(60.0, 2, 2).wait_s(0) == 30.0
    assert Pace(60.0, 2, 2).wait_s(3) == 120.0


def test_shares_are_read() -> None:
    shares = Shares.parse("acme=weight:3;running:2, bulk=queued:1000", Share(1, 8, 100))
    assert shares.of(tenant_id("acme")) == Share(3, 2, 100)
    assert shares.of(tenant_id("bulk")) == Share(1, 8, 1000)
    assert shares.of(A) == Share(1, 8, 100)


@pytest.mark.parametrize(
    "text", ["acme", "acme=", "acme=weight:0", "acme=weight:1001", "acme=speed:2", "A!=weight:2"]
)
def test_wrong_shares_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"share is like|weights are 1 to 1000|tenant"):
        Shares.parse(text, Share())
