"""Who may queue: a bounded number of texts and tokens in total, and a share of both for each
tenant.

Admission happens before any work is done, so tokens are estimates at first and exact once the texts
are tokenised. A refusal comes at once and says when to come back: after the time the device needs
for what is queued.

A request is refused, too, if its deadline cannot be met: if the device, at its best, would need
longer than is left for the request and what goes before it by its tenant's fair share (`shares`).
That is a lower bound, of which `DEADLINE_MARGIN` is held against the time left, as estimates of
tokens err upwards; so nothing is refused that had a chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from services.processor.scheduling.shares import FairShares
from smile.errors import DeadlineExceeded, InvalidArgument, Overloaded, Unavailable
from smile.names import TenantId

RETRY_S_MIN = 0.05
RETRY_S_MAX = 30.0
RATE_SMOOTHING = 0.2  # weight of the newest batch in the drain rate
DEADLINE_MARGIN = 0.5  # part of the predicted time that must fit into what is left
UNMEETABLE = "DEADLINE_UNMEETABLE"

STALE_MAX = 1_024  # tenants whose share is brought up to date in one go

BulkSeconds: TypeAlias = Callable[[int, int], float]


@dataclass(slots=True)
class Load:
    """Texts and tokens inside."""

    texts: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may be inside: queued and being computed.

    Attributes:
        texts_max: Of all tenants.
        tokens_max: Of all tenants.
        tenant_share: Part of both that one tenant may hold, above 0 and up to 1.
        total: What all tenants together may hold.
        tenant: What one tenant may hold.
    """

    texts_max: int
    tokens_max: int
    tenant_share: float
    total: Load = field(init=False)
    tenant: Load = field(init=False)

    def __post_init__(self) -> None:
        if min(self.texts_max, self.tokens_max) < 1 or not 0 < self.tenant_share <= 1:
            raise ValueError(
                f"expected positive limits and a share in (0, 1], got {self.texts_max} texts, "
                f"{self.tokens_max} tokens and {self.tenant_share}"
            )
        share = [
            max(1, math.floor(limit * self.tenant_share))
            for limit in (self.texts_max, self.tokens_max)
        ]
        object.__setattr__(self, "total", Load(self.texts_max, self.tokens_max))
        object.__setattr__(self, "tenant", Load(*share))


_NOTHING = Load()


@dataclass(slots=True, eq=False)
class Permit:
    """Proof of admission; only `Admission.admit` makes one. Leaving it gives the room back.

    `tokens` is an estimate until `settle` has been told of every text.
    """

    tenant: TenantId
    texts: int
    tokens: int
    _admission: Admission = field(repr=False)

    def settle(self, estimated: int, exact: int) -> None:
        """Some of the texts turned out to have `exact` tokens where `estimated` were counted."""
        self.tokens += exact - estimated
        self._admission._count(self.tenant, 0, exact - estimated)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission._count(self.tenant, -self.texts, -self.tokens)
        self.texts = self.tokens = 0


def _unmeasured(_tokens: int, _texts: int) -> float:
    return 0.0


def _weight_one(_: TenantId) -> float:
    return 1.0


def _nothing() -> None:
    return None


