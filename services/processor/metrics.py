"""What Prometheus scrapes: the counters of `stats`, put into its words when it asks.

Nothing here runs per request or per batch. Labels come from fixed sets, and none names a tenant.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from socketserver import TCPServer, ThreadingMixIn
from typing import Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from services.processor.lanes.dispatch import TierLevel
from services.processor.materialize.level import StandInLevel
from services.processor.stats import Counters, Gauges, Histogram
from smile.logs import get_logger
from smile.rpc.freshness import Lookup

PREFIX = "smile_processor"
LAG_EVERY_S = 0.25


class Source(Protocol):
    """What is told: the pipeline."""

    @property
    def counters(self) -> Counters: ...
    def gauges(self) -> Gauges: ...


class ProcessorCollector(Collector):
    """All metrics of a processor, as of now."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        counters, gauges = self._source.counters, self._source.gauges()
        yield from _requests(counters)
        yield from _batches(counters)
        yield from _memory(counters, gauges)
        yield from _levels(counters, gauges)
        yield from _stand_ins(gauges.stand_ins)


def _requests(counters: Counters) -> Iterator[Metric]:
    yield _counts("requests", "Requests that are over.", "outcome", counters.outcomes)
    yield _counter("texts", "Texts of requests admitted.", counters.texts)
    latency = {str(each): held for each, held in counters.latency.items()}
    yield _histogram("request_seconds", "Answered requests.", latency, label="tenant_class")
    yield _histogram("queue_seconds", "Wait for a batch.", {"": counters.queue})
    yield _histogram("load_wait_seconds", "Wait for a module.", {"": counters.load_wait})


def _batches(counters: Counters) -> Iterator[Metric]:
    yield _counts("batches", "Batches, by what ended them.", "closed", counters.closes)
    yield _histogram("batch_texts", "Texts of a batch.", {"": counters.batch_texts})
    yield _histogram("batch_tokens", "Tokens of a batch.", {"": counters.batch_tokens})
    yield _histogram("batch_vplms", "vPLMs of a batch.", {"": counters.batch_vplms})
    yield _histogram("prepare_seconds", "Making a batch ready.", {"": counters.prepare})
    yield _histogram("compute_seconds", "Computing a batch.", {"": counters.compute})
    help_ = "Seconds a batch took over those predicted."
    yield _histogram("prediction_ratio", help_, {"": counters.ratio})


def _memory(counters: Counters, gauges: Gauges) -> Iterator[Metric]:
    level = gauges.level
    tiers = {"disk": gauges.disk, "host": level.host, "device": level.device}

    def by_tier(value: Callable[[TierLevel], int]) -> dict[str, int]:
        return {name: value(tier) for name, tier in tiers.items()}

    for name, help_, value in _TIER_COUNTS:
        yield _counts(name, help_, "tier", by_tier(value))
    for name, help_, value in _TIER_LEVELS:
        yield _gauges(name, help_, "tier", by_tier(value))
    yield _counter("module_unloads", "Left memory idle or released.", gauges.level.unloads)
    yield _histogram("load_seconds", "Loading a module.", {"": counters.load})


_TIER_COUNTS: tuple[tuple[str, str, Callable[[TierLevel], int]], ...] = (
    ("module_hits", "Uses that found the module.", lambda tier: tier.counters.hits),
    ("module_misses", "Uses that did not.", lambda tier: tier.counters.misses),
    ("module_loads", "Modules brought in.", lambda tier: tier.counters.loads),
    ("module_loaded_bytes", "What those take.", lambda tier: tier.counters.loaded_bytes),
    ("module_evictions", "Left for others.", lambda tier: tier.counters.evictions),
)
_TIER_LEVELS: tuple[tuple[str, str, Callable[[TierLevel], int]], ...] = (
    ("modules", "Modules in memory.", lambda tier: tier.modules),
    ("modules_bytes", "What they take.", lambda tier: tier.nbytes),
    ("modules_bytes_max", "What they may take.", lambda tier: tier.bytes_max),
)


def _levels(counters: Counters, gauges: Gauges) -> Iterator[Metric]:
    yield _counts("admission_refusals", "Refused at once.", "reason", gauges.refusals)
    yield _gauge("queue_texts", "Texts that wait.", gauges.level.queue_texts)
    yield _gauge("queue_texts_max", "Texts that may be inside.", gauges.queue_texts_max)
    yield _gauge("rented", "Processors that are rented.", gauges.rented)
    help_ = "Of the tokens computed, those that were in no text."
    yield _gauge("padding_share", help_, gauges.padding_share)
    yield _gauge("feed_live", "Whether storage tells of changes.", gauges.feed_live)
    help_ = "Names and keys looked up, by whether storage was asked."
    lookups = {str(each): gauges.lookups.get(each, 0) for each in Lookup}
    yield _counts("lookups", help_, "lookup", lookups)
    yield _histogram("loop_lag_seconds", "The event loop was late.", {"": counters.lag})


def _stand_ins(level: StandInLevel) -> Iterator[Metric]:
    yield _counter("ngrams", "N-grams of materialised texts.", level.ngrams)
    yield _counter("ngrams_found", "Those that had a row.", level.found)
    yield _counter("ngram_rows_computed", "Rows computed for the others.", level.computed)
    yield _gauge("ngram_rows", "Rows at hand.", level.rows)
    yield _gauge("ngram_rows_bytes", "What they take.", level.table_bytes)


def _counter(name: str, help_: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}_{name}", help_, value=value)


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_, value=value)


def _counts(name: str, help_: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", help_, labels=[label])
    for key, value in sorted(dict(values).items()):
        family.add_metric([key], value)
    return family


def _gauges(name: str, help_: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", help_, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _histogram(
    name: str, help_: str, values: Mapping[str, Histogram], *, label: str | None = None
) -> Metric:
    family = HistogramMetricFamily(
        f"{PREFIX}_{name}", help_, labels=None if label is None else [label]
    )
    for key, held in values.items():
        family.add_metric([] if label is None else [key], _buckets(held), held.total)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Upper bounds and how many values are at or below each, all of them last."""
    found: list[tuple[str, float]] = []
    seen = 0
    for bound, count in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
        seen += count
        found.append(("+Inf" if bound == float("inf") else str(bound), seen))
    return found


@asynccontextmanager
async def exposed(source: Source, host: str, port: int) -> AsyncIterator[int]:
    """Metrics at `http://host:port/metrics` until left, told by a thread of their own; with port 0
    nowhere. The event loop's lag is watched either way.
    """
    watching = asyncio.create_task(_watch_lag(source.counters))
    server = _listening(source, host, port) if port else None
    try:
        yield port
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        if server is not None:
            await asyncio.to_thread(server.shutdown)
            server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    """Answers each scrape in a thread."""

    daemon_threads = True

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # WSGIServer's would ask the DNS for this machine's name
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""


def _listening(source: Source, host: str, port: int) -> _Server:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ProcessorCollector(source))
    server = _Server((host, port), _Silent)
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    get_logger().info("metrics", address=f"http://{host}:{port}/metrics")
    return server


async def _watch_lag(counters: Counters) -> None:
    loop = asyncio.get_running_loop()
    while True:
        asked = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        counters.late(max(loop.time() - asked, 0.0))
