"""Reads everything that is stored and checks it: from pointers to manifests to bytes, and back.

What is missing or wrong is looked at once more before it is told: whoever changes something
meanwhile does no damage. Nothing is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from services.storage import keys
from services.storage.blobs import Declared
from services.storage.documents import Documents
from services.storage.listing import store_time
from services.storage.maintenance.contents import Contents
from services.storage.maintenance.jobs import JobChecks
from services.storage.maintenance.orphans import OrphanSearch
from services.storage.maintenance.places import Place, PlaceKind, place_of
from services.storage.maintenance.work import Work
from services.storage.quota import every_object
from services.storage.records import (
    AdapterRecord,
    ArtifactRecord,
    DatasetRecord,
    DeletedVplm,
    Document,
    KeyRecord,
    TenantRecord,
    VersionManifest,
    VplmRecord,
)
from smile.errors import DataCorrupted
from smile.maintenance import Finding, FindingKind, MaintenanceEvent, Severity
from smile.model import weights
from smile.names import TenantId
from smile.store.objects import ObjectInfo, ObjectStore

CHECKS_AT_ONCE = 8

D = TypeVar("D", bound=Document)
Check = Callable[[Place], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Extent:
    """What to check. `tenant` empty: everything; `records_only`: bytes are looked for, not read."""

    tenant: str = ""
    records_only: bool = False

    @property
    def prefixes(self) -> tuple[str, ...]:
        if not self.tenant:
            return ("",)
        tenant = TenantId(self.tenant)
        return (keys.owned(tenant), keys.api_keys(tenant), f"{keys.PENDING_JOBS}{tenant}/")


class Verifier:
    """Checks a store once."""

    def __init__(self, store: ObjectStore, extent: Extent | None = None) -> None:
        self._store = store
        self._documents = Documents(store)
        self._extent = extent or Extent()
        self._held: dict[str, ObjectInfo] = {}
        self._manifests: set[str] = set()  # that a record leads to
        self._work = Work()
        unread = self._extent.records_only
        self._contents = Contents(store, self._work, self._held, unread=unread)
        jobs = JobChecks(store, self._work, records_only=unread)
        self._checks: dict[PlaceKind, Check] = {
            PlaceKind.TENANT: self._tenant,
            PlaceKind.API_KEY: self._api_key,
            PlaceKind.VPLM: self._vplm,
            PlaceKind.DELETED_VPLM: self._deleted_vplm,
            PlaceKind.ADAPTER: self._adapter,
            PlaceKind.ARTIFACT: self._artifact,
            PlaceKind.DATASET: self._dataset,
            PlaceKind.JOB: jobs.record,
            PlaceKind.CURVE: jobs.curve,
            PlaceKind.CHECKPOINT: jobs.checkpoint,
            PlaceKind.JOB_ORDER: jobs.order,
            PlaceKind.PENDING_JOB: jobs.pending,
            PlaceKind.OTHER_RECORD: self._other,
        }

    async def verify(self) -> AsyncIterator[MaintenanceEvent]:
        """Check; the last event is the summary."""
        for prefix in self._extent.prefixes:
            async for info in every_object(self._store, prefix):
                self._held[info.key] = info
        self._work.expect(len(self._held))
        places = [place_of(key) for key in self._held]
        pointing = [(p, self._checks[p.kind]) for p in places if p.kind in self._checks]
        pointed: list[tuple[Place, Check]] = [
            (p, self._unpointed) for p in places if p.kind not in self._checks
        ]
        for batch in (*_batches(pointing), *_batches(pointed)):  # all that points comes first
            await asyncio.gather(*(check(place) for place, check in batch))
            self._work.looked(len(batch))
            for event in self._work.drain():
                yield event
        await self._recordless()
        for event in self._work.drain():
            yield event
        yield self._work.summary

    async def _recordless(self) -> None:
        """vPLMs that have versions and no record."""
        search = OrphanSearch()
        for info in self._held.values():
            search.saw(place_of(info.key), info)
        for lost in search.found():
            if lost.missed(await store_time(self._store)) and not await self._exists(
                place_of(keys.vplm(lost.name))
            ):
                self._work.found(lost.finding(lost.severity))

    async def _document(self, place: Place, kind: type[D]) -> D | None:
        """What `place` holds; None where it is gone meanwhile or cannot be read, which is told."""
        try:
            stored = await self._documents.read(place.key, kind)
        except DataCorrupted as error:
            self._work.corrupted(place, error)
            return None
        return None if stored is None else stored.document

    async def _tenant(self, place: Place) -> None:
        record = await self._document(place, TenantRecord)
        if record is None:
            return
        first = f"{keys.api_keys(TenantId(place.tenant))}{record.first_key_id}.json"
        if first not in self._held and await self._store.get(first) is None:
            why = f"its first key {record.first_key_id} is gone"
            self._work.damaged(place, FindingKind.POINTER_DANGLING, why)

    async def _api_key(self, place: Place) -> None:
        await self._document(place, KeyRecord)

    async def _other(self, place: Place) -> None:
        await self._document(place, Document)

    async def _vplm(self, place: Place) -> None:
        record = await self._document(place, VplmRecord)
        if record is not None and record.deleted is None:
            await self._versions(place, record)

    async def _deleted_vplm(self, place: Place) -> None:
        trashed = await self._document(place, DeletedVplm)
        if trashed is not None:
            await self._versions(place, trashed.record)

    async def _versions(self, place: Place, record: VplmRecord) -> None:
        """Every version that a record knows of and that is not gone for good."""
        kept = {*record.numbers(), *record.deleted_versions}
        for number in sorted(kept):
            await self._version(place, record, number)
        pointed = {*record.aliases.values(), *(c.version for c in record.canaries.values())}
        for number in sorted(pointed - set(record.numbers())):
            if await self._still(place, record, number):
                why = f"an alias points to version {number}, which does not exist"
                self._work.damaged(place, FindingKind.POINTER_DANGLING, why)

    async def _version(self, place: Place, record: VplmRecord, number: int) -> None:
        where = place_of(keys.version(place.vplm, record.uid, number))
        self._manifests.add(where.key)
        manifest = await self._document(where, VersionManifest)
        if manifest is None:
            if not await self._exists(where) and await self._still(place, record, number):
                why = f"the manifest of version {number} is missing"
                self._work.damaged(where, FindingKind.MANIFEST_MISSING, why)
            return
        if manifest.number != number:
            why = f"the manifest of version {number} says that it is {manifest.number}"
            self._work.damaged(where, FindingKind.RECORD_CORRUPTED, why)
        if manifest.shared:
            blob = place_of(keys.shared_blob(manifest.digest))
        else:
            blob = place_of(keys.version_blob(place.vplm, record.uid, manifest.digest))
        declared = Declared(manifest.size_bytes, manifest.digest)
        decode = partial(weights.decode, spec=manifest.spec, shape=record.backbone.shape)
        fault = await self._contents.fault(blob, declared, decode)
        if fault is not None and await self._still(place, record, number):
            self._work.damaged(blob, fault, f"{place.resource}/versions/{number}: {fault}")

    async def _adapter(self, place: Place) -> None:
        record = await self._document(place, AdapterRecord)
        if record is None or record.deleted is not None:
            return
        blob = place_of(keys.shared_blob(record.digest))
        decode = partial(weights.decode, spec=record.spec, shape=record.backbone.shape)
        fault = await self._contents.fault(blob, Declared(record.size_bytes, record.digest), decode)
        if fault is not None:
            self._work.damaged(blob, fault, f"publicAdapters/{place.owner}: {fault}")

    async def _artifact(self, place: Place) -> None:
        record = await self._document(place, ArtifactRecord)
        if record is None or record.deleted is not None:
            return
        for file in record.files:
            blob = place_of(keys.artifact_blob(file.digest))
            fault = await self._contents.fault(blob, Declared(file.size_bytes, file.digest))
            if fault is not None:
                what = f"artifacts/{place.owner}: {file.name}: {fault}"
                self._work.damaged(blob, fault, what)

    async def _dataset(self, place: Place) -> None:
        record = await self._document(place, DatasetRecord)
        if record is None or record.deleted is not None:
            return
        blob = place_of(keys.dataset_bytes(place.dataset, record.uid))
        fault = await self._contents.fault(blob, Declared(record.size_bytes, record.digest))
        if fault is None:
            return
        again = await self._document(place, DatasetRecord)
        if again is not None and again.deleted is None and again.uid == record.uid:
            self._work.damaged(blob, fault, f"{place.resource}: {fault}")

    async def _exists(self, place: Place) -> bool:
        """Whether there is something, be it unreadable."""
        try:
            return await self._store.get(place.key) is not None
        except DataCorrupted:
            return True

    async def _still(self, place: Place, record: VplmRecord, number: int) -> bool:
        """Whether a version is there yet by its record: then what is missing is missed."""
        try:
            if place.kind is PlaceKind.DELETED_VPLM:
                trashed = await self._documents.read(place.key, DeletedVplm)
                now = trashed.document.record if trashed else None
            else:
                stored = await self._documents.read(place.key, VplmRecord)
                now = stored.document if stored and stored.document.deleted is None else None
        except DataCorrupted:
            return False
        if now is None or now.uid != record.uid:
            return False
        return now.has(number) or number in now.deleted_versions or number > now.latest_version

    async def _unpointed(self, place: Place) -> None:
        """What no record led to is told; that is no damage."""
        if place.kind is PlaceKind.UNKNOWN:
            self._note(place, FindingKind.UNKNOWN_OBJECT, "storage writes no such object")
        elif place.kind is PlaceKind.MANIFEST and place.key not in self._manifests:
            await self._document(place, VersionManifest)
        elif place.kind not in _BYTES or self._contents.named(place.key):
            return
        elif await self._contents.there(place.key):
            self._note(place, FindingKind.UNREFERENCED, "nothing points to it yet, or any more")

    def _note(self, place: Place, kind: FindingKind, why: str) -> None:
        size = self._held[place.key].size
        self._work.found(Finding(kind, Severity.NOTE, place.key, place.resource, why, size))


_BYTES = (
    PlaceKind.BLOB,
    PlaceKind.DATASET_BYTES,
    PlaceKind.SHARED_BLOB,
    PlaceKind.ARTIFACT_BLOB,
)


def _batches(checks: Sequence[tuple[Place, Check]]) -> Iterator[Sequence[tuple[Place, Check]]]:
    for start in range(0, len(checks), CHECKS_AT_ONCE):
        yield checks[start : start + CHECKS_AT_ONCE]
