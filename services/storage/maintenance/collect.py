"""Removes what nothing points to, and never what something does.

An object that has lain unreferenced for the grace period is copied to `quarantine/`, looked at once
more, and only then removed from its place; what points to it by then brings it back at once. The
copy stays for the grace period again: whatever comes to point to it meanwhile has it back at the
next collection. So bytes are lost only to an upload that takes longer than the grace period between
finding them stored and naming them, wherever a collection is paused or killed. Each collector has
copies of its own, which no other removes before they are old.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from services.storage import keys
from services.storage.listing import info_of, store_time
from services.storage.maintenance.places import Place, PlaceKind, place_of
from services.storage.maintenance.references import References
from services.storage.maintenance.work import Work
from services.storage.quota import every_object
from smile.errors import DataCorrupted, NotFound
from smile.maintenance import Action, Finding, FindingKind, MaintenanceEvent, Severity
from smile.names import TenantId, VplmName
from smile.store.objects import PROBE_PREFIX, ObjectInfo, ObjectStore

GRACE = timedelta(hours=24)
_SINGLE = (
    PlaceKind.SHARED_BLOB,
    PlaceKind.ARTIFACT_BLOB,
    PlaceKind.DATASET_BYTES,
    PlaceKind.CHECKPOINT,
    PlaceKind.CURVE,
    PlaceKind.JOB_ORDER,
    PlaceKind.PENDING_JOB,
    PlaceKind.PROBE,
)


class Collector:
    """Walks the whole store. Safe beside running requests and beside other collectors.

    Args:
        dry_run: Tell what would be done, and do nothing.
        thorough: Read the manifests also where there are no more blobs than manifests, so that
            what is left over is told by their number.
    """

    def __init__(
        self,
        store: ObjectStore,
        grace: timedelta = GRACE,
        *,
        dry_run: bool = False,
        thorough: bool = True,
    ) -> None:
        self._store = store
        self._references = References(store)
        self._grace = grace
        self._dry_run = dry_run
        self._thorough = thorough
        self._aside_prefix = f"{keys.QUARANTINE}{uuid.uuid4().hex}/"
        self._began = datetime.min.replace(tzinfo=UTC)  # by the store's clock

    async def collect(self) -> AsyncIterator[MaintenanceEvent]:
        """Collect once; the last event is the summary."""
        work = Work()
        self._began = await store_time(self._store)
        async for _ in self._aside(work):
            for event in work.drain():
                yield event
        async for info in every_object(self._store, keys.QUARANTINE):
            await self._settle(place_of(_place_before(info.key)), info, work)
            for event in work.drain():
                yield event
        yield work.summary

    async def _aside(self, work: Work) -> AsyncIterator[None]:
        """Put aside what nothing points to, folder by folder."""
        for name in await self._store.list_folders(keys.TENANT_DATA):
            tenant = TenantId(name)
            for vplm in await self._store.list_folders(keys.vplms(tenant)):
                await self._vplm(VplmName(tenant, vplm), work)
                yield
            for folder in (
                keys.datasets(tenant),
                f"{keys.owned(tenant)}trainingJobs/",
                keys.job_order(tenant),
            ):
                await self._single(folder, work)
                yield
        for folder in (keys.PENDING_JOBS, keys.SHARED_BLOBS, keys.ARTIFACT_BLOBS, PROBE_PREFIX):
            await self._single(folder, work)
            yield

    async def _vplm(self, name: VplmName, work: Work) -> None:
        for uid in await self._store.list_folders(keys.vplm_folder(name)):
            held = [info async for info in every_object(self._store, keys.vplm_contents(name, uid))]
            work.looked(len(held))
            for place, info in await self._left_over(name, uid, held):
                await self._put_aside(place, info, work)

    async def _left_over(
        self, name: VplmName, uid: str, held: list[ObjectInfo]
    ) -> list[tuple[Place, ObjectInfo]]:
        """Of a uid's objects, those that are old and that nothing points to."""
        old = [(place_of(info.key), info) for info in held if self._old(info)]
        if not old:
            return []
        manifests = sum(place_of(info.key).kind is PlaceKind.MANIFEST for info in held)
        try:
            if not await self._references.names_vplm(name, uid):
                return [] if await self._recordless(name, held) else old
            blobs = [(p, info) for p, info in old if p.kind is PlaceKind.BLOB]
            if not blobs or (len(blobs) <= manifests and not self._thorough):
                return []
            named = {m.digest for m in await self._references.manifests(name, uid)}
        except DataCorrupted:
            return []  # who knows what it points to
        return [(place, info) for place, info in blobs if place.last not in named]

    async def _recordless(self, name: VplmName, held: list[ObjectInfo]) -> bool:
        """Whether these are of a vPLM whose record is lost: `rebuild` restores it from them."""
        places = [place_of(info.key) for info in held]
        later = any(p.kind is PlaceKind.MANIFEST and int(p.last) > 1 for p in places)
        return later and await self._store.get(keys.vplm(name)) is None

    async def _single(self, folder: str, work: Work) -> None:
        """Objects that are looked at one by one."""
        async for info in every_object(self._store, folder):
            work.looked()
            place = place_of(info.key)
            if place.kind in _SINGLE and self._old(info) and not await self._references.to(place):
                await self._put_aside(place, info, work)

    async def _put_aside(self, place: Place, info: ObjectInfo, work: Work) -> None:
        """Copy, look again, remove, look again."""
        if self._dry_run:
            return work.found(_finding(place, info, Action.NONE, "nothing points to it"))
        aside = self._aside_prefix + place.key
        try:
            await self._store.put_stream(aside, self._store.get_stream(place.key))
        except NotFound:
            return None  # removed meanwhile
        if await self._references.to(place) or await self._touched(place.key, info):
            await self._store.delete(aside)
            return None
        await self._store.delete(place.key)
        if await self._references.to(place):
            await self._bring_back(place, aside)
            await self._store.delete(aside)
            return None
        return work.found(
            _finding(place, info, Action.QUARANTINED, "nothing pointed to it for the grace period")
        )

    async def _settle(self, place: Place, info: ObjectInfo, work: Work) -> None:
        """Decide on a copy in quarantine."""
        if await self._references.to(place) and await info_of(self._store, place.key) is None:
            if not self._dry_run:
                await self._bring_back(place, info.key)
            action = Action.NONE if self._dry_run else Action.RESTORED
            work.found(_finding(place, info, action, "something points to it after all"))
        elif self._old(info):
            if not self._dry_run:
                await self._store.delete(info.key)
            action = Action.NONE if self._dry_run else Action.REMOVED
            work.found(_finding(place, info, action, "it was in quarantine for the grace period"))

    async def _bring_back(self, place: Place, aside: str) -> None:
        """Copy from quarantine to its place, unless someone has written it anew."""
        if await info_of(self._store, place.key) is None:
            await self._store.put_stream(place.key, self._store.get_stream(aside))

    async def _touched(self, key: str, seen: ObjectInfo) -> bool:
        """Whether an object was written since it was listed."""
        found = await info_of(self._store, key)
        return found is not None and (found.modified, found.size) != (seen.modified, seen.size)

    def _old(self, info: ObjectInfo) -> bool:
        return self._began - info.modified >= self._grace


def _place_before(key: str) -> str:
    """Where a copy in quarantine was before."""
    return key.removeprefix(keys.QUARANTINE).partition("/")[2]


def _finding(place: Place, info: ObjectInfo, action: Action, why: str) -> Finding:
    return Finding(
        kind=FindingKind.UNREFERENCED,
        severity=Severity.NOTE,
        object_key=place.key,
        resource=place.resource,
        detail=why,
        size_bytes=info.size,
        action=action,
    )
