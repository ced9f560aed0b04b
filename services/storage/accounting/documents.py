"""What accounting keeps as JSON. Counts are lists of numbers in the order of `Counts`: eight, or
seven from before whole models were told apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeAlias

from pydantic import Field

from services.storage.records import Document
from smile.accounting import Counts, UsageRow

Kept: TypeAlias = Annotated[tuple[int, ...], Field(min_length=7, max_length=8)]


class ReporterDay(Document):
    """What one reporter has counted of one day, by tenant and vPLM id ('' : not told apart)."""

    rows: dict[str, dict[str, Kept]] = Field(default_factory=dict)

    def grown(self, rows: Iterable[UsageRow]) -> ReporterDay:
        """With rows that are new or larger."""
        tenants = dict(self.rows)
        copied: set[str] = set()
        for row in rows:
            if row.tenant not in copied:
                tenants[row.tenant] = dict(tenants.get(row.tenant, {}))
                copied.add(row.tenant)
            mine = tenants[row.tenant]
            kept = mine.get(row.vplm)
            counts = row.counts if kept is None else row.counts.most(Counts(*kept))
            mine[row.vplm] = counts.numbers
        return ReporterDay.model_construct(schema_version=1, rows=tenants)

    def total(self, tenant: str) -> Counts:
        """Of one tenant."""
        return added(Counts(*kept) for kept in self.rows.get(tenant, {}).values())


class DayTotals(Document):
    """One day of all tenants, once it is over.

    Attributes:
        journal: SHA-256 of what it was added up from: another one means that counts came late.
        counts: By tenant.
        stored: Bytes and vPLMs by tenant, when the day was closed first.
    """

    journal: str
    counts: dict[str, Kept]
    stored: dict[str, tuple[int, int]] = Field(default_factory=dict)


class TenantDay(Document):
    """One day of one tenant, once it is over: counts by vPLM id ('' : not told apart)."""

    rows: dict[str, Kept] = Field(default_factory=dict)
    stored_bytes: int = 0
    vplm_count: int = 0


def added(counts: Iterable[Counts]) -> Counts:
    """The sum."""
    total = Counts()
    for each in counts:
        total += each
    return total


def folded(documents: Iterable[ReporterDay]) -> dict[str, dict[str, Counts]]:
    """What all reporters of a day counted, by tenant and vPLM id."""
    found: dict[str, dict[str, Counts]] = {}
    for document in documents:
        for tenant, rows in document.rows.items():
            mine = found.setdefault(tenant, {})
            for vplm, kept in rows.items():
                mine[vplm] = mine.get(vplm, Counts()) + Counts(*kept)
    return found
