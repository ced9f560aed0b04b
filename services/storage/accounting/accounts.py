"""The parts of accounting, put together over one object store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from services.storage.accounting.journal import Journal
from services.storage.accounting.reports import DayReports
from services.storage.accounting.standing import Standings
from services.storage.identity import Identity
from smile.store.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class Accounts:
    """What was reported, who may use how much, and what was used by day."""

    journal: Journal
    standings: Standings
    reports: DayReports

    @classmethod
    def build(cls, store: ObjectStore, identity: Identity) -> Self:
        journal = Journal(store)
        return cls(journal, Standings(identity, journal), DayReports(store, journal))
