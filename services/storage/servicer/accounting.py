"""`AccountingService`: what tenants use and may use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from services.storage.accounting.accounts import Accounts
from smile import codec
from smile.accounting import Limit, UsageRow, parse_day
from smile.errors import InvalidArgument
from smile.names import TenantName
from smile.pages import page_size
from smile.rpc.auth import current_principal, own
from smile.v1 import accounting_pb2, accounting_pb2_grpc

FULL_NAME = "smile.v1.AccountingService"
ROWS_MAX = 100_000

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"
_Reports: TypeAlias = AsyncIterator[accounting_pb2.ReportUsageRequest]


class AccountingServicer(accounting_pb2_grpc.AccountingServiceServicer):
    """Decodes, asks the accounts, encodes."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def ReportUsage(
        self, request: _Reports, context: Context
    ) -> accounting_pb2.ReportUsageResponse:
        first = await anext(request, None)
        if first is None or not first.reporter or not first.day:
            raise InvalidArgument(
                "the first message says who reports, and of which day", reason="HEADER_MISSING"
            )
        rows, tenants = await _gathered(first, request)
        await self._accounts.journal.add(parse_day(first.day), first.reporter, rows)
        standings = await self._accounts.standings.of_day(
            dict.fromkeys([*tenants, *(row.tenant for row in rows)])
        )
        return accounting_pb2.ReportUsageResponse(
            standings=[
                accounting_pb2.TenantStanding(
                    tenant=tenant, limits=[codec.limit_use_to_pb(use) for use in uses]
                )
                for tenant, uses in standings.items()
            ]
        )

    async def GetLimits(
        self, request: accounting_pb2.GetLimitsRequest, context: Context
    ) -> accounting_pb2.TenantLimits:
        name = own(request.name, TenantName.parse, current_principal())
        return codec.tenant_limits_to_pb(await self._accounts.standings.of(name.tenant))

    async def SetLimits(
        self, request: accounting_pb2.SetLimitsRequest, context: Context
    ) -> accounting_pb2.TenantLimits:
        name = own(request.name, TenantName.parse, current_principal())
        limits = await self._accounts.standings.set(name.tenant, _wanted(request))
        return codec.tenant_limits_to_pb(limits)

    async def ListUsage(
        self, request: accounting_pb2.ListUsageRequest, context: Context
    ) -> accounting_pb2.ListUsageResponse:
        days = self._accounts.reports.range(request.first_day, request.last_day)
        size = page_size(request.page_size)
        report = await self._accounts.reports.page(days, size, request.page_token)
        return accounting_pb2.ListUsageResponse(
            tenants=[codec.tenant_usage_to_pb(usage) for usage in report.tenants],
            days=[codec.usage_day_to_pb(day) for day in report.days],
            next_page_token=report.next_page_token,
        )


async def _gathered(
    first: accounting_pb2.ReportUsageRequest, others: _Reports
) -> tuple[list[UsageRow], list[str]]:
    """All rows, and all tenants asked about."""
    rows = list(map(codec.usage_row_from_pb, first.rows))
    tenants = list(first.tenants)
    async for message in others:
        rows += map(codec.usage_row_from_pb, message.rows)
        tenants += message.tenants
        if len(rows) + len(tenants) > ROWS_MAX:
            raise InvalidArgument(
                f"a report has at most {ROWS_MAX} rows and tenants asked about, got more",
                reason="REPORT_TOO_LONG",
                metadata={"limit": str(ROWS_MAX)},
            )
    return rows, tenants


def _wanted(request: accounting_pb2.SetLimitsRequest) -> dict[Limit, int | None]:
    wanted = codec.limits_of(request.limits)
    if len(wanted) < len(request.limits):
        raise InvalidArgument("a limit is set twice in one request", reason="LIMIT_REPEATED")
    return wanted