class Admission:
    """Counts what is inside. For use on the event loop only.

    Args:
        limits: How much may be inside.
        bulk_s: The least seconds that so many tokens and texts take; see `LatencyModel.bulk_s`.
        weight_of: A tenant's weight, as the scheduler's.
        slack_tokens: See `FairShares`.
        on_unmeetable: Told of every refusal for what `bulk_s` said.
        streams: Batches computed side by side.
    """

    def __init__(
        self,
        limits: QueueLimits,
        *,
        bulk_s: BulkSeconds = _unmeasured,
        weight_of: Callable[[TenantId], float] = _weight_one,
        slack_tokens: int = 0,
        on_unmeetable: Callable[[], None] = _nothing,
        streams: int = 1,
    ) -> None:
        self.limits = limits
        self.inside = Load()
        self.refusals: Counter[str] = Counter()  # by reason
        self._bulk_s = bulk_s
        self._weight_of = weight_of
        self._on_unmeetable = on_unmeetable
        self._streams = streams
        self._shares = FairShares(slack_tokens)
        self._stale: set[TenantId] = set()  # tenants whose load `_shares` does not know yet
        self._tenants: dict[TenantId, Load] = {}
        self._tokens_per_s: float | None = None
        self._closed: str | None = "the processor is starting"

    @property
    def refused(self) -> int:
        """Requests refused for now, whatever the reason."""
        return self.refusals.total()

    def open(self) -> None:
        """Admit from now on."""
        self._closed = None

    def close(self, why: str) -> None:
        """Admit nothing from now on."""
        self._closed = why

    def admit(self, tenant: TenantId, texts: int, tokens: int, left_s: float = math.inf) -> Permit:
        """Room for `texts` texts of about `tokens` tokens, of which the caller awaits the answers
        for `left_s` more seconds.

        Raises:
            Overloaded: the queue, or the tenant's share of it, is full, or what goes before this
                request takes longer than is left.
            DeadlineExceeded: the request alone takes longer than is left.
            InvalidArgument: the request would not fit into an empty queue.
            Unavailable: the processor is starting or stopping.
        """
        if self._closed is not None:
            raise Unavailable(self._closed, retry_after=1.0)
        share, held = self.limits.tenant, self._tenants.get(tenant, _NOTHING)
        if texts > share.texts or tokens > share.tokens:
            raise _too_large(texts, tokens, share)
        if held.texts + texts > share.texts or held.tokens + tokens > share.tokens:
            raise self._full(held, share, texts, tokens, "your share of ")
        total, inside = self.limits.total, self.inside
        if inside.texts + texts > total.texts or inside.tokens + tokens > total.tokens:
            raise self._full(inside, total, texts, tokens, "")
        if left_s < math.inf:
            self._check_deadline(tenant, texts, tokens, left_s)
        self._count(tenant, texts, tokens)
        return Permit(tenant, texts, tokens, self)

    def computed(self, tokens: int, seconds: float) -> None:
        """A batch has been computed: what the drain rate is measured by."""
        rate = self._streams * tokens / max(seconds, 1e-6)
        if self._tokens_per_s is None:
            self._tokens_per_s = rate
        self._tokens_per_s += RATE_SMOOTHING * (rate - self._tokens_per_s)

    def retry_after(self, held: Load) -> float:
        """Seconds until about half of `held` has been computed, as fast as lately."""
        if self._tokens_per_s is None:
            return 1.0
        wait_s = held.tokens / 2 / max(self._tokens_per_s, 1.0)
        return min(max(wait_s, RETRY_S_MIN), RETRY_S_MAX)

    def _full(self, held: Load, limit: Load, texts: int, tokens: int, whose: str) -> Overloaded:
        """Why there is no room for so much more."""
        retry_after = self.retry_after(self.inside)
        self.refusals["TENANT_QUEUE_FULL" if whose else Overloaded.reason] += 1
        return Overloaded(
            f"{whose}the queue holds at most {limit.texts} texts and {limit.tokens} tokens; inside "
            f"are {held.texts} texts and {held.tokens} tokens, and this request would add {texts} "
            f"and about {tokens}; come back in {retry_after:.2f} s",
            reason="TENANT_QUEUE_FULL" if whose else None,
            metadata={"texts_limit": str(limit.texts), "texts": str(held.texts)},
            retry_after=retry_after,
        )

    def _check_deadline(self, tenant: TenantId, texts: int, tokens: int, left_s: float) -> None:
        everything_s = self._bulk_s(self.inside.tokens + tokens, self.inside.texts + texts)
        if DEADLINE_MARGIN * everything_s <= left_s:
            return
        alone_s = self._bulk_s(tokens, texts)
        if DEADLINE_MARGIN * alone_s > left_s:
            self._unmeetable()
            raise DeadlineExceeded(
                f"{texts} texts of about {tokens} tokens take about {alone_s:.3f} s, and "
                f"{left_s:.3f} s are left; allow more time, or send less",
                reason=UNMEETABLE,
                metadata=_seconds(alone_s, left_s),
            )
        self._share()
        before = self._shares.before(tenant, tokens, self._weight_of(tenant))
        predicted_s = self._bulk_s(math.floor(before), texts)
        if DEADLINE_MARGIN * predicted_s <= left_s:
            return
        self._unmeetable()
        retry_after = min(max(predicted_s - left_s, RETRY_S_MIN), RETRY_S_MAX)
        raise Overloaded(
            f"the request and what goes before it take about {predicted_s:.3f} s, and {left_s:.3f} "
            f"s are left; come back in {retry_after:.2f} s",
            reason=UNMEETABLE,
            metadata=_seconds(predicted_s, left_s),
            retry_after=retry_after,
        )

    def _unmeetable(self) -> None:
        self.refusals[UNMEETABLE] += 1
        self._on_unmeetable()

    def _count(self, tenant: TenantId, texts: int, tokens: int) -> None:
        if (held := self._tenants.get(tenant)) is None:
            held = self._tenants[tenant] = Load()
        inside = self.inside
        held.texts += texts
        held.tokens += tokens
        inside.texts += texts
        inside.tokens += tokens
        if held.texts == 0:
            del self._tenants[tenant]
        self._stale.add(tenant)
        if len(self._stale) > STALE_MAX:
            self._share()

    def _share(self) -> None:
        """Tell `_shares` what has come and gone: few requests have to be compared with others'."""
        for tenant in self._stale:
            held = self._tenants.get(tenant, _NOTHING)
            self._shares.set(tenant, held.tokens, self._weight_of(tenant))
        self._stale.clear()


def _seconds(predicted_s: float, left_s: float) -> dict[str, str]:
    return {"predicted_s": f"{predicted_s:.3f}", "left_s": f"{left_s:.3f}"}


def _too_large(texts: int, tokens: int, share: Load) -> InvalidArgument:
    """Why a request would not fit into an empty queue."""
    return InvalidArgument(
        f"a request may have at most {share.texts} texts and about {share.tokens} tokens in all, "
        f"got {texts} texts and about {tokens} tokens; send it in parts",
        reason="REQUEST_TOO_LARGE",
        metadata={"texts_limit": str(share.texts), "tokens_limit": str(share.tokens)},
    )
