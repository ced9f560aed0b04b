"""What a tenant stores, counted by listing it, beside what full models would take; what it may have
and what it used by day."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from services.storage import keys
from services.storage.accounting.accounts import Accounts
from services.storage.accounting.reports import TenantReport
from services.storage.documents import Documents, load_page
from services.storage.identity import Identity
from services.storage.quota import every_object
from services.storage.records import JobRecord, VersionManifest, VplmRecord
from smile import pages
from smile.accounting import Counts, DayRange, Limit, LimitUse
from smile.model.specs import Task
from smile.names import BackboneName, JobName, TenantId, VplmName
from smile.resources import SERVING, JobState, Usage, VplmUsage
from smile.store.objects import ObjectInfo, ObjectStore

FLOAT32_BYTES = 4
_BELOW_UID = re.compile(r"([^/]+)/([0-9a-f]+)/(versions|blobs)/[^/]+")


@dataclass(slots=True)
class _Contents:
    """What lies below one uid."""

    versions: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class _Count:
    """Sums over a tenant's objects."""

    stored_bytes: int = 0
    dataset_bytes: int = 0
    records: set[str] = field(default_factory=set)
    trashed: set[tuple[str, str]] = field(default_factory=set)
    contents: dict[str, dict[str, _Contents]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(_Contents))
    )

    def vplms(self) -> list[str]:
        """Ids with a record and at least one version: tombstones have none."""
        return sorted(
            vplm
            for vplm, uids in self.contents.items()
            if vplm in self.records
            and any(held.versions for uid, held in uids.items() if (vplm, uid) not in self.trashed)
        )


@dataclass(frozen=True, slots=True)
class UsageAsked:
    """Which rows, and of which days the use; None: of none."""

    page_size: int
    page_token: str = ""
    days: DayRange | None = None


