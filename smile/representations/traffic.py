"""What traffic asks for: decayed counts of n-grams, in memory of a fixed size.

A count halves every `half_life_s`: instead of all counts being lowered, later questions weigh more
(Cormode et al., Forward decay, ICDE 2009). Which tenants asked is kept as 32 bits an n-gram, one
for each group of tenants; groups are drawn with a key of this process, and as many bits as are set,
so many tenants asked at least. Nothing here leaves the process but n-grams that enough tenants
asked often enough (`frequent`), and no text can be put together from what is here.
"""

from __future__ import annotations

import functools
import hashlib
import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smile.errors import InvalidArgument
from smile.model.kernels.ngrams import CELLS, NgramKernels, cells_of, empty_lines, ngram_kernels

GROUPS = 32  # of tenants
TENANTS_MIN_MAX = 16  # of more, too many fall into one group
CELL_BYTES = 16
EXPONENT_MAX = 60.0  # of a weight; then all counts are scaled down, far from what float32 holds
TENANTS_REMEMBERED = 65_536


@dataclass(frozen=True, slots=True)
class CountRules:
    """What is counted and what may be told.

    Attributes:
        memory_bytes_max: Of all counts.
        half_life_s: After so many seconds a question counts half.
        tenants_min: N-grams that fewer tenants asked are never told.
        count_min: Nor are those with a smaller decayed count.

    Raises:
        InvalidArgument: a number is out of range.
    """

    memory_bytes_max: int = 32 << 20
    half_life_s: float = 6 * 3600.0
    tenants_min: int = 3
    count_min: float = 8.0

    def __post_init__(self) -> None:
        _check("memory_bytes_max", self.memory_bytes_max, CELLS * CELL_BYTES, 1 << 40)
        _check("half_life_s", self.half_life_s, 1.0, 366 * 86_400.0)
        _check("tenants_min", self.tenants_min, 1, TENANTS_MIN_MAX)
        _check("count_min", self.count_min, 1.0, 1e9)


@dataclass(frozen=True, slots=True)
class Weighed:
    """N-grams and what each is worth.

    Attributes:
        keys: [n] int64, different ones.
        counts: [n] float32, decayed.
    """

    keys: NDArray[np.int64]
    counts: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keys)


class Counts:
    """Decayed counts. Threads may share them; none waits for another's Python.

    Args:
        clock: Seconds that only grow.
        learning: False: nothing is counted until it is switched on.
    """

    def __init__(
        self,
        rules: CountRules | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        kernels: NgramKernels | None = None,
        learning: bool = True,
    ) -> None:
        self.rules = rules = rules or CountRules()
        self._clock = clock
        self._kernels = kernels or ngram_kernels()
        self._lines = empty_lines(rules.memory_bytes_max // (CELLS * CELL_BYTES))
        self._lock = threading.Lock()
        self._start = clock()
        self._learning = learning
        self._group_of = functools.lru_cache(TENANTS_REMEMBERED)(_grouping())

    @property
    def learning(self) -> bool:
        """Whether traffic is counted."""
        return self._learning

    def switch(self, *, learning: bool) -> None:
        """Counts from now on, or no longer. What was counted is forgotten when it ends."""
        with self._lock:
            self._learning = learning
            if not learning:
                self._forget()

    def forget(self) -> None:
        """Nothing was asked."""
        with self._lock:
            self._forget()

    def observe(self, keys: NDArray[np.int64], tenant: str) -> None:
        """A tenant asked for n-grams [n], each as often as it is among them."""
        if not self._learning or len(keys) == 0:
            return
        bit = 1 << self._group_of(tenant)
        with self._lock:
            if self._learning:
                weight = self._weight()
                self._kernels.count(np.ascontiguousarray(keys, np.int64), self._lines, weight, bit)

    def of(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """The decayed count of each key [n]; 0 where nothing is remembered. For use in this
        process alone: it does not ask who asked."""
        with self._lock:
            weight = np.float32(self._weight())  # first: it may scale what was counted
            found = self._kernels.counted(np.ascontiguousarray(keys, np.int64), self._lines)
            return found / weight

    def frequent(self, limit: int | None = None) -> Weighed:
        """The n-grams that enough tenants asked often enough, the most frequent first, at most
        `limit` of them. They and their counts may be told to others."""
        with self._lock:
            weight = np.float32(self._weight())
            keys, counts, tenants = cells_of(self._lines)
            enough = counts >= np.float32(self.rules.count_min) * weight
            enough &= np.bitwise_count(tenants) >= self.rules.tenants_min
            found, worth = keys[enough], counts[enough] / weight
        order = np.lexsort((found, -worth))[:limit]
        return Weighed(found[order], worth[order].astype(np.float32))

    def _weight(self) -> float:
        """What a question counts now."""
        exponent = (self._clock() - self._start) / self.rules.half_life_s
        if exponent > EXPONENT_MAX:
            _, counts, _ = cells_of(self._lines)
            counts *= np.float32(math.pow(2.0, -min(exponent, 140.0)))
            self._start = self._clock()
            exponent = 0.0
        return math.pow(2.0, exponent)

    def _forget(self) -> None:
        self._lines = empty_lines(len(self._lines))


def _grouping() -> Callable[[str], int]:
    """Tenants to groups, in a way nobody outside can tell."""
    key = secrets.token_bytes(16)

    def group_of(tenant: str) -> int:
        return hashlib.blake2b(tenant.encode(), digest_size=1, key=key).digest()[0] % GROUPS

    return group_of


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InvalidArgument(f"{name} must be between {least:g} and {most:g}, got {value:g}")
