"""What the processor has done since it started, and how full it is.

Counting costs a few additions per request and per batch; everything else is worked out when
somebody looks. Counted on the event loop; may be read from any thread.
"""

from __future__ import annotations

import bisect
import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from services.processor.lanes.device import Report
from services.processor.lanes.dispatch import Level, TierLevel, Work
from services.processor.materialize.level import StandInLevel
from smile.errors import Internal, SmileError
from smile.names import BackboneName
from smile.resources import ClassLatency, ProcessorStats, Timings
from smile.rpc.freshness import Lookup

Module = TypeVar("Module")

OK = "OK"
CANCELLED = "CANCELLED"
NO_LIMIT = "none"
SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15),
    *(0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
TOKENS = (16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
RATIOS = (0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


class TenantClass(enum.StrEnum):
    """What a tenant has rented, in few words: the only thing about tenants that is ever a label."""

    UNRENTED = "unrented"
    LIGHT = "light"  # a weight below 1
    STANDARD = "standard"
    HEAVY = "heavy"  # a weight of 4 or more

    @classmethod
    def of(cls, weight: float | None) -> TenantClass:
        """The class of a tenant's weight; None where nothing is rented."""
        if weight is None:
            return cls.UNRENTED
        if weight < 1.0:
            return cls.LIGHT
        return cls.HEAVY if weight >= 4.0 else cls.STANDARD


class Histogram:
    """How often values fell at or below each of `bounds`, and above all of them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)

    def quantile(self, share: float) -> float:
        """About the value that `share` of all are at or below: a bound; 0 without values."""
        wanted, seen = share * self.count, 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= wanted and seen:
                return bound
        return self.bounds[-1] if seen < wanted else 0.0


def _seconds() -> Histogram:
    return Histogram(SECONDS)


@dataclass(frozen=True, slots=True)
class Gauges:
    """How everything is now.

    Attributes:
        disk: How full local disk is.
        padding_share: Of the tokens computed since start, those that were in no text.
        refused: Requests refused by admission since start.
        refusals: The same by reason.
        feed_live: Whether storage tells of changes, so that answers are remembered for long.
        lookups: Names and keys looked up since start.
        stand_ins: What was looked up in place of lower layers.
    """

    level: Level
    disk: TierLevel
    backbones: tuple[str, ...]
    queue_texts_max: int
    refused: int
    refusals: Mapping[str, int]
    rented: int
    padding_share: float
    feed_live: bool
    lookups: Mapping[Lookup, int]
    stand_ins: StandInLevel


@dataclass(slots=True)
class Counters:
    """Counts since start.

    Attributes:
        outcomes: Requests that are over, by reason of their error, or `OK`.
        latency: Seconds of requests that were answered, by class of tenant.
        closes: Batches by what ended them.
        lag: Seconds the event loop was late.
        ratio: Seconds that batches took, over those predicted.
    """

    requests: int = 0
    texts: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    latency: dict[TenantClass, Histogram] = field(
        default_factory=lambda: {each: Histogram(SECONDS) for each in TenantClass}
    )
    queue: Histogram = field(default_factory=_seconds)
    load_wait: Histogram = field(default_factory=_seconds)
    load: Histogram = field(default_factory=_seconds)
    prepare: Histogram = field(default_factory=_seconds)
    compute: Histogram = field(default_factory=_seconds)
    lag: Histogram = field(default_factory=_seconds)
    lag_s_max: float = 0.0
    batch_texts: Histogram = field(default_factory=lambda: Histogram(COUNTS))
    batch_vplms: Histogram = field(default_factory=lambda: Histogram(COUNTS))
    batch_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    ratio: Histogram = field(default_factory=lambda: Histogram(RATIOS))
    closes: Counter[str] = field(default_factory=Counter)

    def asked(self, texts: int) -> None:
        """A request was admitted."""
        self.requests += 1
        self.texts += texts

    def answered(self, tenant: TenantClass, timings: Timings) -> None:
        """A request got its answer."""
        self.outcomes[OK] += 1
        self.latency[tenant].add(timings.total_s)
        self.queue.add(timings.queue_s)
        if timings.load_s > 0:
            self.load_wait.add(timings.load_s)

    def refused(self, error: BaseException) -> None:
        """A request got an error."""
        if isinstance(error, SmileError):
            self.outcomes[error.reason] += 1
        else:
            self.outcomes[Internal.reason if isinstance(error, Exception) else CANCELLED] += 1

    def loaded(self, seconds: float) -> None:
        """A module has come into memory."""
        self.load.add(seconds)

    def late(self, seconds: float) -> None:
        """The event loop came so much later than it was asked to."""
        self.lag.add(seconds)
        self.lag_s_max = max(self.lag_s_max, seconds)

    def computed(self, work: Work[Module], report: Report[Module]) -> None:
        """A batch left the device."""
        batch = work.batch
        self.batch_texts.add(batch.texts)
        self.batch_vplms.add(len(batch.parts))
        self.batch_tokens.add(batch.tokens)
        self.closes[work.closed or NO_LIMIT] += 1
        self.prepare.add(report.prepare_s)
        self.compute.add(report.compute_s)
        if work.predicted_s and report.steady:
            self.ratio.add(report.compute_s / work.predicted_s)

    def stats(self, gauges: Gauges) -> ProcessorStats:
        """Everything `GetStats` tells."""
        level = gauges.level
        host, device = level.host.counters, level.device.counters
        return ProcessorStats(
            backbones=tuple(str(BackboneName(name)) for name in gauges.backbones),
            queue_texts=level.queue_texts,
            queue_texts_max=gauges.queue_texts_max,
            modules_resident=level.host.modules,
            modules_bytes=level.host.nbytes,
            modules_bytes_max=level.host.bytes_max,
            requests_total=self.requests,
            texts_total=self.texts,
            batches_total=self.batch_texts.count,
            requests_refused_total=gauges.refused,
            module_hits_total=host.hits,
            module_loads_total=host.loads,
            module_evictions_total=host.evictions,
            batch_texts_mean=self.batch_texts.mean,
            batch_vplms_mean=self.batch_vplms.mean,
            compute_seconds_total=self.compute.total,
            module_misses_total=host.misses,
            module_unloads_total=level.unloads,
            device_modules=level.device.modules,
            device_bytes=level.device.nbytes,
            device_bytes_max=level.device.bytes_max,
            device_hits_total=device.hits,
            device_loads_total=device.loads,
            device_evictions_total=device.evictions,
            batch_tokens_mean=self.batch_tokens.mean,
            padding_share=gauges.padding_share,
            prepare_seconds_total=self.prepare.total,
            queue_seconds_mean=self.queue.mean,
            load_seconds_mean=self.load.mean,
            loop_lag_seconds_max=self.lag_s_max,
            prediction_ratio_mean=self.ratio.mean,
            processors_rented=gauges.rented,
            ngrams_total=gauges.stand_ins.ngrams,
            ngrams_found_total=gauges.stand_ins.found,
            ngram_rows_computed_total=gauges.stand_ins.computed,
            ngram_rows=gauges.stand_ins.rows,
            ngram_rows_bytes=gauges.stand_ins.table_bytes,
            requests_by_outcome=dict(self.outcomes),
            batches_by_close=dict(self.closes),
            latencies=tuple(
                ClassLatency(str(each), held.count, held.quantile(0.5), held.quantile(0.99))
                for each, held in self.latency.items()
                if held.count
            ),
        )
