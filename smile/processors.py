"""Rented processors as frozen values: what a tenant rents for a vPLM, and how it is doing."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime

from smile.resources import Exactness


class ProcessorState(enum.StrEnum):
    """How near the device a vPLM's module is."""

    COLD = "cold"
    WARM = "warm"
    HOT = "hot"


@dataclass(frozen=True, slots=True)
class ProcessorTerms:
    """What is rented.

    Attributes:
        weight: Share of the device against other tenants' weights while they compete, 0.1 to 10. A
            tenant's rentals add up, to at most 16; a tenant without any has 1.
        concurrency_max: Requests computed at a time, others wait; 0: any number.
        texts_per_s: Texts answered per second in the long run, others are refused; 0: any number.
        burst_texts: Texts that may come at once; 0: as many as in a second.
        pinned: Keep the module on the device.
        idle_s: Without a request for so long, the module leaves memory; 0: 600.
        exactness: How texts are answered where a request does not say; None: as the vPLM says.
    """

    weight: float = 1.0
    concurrency_max: int = 0
    texts_per_s: float = 0.0
    burst_texts: int = 0
    pinned: bool = False
    idle_s: float = 0.0
    exactness: Exactness | None = None


@dataclass(frozen=True, slots=True)
class ProcessorCounters:
    """Counts since it was rented.

    Attributes:
        requests: Asked, refused ones included.
        texts: Answered.
        refused: Requests refused for rate or queue.
        errors: Requests that failed for another reason.
        module_hits: Requests that found the module in memory.
        module_loads: Requests that waited for it.
    """

    requests: int = 0
    texts: int = 0
    refused: int = 0
    errors: int = 0
    module_hits: int = 0
    module_loads: int = 0


@dataclass(frozen=True, slots=True)
class Processor:
    """A rented processor, `tenants/{tenant}/processors/{vplm}`."""

    name: str
    vplm: str
    terms: ProcessorTerms
    state: ProcessorState = ProcessorState.COLD
    counters: ProcessorCounters = field(default_factory=ProcessorCounters)
    create_time: datetime | None = None
    last_used_time: datetime | None = None
