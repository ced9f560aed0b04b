"""Versions: immutable, numbered without gaps, visible once the vPLM's record knows of them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace

from services.storage import keys
from services.storage.blobs import ByteBudget, Declared, received, verified
from services.storage.catalog import Catalog, check_module
from services.storage.deletable import live
from services.storage.documents import Documents, Stored, load_page, stored_bytes
from services.storage.identity import Identity
from services.storage.quota import Ledger
from services.storage.records import (
    RequestKind,
    RequestNote,
    VersionManifest,
    VplmRecord,
    now,
)
from services.storage.references import blob_of
from smile import pages
from smile.errors import AlreadyExists, DataCorrupted, InvalidArgument, NotFound
from smile.limits import CHUNK_BYTES_MAX
from smile.model import weights
from smile.model.specs import BackboneShape, ModuleSpec, PetKind
from smile.names import JobName, VersionName, VplmName
from smile.resources import SERVING, TrainingSummary, VersionOrigin, VplmVersion
from smile.store.objects import ObjectStore, Reading

NUMBER_MAX = 999_999_999
NOTE_BYTES_MAX = 128  # what the record grows by


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version to store. `spec` None means the vPLM's own."""

    vplm: VplmName
    declared: Declared
    origin: VersionOrigin
    request_id: str
    spec: ModuleSpec | None = None
    training_job: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    training: TrainingSummary | None = None


