"""Values of accounts, and how they go over the wire."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

from google.protobuf.message import Message
from hypothesis import strategies as st

from smile import accounting as a
from smile import codec

BIG = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIME = st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
COUNTS = st.builds(a.Counts, BIG, BIG, BIG, BIG, BIG, BIG, BIG)
LIMITS = st.dictionaries(st.sampled_from(a.Limit), BIG)
USES = st.builds(a.LimitUse, st.sampled_from(a.Limit), BIG, st.none() | BIG, TIME)
DAYS = st.builds(a.UsageDay, st.dates(date(2000, 1, 1), date(2100, 1, 1)), COUNTS, BIG, BIG)
ACCOUNTING_PAIRS: dict[
    str, tuple[st.SearchStrategy[Any], Callable[..., Message], Callable[..., Any]]
] = {
    "counts": (COUNTS, codec.counts_to_pb, codec.counts_from_pb),
    "limit_use": (USES, codec.limit_use_to_pb, codec.limit_use_from_pb),
    "tenant_limits": (
        st.builds(a.TenantLimits, TEXT, st.lists(USES, max_size=3).map(tuple)),
        codec.tenant_limits_to_pb,
        codec.tenant_limits_from_pb,
    ),
    "tenant_usage": (
        st.builds(a.TenantUsage, TEXT, COUNTS, BIG, BIG),
        codec.tenant_usage_to_pb,
        codec.tenant_usage_from_pb,
    ),
    "usage_day": (DAYS, codec.usage_day_to_pb, codec.usage_day_from_pb),
    "usage_row": (
        st.builds(a.UsageRow, TEXT, TEXT, COUNTS),
        codec.usage_row_to_pb,
        codec.usage_row_from_pb,
    ),
}
