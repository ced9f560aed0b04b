"""How much a batch holds, and when it is full."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from services.processor.requests import Chunk
from services.processor.scheduling.latency import Tally

SHARED_MORE = 0.25  # by which bulky tenants may make a batch longer that guests ride in


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batch may hold, and how much of it a tenant's turn is worth.

    Attributes:
        tokens_max: Tokens of a batch; a single chunk beyond any limit travels alone.
        texts_max: Texts of a batch.
        quantum_tokens: What a round adds to the deficit of a tenant of weight 1.
        seconds_max: Predicted seconds of a batch.
        shared_seconds_max: The same for what bulky tenants add while guests are about.
        shared_for_s: How long a guest counts as being about.
        bulk_batches_max: Batches of bulky tenants alone that may be taken at a time, where these
            are computed beside the others and give way to them; 0: where they are like any.
    """

    tokens_max: int
    texts_max: int
    quantum_tokens: int
    seconds_max: float = math.inf
    shared_seconds_max: float = math.inf
    shared_for_s: float = 1.0
    bulk_batches_max: int = 0

    @property
    def apart(self) -> bool:
        """Whether batches of bulky tenants alone are computed beside the others."""
        return self.bulk_batches_max > 0

    def __post_init__(self) -> None:
        if not 1 <= self.quantum_tokens <= self.tokens_max or self.texts_max < 1:
            raise ValueError(f"expected 1 <= quantum <= tokens and 1 <= texts, got {self}")
        if min(self.seconds_max, self.shared_seconds_max, self.shared_for_s) <= 0:
            raise ValueError(f"expected seconds above 0, got {self}")


class Closed(enum.StrEnum):
    """Why a batch has nothing more in it."""

    EMPTY = "empty"  # nothing else was ready
    TOKENS = "tokens"
    TEXTS = "texts"
    SECONDS = "seconds"
    SHARED = "shared"  # bulky tenants keep batches short, as guests are about


@dataclass(slots=True)
class Room:
    """How full a batch is."""

    limits: BatchLimits
    tally: Tally | None
    least_s: float = 0.0  # that no limit of seconds goes below
    tokens: int = 0
    texts: int = 0
    guests_s: float = 0.0  # what it takes up to the last chunk of a guest

    def full_for(self, chunk: Chunk, *, shared: bool) -> Closed | None:
        """Which limit the batch would pass with `chunk`, if any."""
        limits, texts = self.limits, len(chunk.texts)
        if self.tokens + chunk.tokens > limits.tokens_max:
            return Closed.TOKENS
        if self.texts + texts > limits.texts_max:
            return Closed.TEXTS
        if self.tally is None:
            return None
        seconds = self.tally.seconds_with(chunk.tokens, texts, chunk.kind)
        if shared and seconds > self._shared_s_max():
            return Closed.SHARED
        return Closed.SECONDS if seconds > max(limits.seconds_max, self.least_s) else None

    def _shared_s_max(self) -> float:
        """Seconds that a bulky tenant may fill up, with guests about."""
        apart = self.limits.apart
        if self.guests_s:
            return max((1 + SHARED_MORE) * self.guests_s, 0.0 if apart else self.least_s)
        return math.inf if apart else max(self.limits.shared_seconds_max, self.least_s)

    def add(self, chunk: Chunk, *, guest: bool) -> None:
        texts = len(chunk.texts)
        self.tokens += chunk.tokens
        self.texts += texts
        if self.tally is not None:
            self.tally.add(chunk.tokens, texts, chunk.kind)
            if guest:
                self.guests_s = self.tally.seconds