class Versions:
    """Versions of the vPLMs in `catalog`."""

    def __init__(
        self,
        store: ObjectStore,
        catalog: Catalog,
        identity: Identity,
        ledger: Ledger,
        budget: ByteBudget,
    ) -> None:
        self._store = store
        self._documents = Documents(store)
        self._catalog = catalog
        self._identity = identity
        self._ledger = ledger
        self._budget = budget

    async def put(self, new: NewVersion, chunks: AsyncIterator[bytes]) -> VplmVersion:
        """Store one more version; no alias moves.

        Raises:
            NotFound: no such vPLM.
            InvalidArgument: the bytes are not what was declared, or not the spec's tensors.
            QuotaExceeded: the tenant has no room.
        """
        _check_job(new)
        record = (await self._catalog.record(new.vplm)).document
        if (note := record.note(new.request_id, RequestKind.PUT_VERSION)) is not None:
            return await self._made_earlier(new, record, note.version)
        spec = _spec(new, record)
        _check_size(new, spec)
        tenant = await self._identity.tenant(new.vplm.tenant)
        manifest = _manifest(new, spec)
        size = new.declared.size_bytes + stored_bytes(manifest) + NOTE_BYTES_MAX
        async with self._ledger.reserved(new.vplm.tenant, size, tenant.quota_bytes):
            with self._budget.held(new.declared.size_bytes):
                data = await received(chunks, new.declared)
                await check_module(data, spec, record.backbone)
                blob = keys.version_blob(new.vplm, record.uid, new.declared.digest)
                fresh = await self._store.put_if_absent(blob, data)
                number, passed = await self._number(new.vplm, record, manifest)
                if not fresh:  # what broke off before may have been collected meanwhile
                    await self._store.put_if_absent(blob, data)
            await self._publish(new, record.uid, number, passed)
        return await self.get(VersionName(new.vplm, number))

    async def get(self, name: VersionName) -> VplmVersion:
        """Raises `NotFound`, also for versions no record knows of yet."""
        manifest, record = await self._store.read(self._reading(name))
        return replace(manifest.view(str(name.vplm)), exactness=record.exactness)

    async def shaped(self, name: VersionName) -> tuple[VplmVersion, BackboneShape]:
        """A version, and the shape of the backbone it is made for. Raises `NotFound`."""
        manifest, record = await self._store.read(self._reading(name))
        return manifest.view(str(name.vplm)), record.backbone.shape

    async def resolve(self, vplm: VplmName, alias: str) -> VplmVersion:
        """The version an alias points to, with its canary if it has one; `serving` where none is
        named. Raises `NotFound`.
        """
        found, _, _ = await self._store.read(self._resolving(vplm, alias))
        return found

    async def fetch(self, vplm: VplmName, alias: str) -> tuple[VplmVersion, bytes]:
        """As `resolve`, with the version's bytes; none where they are more than fit one message, or
        are damaged, of which `open` tells. Raises `NotFound`.
        """
        return await self._store.read(self._fetching(vplm, alias))

    def _fetching(self, vplm: VplmName, alias: str) -> Reading[tuple[VplmVersion, bytes]]:
        found, manifest, record = yield from self._resolving(vplm, alias)
        if found.size_bytes > CHUNK_BYTES_MAX:
            return found, b""
        stored = yield blob_of(keys.vplm_contents(vplm, record.uid), manifest)
        intact = stored is not None and hashlib.sha256(stored.data).hexdigest() == found.digest
        return found, stored.data if stored is not None and intact else b""

    def _resolving(
        self, vplm: VplmName, alias: str
    ) -> Reading[tuple[VplmVersion, VersionManifest, VplmRecord]]:
        """What an alias points to, and what is written of it and of its vPLM."""
        record = (yield from self._catalog.reading(vplm)).document
        number = record.aliases.get(alias or SERVING)
        if number is None:
            raise NotFound(
                f"{vplm} has no alias '{alias or SERVING}'",
                reason="ALIAS_NOT_FOUND",
                metadata={"resource": str(vplm), "alias": alias or SERVING},
            )
        manifest = yield from self._manifest(VersionName(vplm, number), record)
        found = replace(manifest.view(str(vplm)), exactness=record.exactness)
        if (canary := record.canaries.get(alias or SERVING)) is None:
            return found, manifest, record
        second = yield from self._manifest(VersionName(vplm, canary.version), record)
        other = replace(second.view(str(vplm)), exactness=record.exactness)
        found = replace(found, canary=other, canary_weight=canary.weight)
        return found, manifest, record

    async def list_page(
        self, vplm: VplmName, size: int, token: str, *, show_deleted: bool = False
    ) -> tuple[list[VplmVersion], str]:
        """A page of versions, newest first, and the token of the next; with `show_deleted` also
        those that can be had back. Raises `NotFound`.
        """
        listing = f"versions of {vplm}"
        record = (await self._catalog.record(vplm)).document
        place = pages.place_of(token, listing)
        before = _number(place) if place else record.latest_version + 1
        deleted = {
            n: d for n, d in record.deleted_versions.items() if show_deleted and d.restorable
        }
        every = sorted((*record.numbers(), *deleted), reverse=True)
        numbers = [str(number) for number in every if number < before]

        async def load(number: str) -> VplmVersion | None:
            name, deletion = VersionName(vplm, int(number)), deleted.get(int(number))
            reading = self._manifest(name, record, deleted=deletion is not None)
            manifest = await self._store.read(reading)
            return replace(manifest.view(str(vplm), deletion), exactness=record.exactness)

        found, more = await load_page(numbers, load, size)
        following = pages.token_for(listing, found[-1][0]) if more else ""
        return [version for _, version in found], following

    async def open(self, name: VersionName) -> tuple[VplmVersion, AsyncIterator[bytes]]:
        """A version and its bytes, which raise `DataCorrupted` unless they match its digest."""
        manifest, record = await self._store.read(self._reading(name))
        blob = blob_of(keys.vplm_contents(name.vplm, record.uid), manifest)
        declared = Declared(manifest.size_bytes, manifest.digest)
        found = replace(manifest.view(str(name.vplm)), exactness=record.exactness)
        return found, verified(self._store.get_stream(blob), declared, str(name))

    def _reading(self, name: VersionName) -> Reading[tuple[VersionManifest, VplmRecord]]:
        """What is written of a version and of its vPLM."""
        record = yield from self._record(name)
        return (yield from self._manifest(name, record)), record

    def _record(self, name: VersionName) -> Reading[VplmRecord]:
        """The record of a version's vPLM; where there is none, what is absent is the version."""
        try:
            return (yield from self._catalog.reading(name.vplm)).document
        except NotFound:
            raise NotFound(f"{name} does not exist", metadata={"resource": str(name)}) from None

    def _manifest(
        self, name: VersionName, record: VplmRecord, *, deleted: bool = False
    ) -> Reading[VersionManifest]:
        """Of a version that the record has, or that is in the trash where `deleted` says so."""
        if not deleted and not record.has(name.number):
            raise NotFound(f"{name} does not exist", metadata={"resource": str(name)})
        place = keys.version(name.vplm, record.uid, name.number)
        stored = yield from self._documents.reading(place, VersionManifest)
        if stored is None:
            if not (yield from self._record(name)).has(name.number):  # deleted meanwhile
                raise NotFound(f"{name} does not exist", metadata={"resource": str(name)})
            raise DataCorrupted(
                f"the manifest of {name} is missing",
                reason="RECORD_CORRUPTED",
                metadata={"resource": str(name)},
            )
        return stored.document

    async def _made_earlier(self, new: NewVersion, record: VplmRecord, number: int) -> VplmVersion:
        if not record.has(number):
            raise AlreadyExists(
                f"this request made {VersionName(new.vplm, number)}, which was deleted since; use "
                "a new request_id",
                reason="REQUEST_ID_USED",
            )
        reading = self._manifest(VersionName(new.vplm, number), record)
        manifest = await self._store.read(reading)
        if manifest.digest != new.declared.digest:
            raise AlreadyExists(
                f"request_id {new.request_id} was used for other bytes already",
                reason="REQUEST_ID_USED",
            )
        return manifest.view(str(new.vplm))

    async def _number(
        self, vplm: VplmName, record: VplmRecord, manifest: VersionManifest
    ) -> tuple[int, list[RequestNote]]:
        """The first free number, taken; with the notes of requests that broke off before it."""
        passed: list[RequestNote] = []
        latest = (await self._catalog.record(vplm)).document.latest_version
        for number in range(latest + 1, NUMBER_MAX):
            place = keys.version(vplm, record.uid, number)
            if await self._documents.create(place, manifest.model_copy(update={"number": number})):
                return number, passed
            taken = await self._documents.read(place, VersionManifest)
            if taken is None:
                break  # deleted meanwhile
            note = _note(taken.document)
            if note.request_id == manifest.request_id:
                return number, passed
            passed.append(note)
        raise NotFound(f"{vplm} does not exist", metadata={"resource": str(vplm)})

    async def _publish(
        self, new: NewVersion, uid: str, number: int, passed: list[RequestNote]
    ) -> None:
        """Let the record know of the version: the commit point."""
        mine = RequestNote(request_id=new.request_id, kind=RequestKind.PUT_VERSION, version=number)

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            record = live(stored, new.vplm).document
            if record.uid != uid:
                raise NotFound(f"{new.vplm} was deleted meanwhile")
            known = {note.request_id for note in record.requests}
            fresh = [note for note in (*passed, mine) if note.request_id not in known]
            if not fresh:
                return None
            return record.model_copy(
                update={
                    "latest_version": max(record.latest_version, number),
                    "requests": record.with_notes(*fresh),
                    "update_time": now(),
                }
            )

        await self._documents.edit(keys.vplm(new.vplm), VplmRecord, apply)


