"""All that is kept of vPLMs, together: what `StorageService` answers from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from services.storage.blobs import ByteBudget
from services.storage.catalog import Catalog
from services.storage.diffs import Diffs
from services.storage.grace import Grace
from services.storage.identity import Identity
from services.storage.quota import Ledger
from services.storage.trash import Trash
from services.storage.usage import UsageReports
from services.storage.version_trash import VersionTrash
from services.storage.versions import Versions
from smile.store.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class Shelves:
    """vPLMs, their versions, what is deleted of both, and what they cost."""

    catalog: Catalog
    versions: Versions
    trash: Trash
    version_trash: VersionTrash
    diffs: Diffs
    usage: UsageReports


@dataclass(frozen=True, slots=True)
class Emptying:
    """What takes out of the trash, for good, what nobody can have back any more."""

    vplms: Callable[[], Awaitable[int]]
    versions: Callable[[], Awaitable[int]]


def emptying(store: ObjectStore, grace: timedelta) -> Emptying:
    """For who runs beside the server, or instead of it."""
    ledger = Ledger(store)
    catalog = Catalog(store, Identity(store), ledger, ByteBudget(0))
    trash = Trash(store, catalog, ledger, Grace(store, grace))
    return Emptying(trash.sweep, VersionTrash(store, trash, ledger).sweep)