class UsageReports:
    """Counts what is in the object store, and reads what was counted elsewhere."""

    def __init__(
        self, store: ObjectStore, identity: Identity, accounts: Accounts | None = None
    ) -> None:
        self._store = store
        self._documents = Documents(store)
        self._identity = identity
        self.accounts = accounts or Accounts.build(store, identity)

    async def of(self, tenant: TenantId, asked: UsageAsked) -> Usage:
        """A tenant's totals, and a page of rows by vPLM. Raises `NotFound`."""
        listing = f"usage of {tenant}"
        after = pages.place_of(asked.page_token, listing)
        quota_bytes = (await self._identity.tenant(tenant)).quota_bytes
        count = await self._count(tenant)
        vplms = count.vplms()
        report = TenantReport((), {})
        if asked.days is not None:
            report = await self.accounts.reports.of(tenant, asked.days)

        async def row(vplm: str) -> VplmUsage | None:
            counts = report.vplms.get(vplm, Counts())
            return await self._row(VplmName(tenant, vplm), count.contents[vplm], counts)

        wanted = [vplm for vplm in vplms if vplm > after]
        found, more = await load_page(wanted, row, asked.page_size)
        usage = Usage(
            name=f"tenants/{tenant}",
            stored_bytes=count.stored_bytes,
            dataset_bytes=count.dataset_bytes,
            quota_bytes=quota_bytes,
            vplm_count=len(vplms),
            vplms=tuple(usage for _, usage in found),
            next_page_token=pages.token_for(listing, found[-1][0]) if more else "",
        )
        if asked.page_token:
            return usage
        limits = await self._limits(tenant, usage)
        warnings = tuple(filter(None, (use.warning for use in limits)))
        return replace(usage, limits=limits, warnings=warnings, days=report.days)

    async def levels(self, tenant: TenantId) -> tuple[int, int]:
        """Bytes and vPLMs that a tenant stores."""
        count = await self._count(tenant)
        return count.stored_bytes, len(count.vplms())

    async def _limits(self, tenant: TenantId, usage: Usage) -> tuple[LimitUse, ...]:
        """All limits, each with how much of it is used."""
        running, queued = await self._jobs(tenant)
        used = {
            Limit.STORED_BYTES: usage.stored_bytes,
            Limit.VPLMS: usage.vplm_count,
            Limit.JOBS_QUEUED: queued,
            Limit.JOBS_RUNNING: running,
        }
        found = (await self.accounts.standings.of(tenant)).limits
        return tuple(
            replace(use, used=used[use.limit]) if use.limit in used else use for use in found
        )

    async def _jobs(self, tenant: TenantId) -> tuple[int, int]:
        """Jobs that have not ended: those that have begun, and those that wait."""
        prefix = keys.pending_jobs(tenant)
        places = [info.key.removeprefix(prefix) async for info in every_object(self._store, prefix)]

        async def state(job: str) -> JobState | None:
            stored = await self._documents.read(keys.job(JobName(tenant, job)), JobRecord)
            return stored.document.record.job.state if stored else None

        found, _ = await load_page(places, state, len(places), bytes_max=None)
        states = [state for _, state in found]
        return states.count(JobState.RUNNING), states.count(JobState.QUEUED)

    async def _count(self, tenant: TenantId) -> _Count:
        count = _Count()
        vplms, datasets = keys.vplms(tenant), keys.datasets(tenant)
        trash = keys.deleted_vplms(tenant)
        async for info in every_object(self._store, keys.owned(tenant)):
            count.stored_bytes += info.size
            if info.key.startswith(datasets) and info.key.endswith("/data"):
                count.dataset_bytes += info.size
            elif info.key.startswith(vplms):
                _count_vplm(count, info.key.removeprefix(vplms), info)
            elif info.key.startswith(trash):
                vplm, uid, *_ = info.key.removeprefix(trash).split("/")
                count.trashed.add((vplm, uid))
        for vplm, uid in tuple(count.trashed):
            if await self._lives(VplmName(tenant, vplm), uid):  # a deletion broke off
                count.trashed.remove((vplm, uid))
        return count

    async def _lives(self, name: VplmName, uid: str) -> bool:
        stored = await self._documents.read(keys.vplm(name), VplmRecord)
        return stored is not None and stored.document.deleted is None and stored.document.uid == uid

    async def _row(
        self, name: VplmName, contents: dict[str, _Contents], counts: Counts
    ) -> VplmUsage | None:
        stored = await self._documents.read(keys.vplm(name), VplmRecord)
        if stored is None or stored.document.deleted is not None:
            return None
        record = stored.document
        mine = contents.get(record.uid, _Contents())
        return VplmUsage(
            name=str(name),
            versions=len(record.numbers()),
            size_bytes=mine.size_bytes,
            serving_bytes=await self._serving_bytes(name, record),
            full_model_bytes=_full_model_bytes(record),
            counts=counts,
            backbone=str(BackboneName(record.spec.backbone)),
            backbone_bytes=record.backbone.shape.bytes,
        )

    async def _serving_bytes(self, name: VplmName, record: VplmRecord) -> int:
        number = record.aliases.get(SERVING)
        if number is None:
            return 0
        place = keys.version(name, record.uid, number)
        manifest = await self._documents.read(place, VersionManifest)
        return manifest.document.size_bytes if manifest else 0


def _count_vplm(count: _Count, path: str, info: ObjectInfo) -> None:
    vplm, _, rest = path.partition("/")
    if rest == "vplm.json":
        count.records.add(vplm)
    if (match := _BELOW_UID.fullmatch(path)) is not None:
        contents = count.contents[vplm][match[2]]
        if match[3] == "versions":
            contents.versions += 1
        else:
            contents.size_bytes += info.size


def _full_model_bytes(record: VplmRecord) -> int:
    """The backbone and the head as float32: what a model of one's own would take."""
    head = record.spec.head
    shape = record.backbone.shape
    labels: Sequence[str] = () if head.task is Task.EMBEDDING else head.labels
    return shape.bytes + FLOAT32_BYTES * len(labels) * (shape.hidden + 1)