def _note(manifest: VersionManifest) -> RequestNote:
    return RequestNote(
        request_id=manifest.request_id, kind=RequestKind.PUT_VERSION, version=manifest.number
    )


def _manifest(new: NewVersion, spec: ModuleSpec) -> VersionManifest:
    """The manifest but for its number."""
    return VersionManifest(
        number=0,
        digest=new.declared.digest,
        size_bytes=new.declared.size_bytes,
        spec=spec,
        origin=new.origin,
        training_job=new.training_job,
        metrics=dict(new.metrics),
        create_time=now(),
        note=new.note,
        request_id=new.request_id,
        training=new.training,
    )


def _spec(new: NewVersion, record: VplmRecord) -> ModuleSpec:
    """The version's spec: the vPLM's own but for the precision, or of what training made of the
    whole model."""
    if new.spec is None:
        return record.spec
    whole = new.spec.pet.kind is PetKind.FULL and new.origin is VersionOrigin.TRAINING
    wanted = replace(record.spec, pet=new.spec.pet) if whole else record.spec
    if replace(new.spec, dtype=wanted.dtype, backbone=wanted.backbone) != wanted:
        raise InvalidArgument(
            "a version has its vPLM's backbone digest, PET module and head; only the precision "
            "may differ",
            reason="SPEC_MISMATCH",
        )
    return replace(wanted, dtype=new.spec.dtype)


def _check_size(new: NewVersion, spec: ModuleSpec) -> None:
    """A module is small; only a whole model may be large."""
    size, limit = new.declared.size_bytes, weights.bytes_max(spec.pet.kind)
    if size > limit:
        raise InvalidArgument(
            f"a version of kind '{spec.pet.kind}' has at most {limit} bytes, {size} were declared",
            reason="VERSION_TOO_LARGE",
            metadata={"limit": str(limit), "value": str(size)},
        )


def _check_job(new: NewVersion) -> None:
    if new.origin is not VersionOrigin.TRAINING:
        if new.training_job:
            raise InvalidArgument(f"origin '{new.origin}' has no training job")
        return
    if JobName.parse(new.training_job).tenant != new.vplm.tenant:
        raise InvalidArgument(f"the training job must be of tenants/{new.vplm.tenant}")


def _number(place: str) -> int:
    if not place.isascii() or not place.isdecimal():
        raise InvalidArgument(
            "page_token is not one this listing gave; start again without it",
            reason="PAGE_TOKEN_INVALID",
        )
    return int(place)
