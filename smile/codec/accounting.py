"""Limits, counts and days."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from smile import accounting as a
from smile.codec.tables import EnumTable, time_from_pb, time_to_pb
from smile.v1 import accounting_pb2 as pb

LIMITS = EnumTable(a.Limit, "LIMIT", pb.Limit)


def counts_to_pb(counts: a.Counts) -> pb.UsageCounts:
    return pb.UsageCounts(
        requests=counts.requests,
        texts=counts.texts,
        tokens=counts.tokens,
        compute_us=counts.compute_us,
        training_us=counts.training_us,
        charged_us=counts.charged_us,
        jobs=counts.jobs,
        full_us=counts.full_us,
    )


def counts_from_pb(message: pb.UsageCounts) -> a.Counts:
    return a.Counts(
        message.requests,
        message.texts,
        message.tokens,
        message.compute_us,
        message.training_us,
        message.charged_us,
        message.jobs,
        message.full_us,
    )


def usage_row_to_pb(row: a.UsageRow) -> pb.UsageRow:
    return pb.UsageRow(tenant=row.tenant, vplm=row.vplm, counts=counts_to_pb(row.counts))


def usage_row_from_pb(message: pb.UsageRow) -> a.UsageRow:
    return a.UsageRow(message.tenant, message.vplm, counts_from_pb(message.counts))


def limit_use_to_pb(use: a.LimitUse) -> pb.LimitUse:
    return pb.LimitUse(
        limit=LIMITS.to_pb(use.limit),
        allowed=use.allowed,
        used=use.used,
        reset_time=time_to_pb(use.reset_time),
    )


def limit_use_from_pb(message: pb.LimitUse) -> a.LimitUse:
    return a.LimitUse(
        LIMITS.from_pb(message.limit),
        message.allowed,
        message.used if message.HasField("used") else None,
        time_from_pb(message, "reset_time"),
    )


def limit_values(limits: Mapping[a.Limit, int | None]) -> list[pb.LimitValue]:
    return [
        pb.LimitValue(limit=LIMITS.to_pb(limit), value=value) for limit, value in limits.items()
    ]


def limits_of(messages: Iterable[pb.LimitValue]) -> dict[a.Limit, int | None]:
    """By limit; None: back to the default."""
    return {
        LIMITS.from_pb(each.limit): each.value if each.HasField("value") else None
        for each in messages
    }


def tenant_limits_to_pb(limits: a.TenantLimits) -> pb.TenantLimits:
    return pb.TenantLimits(name=limits.name, limits=[limit_use_to_pb(u) for u in limits.limits])


def tenant_limits_from_pb(message: pb.TenantLimits) -> a.TenantLimits:
    return a.TenantLimits(message.name, tuple(map(limit_use_from_pb, message.limits)))


def usage_day_to_pb(day: a.UsageDay) -> pb.UsageDay:
    return pb.UsageDay(
        day=day.day.isoformat(),
        counts=counts_to_pb(day.counts),
        stored_bytes=day.stored_bytes,
        vplm_count=day.vplm_count,
    )


def usage_day_from_pb(message: pb.UsageDay) -> a.UsageDay:
    return a.UsageDay(
        a.parse_day(message.day),
        counts_from_pb(message.counts),
        message.stored_bytes,
        message.vplm_count,
    )


def tenant_usage_to_pb(usage: a.TenantUsage) -> pb.TenantUsage:
    return pb.TenantUsage(
        name=usage.name,
        counts=counts_to_pb(usage.counts),
        stored_bytes=usage.stored_bytes,
        vplm_count=usage.vplm_count,
    )


def tenant_usage_from_pb(message: pb.TenantUsage) -> a.TenantUsage:
    return a.TenantUsage(
        message.name, counts_from_pb(message.counts), message.stored_bytes, message.vplm_count
    )
