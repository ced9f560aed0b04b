"""Makes indexes in the store anew from the records that are the truth, and signs records again;
makes records of vPLMs anew that are lost and whose versions are there.

What lives in Redis needs nothing of this: the change feed keeps nothing there, and the trainer
queues again whatever job's record has not ended, which it finds by the index that is made here. It
does so when it starts, every so often, and when it is asked to (`RequeueTrainingJobs`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.storage import keys
from services.storage.documents import Documents
from services.storage.listing import store_time
from services.storage.maintenance.orphans import OrphanSearch, Restorer
from services.storage.maintenance.places import Place, PlaceKind, place_of
from services.storage.maintenance.work import Work
from services.storage.quota import every_object
from services.storage.records import AdapterRecord, JobRecord, VplmRecord
from services.storage.signing import SignatureState, SignedStore
from smile.errors import Aborted, DataCorrupted
from smile.maintenance import Action, Finding, FindingKind, MaintenanceEvent, Severity
from smile.resources import Backbone, TrainingRecord
from smile.store.objects import ObjectStore

TOLD_EVERY = 50  # objects
_SIGNATURES = {
    SignatureState.MISSING: FindingKind.SIGNATURE_MISSING,
    SignatureState.OLD: FindingKind.SIGNATURE_OLD,
}


class Rebuilder:
    """Walks the whole store. Safe beside running requests."""

    def __init__(self, store: ObjectStore, *, dry_run: bool = False) -> None:
        self._store = store
        self._documents = Documents(store)
        self._dry_run = dry_run
        self._work = Work()
        self._orphans = OrphanSearch()
        self._backbones: dict[str, Backbone] = {}  # that records name, by digest

    async def rebuild(self) -> AsyncIterator[MaintenanceEvent]:
        """Rebuild once; the last event is the summary."""
        seen = 0
        async for info in every_object(self._store, ""):
            place = place_of(info.key)
            self._orphans.saw(place, info)
            await self._object(place)
            self._work.looked()
            seen += 1
            if seen % TOLD_EVERY == 0:
                for event in self._work.drain():
                    yield event
        await self._restore()
        for event in self._work.drain():
            yield event
        yield self._work.summary

    async def _restore(self) -> None:
        """Records of vPLMs that have versions and none."""
        time = await store_time(self._store)
        restorer = Restorer(self._store, self._work)
        for lost in self._orphans.found():
            if lost.missed(time):
                await restorer.restore(lost, self._backbones, dry_run=self._dry_run)

    async def _object(self, place: Place) -> None:
        try:
            if isinstance(self._store, SignedStore) and keys.is_record(place.key):
                await self._sign(self._store, place)
            if place.kind is PlaceKind.JOB:
                await self._job(place)
            elif place.kind in (PlaceKind.JOB_ORDER, PlaceKind.PENDING_JOB):
                await self._entry(place)
            elif place.kind is PlaceKind.VPLM:
                await self._vplm(place)
            elif place.kind is PlaceKind.ADAPTER:
                await self._adapter(place)
        except DataCorrupted as error:
            self._work.corrupted(place, error)

    async def _sign(self, store: SignedStore, place: Place) -> None:
        state = await store.signature(place.key)
        if state is None or state is SignatureState.CURRENT:
            return
        if not self._dry_run:
            try:
                await store.sign_again(place.key)
            except Aborted:
                return  # written meanwhile, and signed with that
        self._found(place, _SIGNATURES[state], "signed with the present key", Action.REPAIRED)

    async def _job(self, place: Place) -> None:
        """A job's places in both indexes."""
        record = await self._record(place)
        if record is None or record.job.create_time is None:
            return
        await self._put(keys.job_place(place.job, record.job.create_time), place)
        if not record.job.state.done:
            await self._put(keys.pending_job(place.job), place)

    async def _entry(self, place: Place) -> None:
        """An entry of an index, gone where its record says otherwise. One without a record stays:
        the record may be about to be written.
        """
        record = await self._record(place)
        if record is None or record.job.create_time is None:
            return
        if place.kind is PlaceKind.PENDING_JOB:
            stale = record.job.state.done
        else:
            stale = keys.job_place(place.job, record.job.create_time) != place.key
        if stale:
            if not self._dry_run:
                await self._store.delete(place.key)
            why = "its record says otherwise"
            self._found(place, FindingKind.INDEX_STALE, why, Action.REMOVED)

    async def _vplm(self, place: Place) -> None:
        """The places of versions that can be had back."""
        stored = await self._documents.read(place.key, VplmRecord)
        if stored is None:
            return
        self._backbones[stored.document.backbone.digest] = stored.document.backbone
        if stored.document.deleted is not None:
            return
        for number in stored.document.deleted_versions:
            key = keys.deleted_version(place.vplm, stored.document.uid, number)
            await self._put(key, place)

    async def _adapter(self, place: Place) -> None:
        stored = await self._documents.read(place.key, AdapterRecord)
        if stored is not None:
            self._backbones[stored.document.backbone.digest] = stored.document.backbone

    async def _record(self, place: Place) -> TrainingRecord | None:
        stored = await self._documents.read(keys.job(place.job), JobRecord)
        return None if stored is None else stored.document.record

    async def _put(self, key: str, place: Place) -> None:
        """An entry that must be there."""
        if self._dry_run:
            made = await self._store.get(key) is None
        else:
            made = await self._store.put_if_absent(key, b"")
        if made:
            why = f"{key} was missing"
            self._found(place, FindingKind.INDEX_MISSING, why, Action.REPAIRED)

    def _found(self, place: Place, kind: FindingKind, why: str, action: Action) -> None:
        done = Action.NONE if self._dry_run else action
        self._work.found(Finding(kind, Severity.NOTE, place.key, place.resource, why, action=done))
