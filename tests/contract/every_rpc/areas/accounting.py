"""Requests of accounts. Reports and limits set are not for tenants."""

from __future__ import annotations

from smile.v1 import accounting_pb2
from tests.contract.every_rpc.area import Area

AREA = Area(
    requests={
        "AccountingService.GetLimits": lambda own, _: accounting_pb2.GetLimitsRequest(
            name=own.parent
        ),
    },
    names=frozenset({"GetLimitsRequest.name"}),
    free=frozenset({"first_day", "last_day"}),
)
