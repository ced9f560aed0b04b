"""What services tell storage's accounts, and ask of them, with the key that services share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import grpc

from smile import codec
from smile.accounting import LimitUse, TenantLimits
from smile.client.metering import UsageReport
from smile.names import TenantId
from smile.rpc.channel import acting_for
from smile.rpc.status import calling
from smile.v1 import accounting_pb2, accounting_pb2_grpc

PART_ROWS_MAX = 200  # of a message: it is made between other requests
REPORT_TIMEOUT_S = 20.0
LIMITS_TIMEOUT_S = 10.0


class Books:
    """Storage's accounts over `channel`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._accounts = accounting_pb2_grpc.AccountingServiceStub(channel)

    async def report(self, report: UsageReport) -> Mapping[str, tuple[LimitUse, ...]]:
        """How much of their day tenants have used that have a limit of it, of those reported."""
        with calling():
            response = await self._accounts.ReportUsage(_parts(report), timeout=REPORT_TIMEOUT_S)
        return {
            standing.tenant: tuple(map(codec.limit_use_from_pb, standing.limits))
            for standing in response.standings
        }

    async def limits(self, tenant: TenantId) -> TenantLimits:
        """A tenant's limits, and how much of today's is used. Raises `NotFound`."""
        request = accounting_pb2.GetLimitsRequest(name=f"tenants/{tenant}")
        with acting_for(tenant), calling():
            response = await self._accounts.GetLimits(request, timeout=LIMITS_TIMEOUT_S)
        return codec.tenant_limits_from_pb(response)


async def _parts(report: UsageReport) -> AsyncIterator[accounting_pb2.ReportUsageRequest]:
    """A report in messages, the first of which says whose and of when."""
    yield accounting_pb2.ReportUsageRequest(
        reporter=report.reporter, day=report.day.isoformat(), tenants=report.tenants[:PART_ROWS_MAX]
    )
    for start in range(PART_ROWS_MAX, len(report.tenants), PART_ROWS_MAX):
        yield accounting_pb2.ReportUsageRequest(
            tenants=report.tenants[start : start + PART_ROWS_MAX]
        )
    for start in range(0, len(report.rows), PART_ROWS_MAX):
        yield accounting_pb2.ReportUsageRequest(
            rows=map(codec.usage_row_to_pb, report.rows[start : start + PART_ROWS_MAX])
        )
