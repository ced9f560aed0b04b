"""Checks of what is kept of training jobs: records, their indexes, curves and checkpoints."""

from __future__ import annotations

import hashlib

from services.storage import keys
from services.storage.checkpoints import CHECKPOINT_DIGEST_BYTES
from services.storage.documents import Documents
from services.storage.identity import Identity
from services.storage.maintenance.places import Place
from services.storage.maintenance.work import Work
from services.storage.records import JobRecord
from services.storage.training_records import TrainingRecords
from smile.errors import DataCorrupted, NotFound
from smile.maintenance import Finding, FindingKind, Severity
from smile.resources import TrainingRecord
from smile.store.objects import ObjectStore


class JobChecks:
    """One method for each kind of object."""

    def __init__(self, store: ObjectStore, work: Work, *, records_only: bool) -> None:
        self._store = store
        self._documents = Documents(store)
        self._records = TrainingRecords(store, Identity(store))
        self._work = work
        self._records_only = records_only

    async def record(self, place: Place) -> None:
        """A job's record, which both indexes have as it says."""
        record = await self._told(place)
        if record is None:
            return
        if record.job.name != place.resource:
            why = f"the record says that it is {record.job.name}"
            return self._work.damaged(place, FindingKind.RECORD_CORRUPTED, why)
        assert record.job.create_time is not None
        listed = keys.job_place(place.job, record.job.create_time)
        if await self._store.get(listed) is None:
            self._index(place, FindingKind.INDEX_MISSING, "no list of jobs has it")
        if not record.job.state.done and await self._store.get(keys.pending_job(place.job)) is None:
            again = await self._told(place)
            if again is not None and not again.job.state.done:
                why = "it has not ended, and is not among those that have not"
                self._index(place, FindingKind.INDEX_MISSING, why)

    async def order(self, place: Place) -> None:
        """A place in the list of jobs, whose record says that it is there."""
        record = await self._read(place)
        if record is not None and record.job.create_time is not None:
            if keys.job_place(place.job, record.job.create_time) != place.key:
                self._index(place, FindingKind.INDEX_STALE, "the job was made at another time")
        elif record is None:
            self._left_over(place)

    async def pending(self, place: Place) -> None:
        """A place among the jobs that have not ended."""
        record = await self._read(place)
        if record is None:
            self._left_over(place)
        elif record.job.state.done and await self._store.get(place.key) is not None:
            self._index(place, FindingKind.INDEX_STALE, "the job has ended")

    async def curve(self, place: Place) -> None:
        """A curve, whole as its last line says."""
        if self._records_only:
            return
        try:
            async for _ in self._records.curve(place.job):
                pass
        except NotFound:
            self._left_over(place)
        except DataCorrupted as error:
            self._work.corrupted(place, error)

    async def checkpoint(self, place: Place) -> None:
        """A checkpoint, which begins with the digest of the rest."""
        if self._records_only:
            return
        digest, head = hashlib.sha256(), b""
        try:
            async for chunk in self._store.get_stream(place.key):
                self._work.looked(0, len(chunk))
                wanted = CHECKPOINT_DIGEST_BYTES - len(head)
                head += chunk[:wanted]
                digest.update(chunk[wanted:] if wanted > 0 else chunk)
        except NotFound:
            return  # replaced or discarded meanwhile
        if digest.digest() != head:
            why = "the checkpoint is not what was stored; its job begins anew if it is interrupted"
            self._work.damaged(place, FindingKind.DIGEST_MISMATCH, why)

    async def _read(self, place: Place) -> TrainingRecord | None:
        """The record an index entry is about; one that cannot be read is told where it lies."""
        try:
            stored = await self._documents.read(keys.job(place.job), JobRecord)
        except DataCorrupted:
            return None
        return None if stored is None else stored.document.record

    async def _told(self, place: Place) -> TrainingRecord | None:
        try:
            stored = await self._documents.read(place.key, JobRecord)
        except DataCorrupted as error:
            self._work.corrupted(place, error)
            return None
        return None if stored is None else stored.document.record

    def _index(self, place: Place, kind: FindingKind, why: str) -> None:
        self._work.found(Finding(kind, Severity.REPAIRABLE, place.key, place.resource, why))

    def _left_over(self, place: Place) -> None:
        why = "there is no such job yet, or any more"
        self._work.found(
            Finding(FindingKind.UNREFERENCED, Severity.NOTE, place.key, place.resource, why)
        )
