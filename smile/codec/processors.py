"""Rented processors."""

from __future__ import annotations

from smile.codec.tables import (
    PROCESSOR_STATES,
    duration_to_pb,
    exactness_from_pb,
    exactness_to_pb,
    time_from_pb,
    time_to_pb,
)
from smile.errors import InvalidArgument
from smile.processors import Processor, ProcessorCounters, ProcessorTerms
from smile.v1 import processor_pb2

WEIGHT_MIN = 0.1
_COUNTERS = tuple(ProcessorCounters.__dataclass_fields__)


def terms_to_pb(terms: ProcessorTerms) -> processor_pb2.ProcessorTerms:
    return processor_pb2.ProcessorTerms(
        weight=terms.weight,
        concurrency_max=terms.concurrency_max,
        texts_per_second=terms.texts_per_s,
        burst_texts=terms.burst_texts,
        pinned=terms.pinned,
        idle=duration_to_pb(terms.idle_s) if terms.idle_s else None,
        exactness=exactness_to_pb(terms.exactness),
    )


def terms_from_pb(message: processor_pb2.ProcessorTerms) -> ProcessorTerms:
    """Raises `InvalidArgument` for a weight too small, and for a burst without a rate."""
    if 0 < message.weight < WEIGHT_MIN:
        raise InvalidArgument(
            f"a weight is {WEIGHT_MIN} to 10, got {message.weight:g}",
            violations=[("terms.weight", f"must be at least {WEIGHT_MIN}")],
        )
    if message.burst_texts and not message.texts_per_second:
        raise InvalidArgument(
            f"a burst belongs to a rate, got {message.burst_texts} texts at once and no texts per "
            f"second",
            violations=[("terms.texts_per_second", "must be above 0 where there is a burst")],
        )
    return ProcessorTerms(
        weight=message.weight or ProcessorTerms().weight,
        concurrency_max=message.concurrency_max,
        texts_per_s=message.texts_per_second,
        burst_texts=message.burst_texts,
        pinned=message.pinned,
        idle_s=message.idle.ToTimedelta().total_seconds(),
        exactness=exactness_from_pb(message.exactness),
    )


def processor_to_pb(processor: Processor) -> processor_pb2.Processor:
    counters = {name: getattr(processor.counters, name) for name in _COUNTERS}
    return processor_pb2.Processor(
        name=processor.name,
        vplm=processor.vplm,
        terms=terms_to_pb(processor.terms),
        state=PROCESSOR_STATES.to_pb(processor.state),
        counters=processor_pb2.ProcessorCounters(**counters),
        create_time=time_to_pb(processor.create_time),
        last_used_time=time_to_pb(processor.last_used_time),
    )


def processor_from_pb(message: processor_pb2.Processor) -> Processor:
    counters = {name: getattr(message.counters, name) for name in _COUNTERS}
    return Processor(
        name=message.name,
        vplm=message.vplm,
        terms=terms_from_pb(message.terms),
        state=PROCESSOR_STATES.from_pb(message.state),
        counters=ProcessorCounters(**counters),
        create_time=time_from_pb(message, "create_time"),
        last_used_time=time_from_pb(message, "last_used_time"),
    )
