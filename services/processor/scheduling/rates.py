"""Rates that are rented: so many per second, and a burst. Pure: times are arguments.

A token bucket as the generic cell rate algorithm keeps it (ITU-T I.371, 1993): one time per key,
that at which its bucket will be full again. Keys whose bucket is full are forgotten, a few at a
time, so that nothing grows with the number of keys ever seen.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from smile.errors import Overloaded

Key = TypeVar("Key", bound=Hashable)

SWEEP_KEYS = 2  # looked at per call; more than one, so that sweeping outruns adding


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many per second in the long run, and at most `burst` at once.

    Raises:
        ValueError: either is not above zero and finite.
    """

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if not (0 < self.per_s < math.inf and 0 < self.burst < math.inf):
            raise ValueError(f"expected a rate and a burst above 0, got {self}")


class RateLimiter(Generic[Key]):
    """Buckets by key; every key's limit is given anew each time, and may change."""

    def __init__(self) -> None:
        self._full_at: OrderedDict[Key, float] = OrderedDict()

    def __len__(self) -> int:
        """Keys remembered."""
        return len(self._full_at)

    def take(self, key: Key, limit: RateLimit, now: float, cost: float = 1.0) -> float:
        """Take `cost` out of the bucket: 0. Else the seconds until that works, and nothing taken.

        What costs more than a burst goes once the bucket is full, and the next wait for it.
        """
        self._sweep(now)
        full_at = max(self._full_at.get(key, now), now)
        room_s = (limit.burst - min(cost, limit.burst)) / limit.per_s
        wait_s = full_at - now - room_s
        if wait_s > 1e-9:
            return wait_s
        self._full_at[key] = full_at + cost / limit.per_s
        self._full_at.move_to_end(key)
        return 0.0

    def check(self, key: Key, limit: RateLimit, now: float, cost: float = 1.0) -> None:
        """Take `cost`. Raises `Overloaded`, reason RATE_LIMITED, with a time to come back."""
        wait_s = self.take(key, limit, now, cost)
        if wait_s <= 0:
            return
        raise Overloaded(
            f"'{key}' takes {limit.per_s:g} requests per second and {limit.burst:g} at once; come "
            f"back in {wait_s:.3f} s",
            reason="RATE_LIMITED",
            metadata={"per_s": f"{limit.per_s:g}", "burst": f"{limit.burst:g}"},
            retry_after=wait_s,
        )

    def _sweep(self, now: float) -> None:
        for _ in range(min(SWEEP_KEYS, len(self._full_at))):
            key, full_at = next(iter(self._full_at.items()))
            if full_at <= now:
                del self._full_at[key]
            else:
                self._full_at.move_to_end(key)
