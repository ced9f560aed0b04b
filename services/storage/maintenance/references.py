"""Whether something points to an object now: asked right before anything is moved away.

What cannot be read might point anywhere, so it counts as pointing; and so do kinds of objects that
this module knows nothing of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.storage import keys
from services.storage.documents import Documents
from services.storage.maintenance.places import Place, PlaceKind, place_of
from services.storage.quota import every_object
from services.storage.records import (
    AdapterRecord,
    ArtifactRecord,
    DatasetRecord,
    Deletable,
    JobRecord,
    VersionManifest,
    VplmRecord,
)
from smile.errors import DataCorrupted
from smile.names import JobName, VplmName
from smile.resources import TrainingRecord
from smile.store.objects import ObjectStore

READS_AT_ONCE = 16


class References:
    """Reads what might point to an object."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._documents = Documents(store)
        self._checks: dict[PlaceKind, Callable[[Place], Awaitable[bool]]] = {
            PlaceKind.MANIFEST: self._manifest,
            PlaceKind.BLOB: self._blob,
            PlaceKind.SHARED_BLOB: self._shared_blob,
            PlaceKind.ARTIFACT_BLOB: self._artifact_blob,
            PlaceKind.DATASET_BYTES: self._dataset_bytes,
            PlaceKind.CHECKPOINT: self._checkpoint,
            PlaceKind.CURVE: self._curve,
            PlaceKind.JOB_ORDER: self._job_order,
            PlaceKind.PENDING_JOB: self._pending_job,
            PlaceKind.PROBE: self._probe,
        }

    async def to(self, place: Place) -> bool:
        """Whether something points to `place`, or may."""
        check = self._checks.get(place.kind)
        if check is None:
            return True
        try:
            return await check(place)
        except DataCorrupted:
            return True

    async def names_vplm(self, name: VplmName, uid: str) -> bool:
        """Whether a vPLM's record, or one that can be had back, is of `uid`."""
        stored = await self._documents.read(keys.vplm(name), VplmRecord)
        if stored is not None and _names(stored.document, uid):
            return True
        deleted = keys.deleted_vplms(name.tenant, name.vplm)
        async for info in every_object(self._store, deleted):
            if place_of(info.key).uid == uid:
                return True
        return False

    async def manifests(self, name: VplmName, uid: str) -> list[VersionManifest]:
        """All manifests below a uid, also those that no record knows of yet. `DataCorrupted`."""
        folder = f"{keys.vplm_contents(name, uid)}versions/"
        places = [info.key async for info in every_object(self._store, folder)]
        found: list[VersionManifest] = []
        for start in range(0, len(places), READS_AT_ONCE):
            batch = places[start : start + READS_AT_ONCE]
            read = [self._documents.read(key, VersionManifest) for key in batch]
            found += [stored.document for stored in await asyncio.gather(*read) if stored]
        return found

    async def _manifest(self, place: Place) -> bool:
        return await self.names_vplm(place.vplm, place.uid)

    async def _blob(self, place: Place) -> bool:
        if not await self.names_vplm(place.vplm, place.uid):
            return False
        manifests = await self.manifests(place.vplm, place.uid)
        return any(manifest.digest == place.last for manifest in manifests)

    async def _shared_blob(self, place: Place) -> bool:
        """A public adapter names it, or any version of any tenant."""
        async for info in every_object(self._store, keys.ADAPTERS):
            stored = await self._documents.read(info.key, AdapterRecord)
            if stored is not None and stored.document.digest == place.last:
                return True
        async for info in every_object(self._store, keys.TENANT_DATA):
            if place_of(info.key).kind is PlaceKind.MANIFEST:
                manifest = await self._documents.read(info.key, VersionManifest)
                if manifest and manifest.document.shared and manifest.document.digest == place.last:
                    return True
        return False

    async def _artifact_blob(self, place: Place) -> bool:
        """An artifact names it."""
        async for info in every_object(self._store, keys.ARTIFACTS):
            stored = await self._documents.read(info.key, ArtifactRecord)
            if stored and any(file.digest == place.last for file in stored.document.files):
                return True
        return False

    async def _dataset_bytes(self, place: Place) -> bool:
        stored = await self._documents.read(keys.dataset(place.dataset), DatasetRecord)
        return stored is not None and _names(stored.document, place.uid)

    async def _checkpoint(self, place: Place) -> bool:
        record = await self._job(place.job)
        return record is not None and not record.job.state.done

    async def _curve(self, place: Place) -> bool:
        return await self._job(place.job) is not None

    async def _job_order(self, place: Place) -> bool:
        record = await self._job(place.job)
        if record is None or record.job.create_time is None:
            return False
        return keys.job_place(place.job, record.job.create_time) == place.key

    async def _pending_job(self, place: Place) -> bool:
        return await self._checkpoint(place)

    async def _probe(self, place: Place) -> bool:
        """Left by a process that was killed while it probed."""
        return False

    async def _job(self, name: JobName) -> TrainingRecord | None:
        stored = await self._documents.read(keys.job(name), JobRecord)
        return None if stored is None else stored.document.record


def _names(record: Deletable, uid: str) -> bool:
    """Whether a record is of `uid`, and not gone for good."""
    if record.uid != uid:
        return False
    return record.deleted is None or record.deleted.restorable
