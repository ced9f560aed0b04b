"""What tenants use of the processor: requests when answered, texts, tokens and compute when
computed. See `smile.client.metering`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from services.processor.requests import Answered, Failed
from smile.accounting import MICROSECONDS, Counts, Limit
from smile.client.metering import NOT_TOLD_APART, Bookkeeper, Meter, MeterOptions
from smile.names import TenantId, VplmName

LARGE_TEXTS, LARGE_TOKENS = 100, 10_000  # of a request that is not served on trust
LIMITS = (Limit.REQUESTS_PER_DAY, Limit.TEXTS_PER_DAY, Limit.TOKENS_PER_DAY)


class ProcessorMeter:
    """Counts what is answered and computed. For use on the event loop only.

    Args:
        books: Who takes reports; None keeps counts to oneself.
        every_s: Between reports.
    """

    def __init__(
        self,
        books: Bookkeeper | None = None,
        every_s: float = 10.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.meter = Meter(books, MeterOptions(LIMITS, every_s), now)

    async def admit(self, tenant: TenantId, texts: int, tokens: int) -> None:
        """Raises `QuotaExceeded` where a tenant has less left of its day than a request asks for:
        `tokens` is about how many. A small one of a tenant that nothing is known of yet may pass.
        """
        meter = self.meter
        if (texts >= LARGE_TEXTS or tokens >= LARGE_TOKENS) and not meter.knows(tenant):
            await meter.meet(tenant)
        if meter.limited(tenant):
            meter.check(tenant, Counts(1, texts, tokens))

    def answered(self, vplm: VplmName) -> None:
        """A request got its answer."""
        account = self.meter.account(vplm.tenant)
        account.total.requests += 1
        self.meter.tally(account, vplm.vplm).requests += 1

    def answered_fanout(self, tenant: TenantId) -> None:
        """A request to several vPLMs did: it is none of theirs."""
        account = self.meter.account(tenant)
        account.total.requests += 1
        self.meter.tally(account, NOT_TOLD_APART).requests += 1

    def computed(self, outcomes: Sequence[Answered | Failed], compute_s: float) -> None:
        """A batch left the device: each chunk has its tokens' share of the time."""
        done = [outcome.chunk for outcome in outcomes if isinstance(outcome, Answered)]
        if not done:
            return
        meter = self.meter
        token_us = MICROSECONDS * compute_s / max(sum(chunk.tokens for chunk in done), 1)
        for chunk in done:
            account = meter.account(chunk.tenant)
            vplm = NOT_TOLD_APART if chunk.vplm is None else chunk.vplm.vplm
            total, tally = account.total, meter.tally(account, vplm)
            texts, tokens = len(chunk.texts), chunk.tokens
            total.texts += texts
            total.tokens += tokens
            tally.texts += texts
            tally.tokens += tokens
            tally.compute_us += token_us * tokens
