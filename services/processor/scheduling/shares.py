"""How much must be computed before a tenant's own work is, at the least. Pure.

Turns go by weight (`turns`), so while `x` tokens of one tenant are computed, another of weight `w`
against its `v` gets about `x * w / v`, or all it has inside if that is less. Their sum over all
tenants is what stands before the last of the `x` tokens; a flood counts by its share, not its size.
Tenants are kept in buckets by tokens per weight, a factor of the square root of two wide, so that
telling the sum costs the number of buckets, not of tenants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from smile.names import TenantId

STEPS_PER_DOUBLING = 2
BUCKETS = 80  # up to 2 ** 40 tokens per weight
INSIDE_MIN = 2 ** (-1 / STEPS_PER_DOUBLING)  # least part of a bucket's highest rate any in it has


@dataclass(slots=True)
class _Bucket:
    """Tenants with about the same tokens per weight."""

    tokens: float = 0.0
    weight: float = 0.0
    tenants: int = 0

    def add(self, tokens: float, weight: float, tenants: int) -> None:
        self.tenants += tenants
        self.tokens = self.tokens + tokens if self.tenants else 0.0  # no rounding errors stay
        self.weight = self.weight + weight if self.tenants else 0.0


class FairShares:
    """Tokens inside by tenant, and what they mean for one of them.

    Args:
        slack_tokens: What a tenant of weight 1 may be ahead of its share: newcomers go first, and
            a turn may end a chunk in debt. Nobody counts before so much of anyone's own.
    """

    def __init__(self, slack_tokens: int = 0) -> None:
        self._slack_tokens = slack_tokens
        self._buckets = [_Bucket() for _ in range(BUCKETS)]
        self._held: dict[TenantId, tuple[int, float]] = {}

    def set(self, tenant: TenantId, tokens: int, weight: float) -> None:
        """A tenant has so much inside now."""
        if (held := self._held.pop(tenant, None)) is not None:
            self._bucket(*held).add(-held[0], -held[1], -1)
        if tokens > 0:
            self._held[tenant] = (tokens, weight)
            self._bucket(tokens, weight).add(tokens, weight, 1)

    def before(self, tenant: TenantId, tokens: int, weight: float) -> float:
        """Tokens computed, at the least, by the time all this tenant has inside and `tokens` more
        are: its own, and the others' by their share.
        """
        held = self._held.get(tenant)
        own = (held[0] if held else 0) + tokens
        self.set(tenant, 0, weight)
        try:
            others = self._others(max(own / weight - self._slack_tokens, 0.0))
        finally:
            if held is not None:
                self.set(tenant, *held)
        return own + others

    def _others(self, rate: float) -> float:
        """What all get, each at most `rate` tokens per weight."""
        total = 0.0
        for index, bucket in enumerate(self._buckets):
            if not bucket.tenants:
                continue
            if rate >= _lowest(index + 1):
                total += bucket.tokens
            elif rate <= _lowest(index):
                total += rate * bucket.weight
            else:
                total += INSIDE_MIN * bucket.tokens
        return total

    def _bucket(self, tokens: int, weight: float) -> _Bucket:
        step = math.floor(STEPS_PER_DOUBLING * math.log2(max(tokens / weight, 1.0)))
        return self._buckets[min(step, BUCKETS - 1)]


def _lowest(index: int) -> float:
    """The least rate of a bucket; the first has all below it, too."""
    return 2 ** (index / STEPS_PER_DOUBLING) if index else 0.0
