"""What the processor counts of requests, chunks and batches."""

from __future__ import annotations

import numpy as np

from services.processor.metering import ProcessorMeter
from services.processor.requests import Answered, Chunk, Failed, Ride
from smile.accounting import Counts
from smile.errors import Unavailable
from smile.names import TenantId, VplmName
from tests.unit.services.processor.conftest import Maker

ACME = TenantId("acme")
TOPICS = VplmName(ACME, "topics")


def answered(chunk: Chunk) -> Answered:
    outputs = (np.zeros(2, np.float32),) * len(chunk.texts)
    return Answered(chunk, outputs, Ride(1, 0.0, 0.0, 1, 1))


def counts(meter: ProcessorMeter, tenant: str = "acme") -> dict[str, Counts]:
    account = meter.meter.account(tenant)
    return {vplm: tally.counts() for vplm, tally in account.vplms.items()}


def test_a_batch_is_shared_by_the_tokens_that_each_has_in_it(make: Maker) -> None:
    meter = ProcessorMeter()
    chunks = [
        make.chunk("acme", 30, texts=3, vplm=TOPICS),
        make.chunk("acme", 10),
        make.chunk("globex", 60, texts=2),
    ]
    failed = Failed(make.chunk("acme", 50, texts=5), Unavailable("no module"))
    meter.computed([*map(answered, chunks), failed], compute_s=0.2)
    meter.answered(TOPICS)
    assert counts(meter) == {
        "topics": Counts(requests=1, texts=3, tokens=30, compute_us=60_000),
        "": Counts(texts=1, tokens=10, compute_us=20_000),
    }
    assert counts(meter, "globex") == {"": Counts(texts=2, tokens=60, compute_us=120_000)}
    total = meter.meter.account("acme").total
    assert (total.requests, total.texts, total.tokens) == (1, 4, 40)


def test_a_fan_out_is_one_request_of_its_tenant() -> None:
    meter = ProcessorMeter()
    meter.answered_fanout(ACME)
    assert counts(meter) == {"": Counts(requests=1)}


def test_a_batch_of_failures_counts_nothing(make: Maker) -> None:
    meter = ProcessorMeter()
    meter.computed([Failed(make.chunk("acme"), Unavailable("no"))], 0.1)
    assert counts(meter) == {}
