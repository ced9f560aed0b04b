"""vPLMs: commit, read, change; `trash` deletes them.

Bytes and manifest go first, then the record, which is the commit point: readers begin at the record
and see nothing it does not know of. Every step may be repeated, so a request that broke off
is completed by sending it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial

from services.storage import aliases, keys
from services.storage.aliases import AliasMove, Rollback
from services.storage.blobs import ByteBudget, Declared, received
from services.storage.changes import Announcer, Unannounced
from services.storage.deletable import live
from services.storage.documents import D, Documents, Stored, load_page, stored_bytes
from services.storage.identity import Identity
from services.storage.quota import Ledger, Places, every_object
from services.storage.records import (
    AdapterRecord,
    Deletion,
    RequestKind,
    RequestNote,
    VersionManifest,
    VplmRecord,
    derived_uid,
    now,
)
from smile import pages
from smile.accounting import Limit
from smile.errors import (
    Aborted,
    AlreadyExists,
    DataCorrupted,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    SmileError,
)
from smile.logs import get_logger
from smile.model import layout, weights
from smile.model.specs import ModuleSpec
from smile.names import AdapterName, BackboneName, TenantId, VersionName, VplmName
from smile.resources import (
    SERVING,
    AliasMoved,
    Backbone,
    Derivation,
    Exactness,
    VersionOrigin,
    Vplm,
)
from smile.store.objects import ObjectStore, Reading
from smile.versioning import check_served


@dataclass(frozen=True, slots=True)
class NewVplm:
    """A vPLM to store with its first version. `spec` must be placed on `backbone`.

    `derived_from` is the public adapter whose module it is, for origin adapter; `by_reference`: its
    head and all, so that no bytes follow.
    """

    name: VplmName
    spec: ModuleSpec
    backbone: Backbone
    declared: Declared
    request_id: str
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: VersionOrigin = VersionOrigin.INITIAL
    note: str = ""
    derived_from: Derivation | None = None
    by_reference: bool = False
    exactness: Exactness | None = None

    @property
    def uid(self) -> str:
        """The uid that this request, and its repetitions, give to what they make."""
        return derived_uid("vplm", str(self.name), self.request_id)


@dataclass(frozen=True, slots=True)
class VplmChange:
    """New values; None keeps the old. With `etag`, a lost update is refused. `exactness` counts
    with `sets_exactness`: it may be None itself.
    """

    name: VplmName
    request_id: str
    etag: str = ""
    display_name: str | None = None
    labels: Mapping[str, str] | None = None
    exactness: Exactness | None = None
    sets_exactness: bool = False


class Catalog:
    """vPLM records and their first versions."""

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        ledger: Ledger,
        budget: ByteBudget,
        announcer: Announcer | None = None,
    ) -> None:
        self._store = store
        self._announcer = announcer or Unannounced()
        self._documents = Documents(store)
        self._identity = identity
        self._ledger = ledger
        self._budget = budget
        self._places = Places()

    async def commit(self, new: NewVplm, chunks: AsyncIterator[bytes]) -> Vplm:
        """Store a vPLM with its first version, all or nothing.

        Raises:
            AlreadyExists: the name is taken by another request.
            InvalidArgument: the bytes are not what was declared, or not the spec's tensors.
            NotFound: the adapter to refer to is not offered (any more).
            QuotaExceeded: the tenant has no room.
        """
        check_backbone(new.spec, new.backbone)
        if (earlier := await self._made_earlier(new)) is not None:
            return earlier
        tenant = await self._identity.tenant(new.name.tenant)
        vplms_max = self._identity.limits_of(tenant)[Limit.VPLMS]
        await self._check_count(new.name.tenant, vplms_max)
        manifest = _first_manifest(new)
        own_bytes = 0 if new.by_reference else new.declared.size_bytes
        size = own_bytes + stored_bytes(manifest, _first_record(new, None))
        async with self._ledger.reserved(new.name.tenant, size, tenant.quota_bytes):
            if new.by_reference:
                await self._refer(new, chunks)
                await self._documents.create(keys.version(new.name, new.uid, 1), manifest)
                return await self._publish(new)
            with self._budget.held(new.declared.size_bytes):
                data = await received(chunks, new.declared)
                await check_module(data, new.spec, new.backbone)
                blob = keys.version_blob(new.name, new.uid, new.declared.digest)
                place = keys.version(new.name, new.uid, 1)
                fresh = await asyncio.gather(  # nobody sees either before the record
                    self._store.put_if_absent(blob, data), self._documents.create(place, manifest)
                )
                made = await self._publish(new)
                if not all(fresh):  # what broke off before may have been collected meanwhile
                    await self._store.put_if_absent(blob, data)
                    await self._documents.create(place, manifest)
                return made

    async def _refer(self, new: NewVplm, chunks: AsyncIterator[bytes]) -> None:
        """Raise where the first version is not an adapter that is offered, or bytes follow."""
        assert new.derived_from is not None
        name = AdapterName.parse(new.derived_from.name)
        stored = await self._documents.read(keys.adapter(name), AdapterRecord)
        offered = stored.document if stored and stored.document.deleted is None else None
        same = offered is not None and (
            (offered.digest, offered.size_bytes) == (new.declared.digest, new.declared.size_bytes)
            and new.spec.same_module(offered.spec)
        )
        if not same:
            raise NotFound(
                f"{name} with digest {new.declared.digest} is not offered (any more)",
                metadata={"resource": str(name)},
            )
        async for _ in chunks:
            raise InvalidArgument(
                "no bytes follow a reference, got some; nothing was stored",
                reason="STREAM_TOO_LONG",
            )

    async def _made_earlier(self, new: NewVplm) -> Vplm | None:
        """What this request made before. Raises `AlreadyExists` where the name is not free."""
        stored = await self._documents.read(keys.vplm(new.name), VplmRecord)
        if stored is None:
            return None
        record = stored.document
        if record.deleted is None and record.request_id == new.request_id:
            return record.view(str(new.name), stored.etag)
        if (taken := record.taken_by(new.uid, str(new.name))) is not None:
            raise taken
        if await self._store.list_objects(
            keys.deleted_vplms(new.name.tenant, new.name.vplm, new.uid), limit=1
        ):
            raise AlreadyExists(
                f"this request made {new.name}, which is in the trash; use a new request_id",
                reason="REQUEST_ID_USED",
            )
        return None

    async def _publish(self, new: NewVplm) -> Vplm:
        """Write the record: the commit point."""
        place = keys.vplm(new.name)
        stored = await self._documents.read(place, VplmRecord)
        predecessor = stored.document.deleted if stored else None
        record = _first_record(new, predecessor)
        if stored is None or predecessor is not None:
            with suppress(Aborted):
                etag = await self._documents.swap(place, record, stored.etag if stored else None)
                return record.view(str(new.name), etag)
        try:
            made = await self._made_earlier(new)
        except AlreadyExists:
            await self._remove(keys.vplm_contents(new.name, new.uid))
            raise
        if made is None:
            raise Aborted(f"{new.name} was changed by someone else meanwhile; try again")
        return made

    async def check_count(self, tenant: TenantId) -> None:
        """Raise `QuotaExceeded` where a tenant has as many vPLMs as it may, deleted ones not
        counted; one more is counted in. Raises `NotFound`.
        """
        limits = self._identity.limits_of(await self._identity.tenant(tenant))
        await self._check_count(tenant, limits[Limit.VPLMS])

    async def _check_count(self, tenant: TenantId, vplms_max: int) -> None:
        if self._places.take(tenant, vplms_max):
            return
        names = await self._store.list_folders(keys.vplms(tenant))
        self._places.counted(tenant, len(names))
        if len(names) < vplms_max:
            return
        live, _ = await load_page(names, self._loader(tenant), len(names), bytes_max=None)
        if len(live) >= vplms_max:
            raise QuotaExceeded(
                f"the tenant may have {vplms_max} vPLMs, and has {len(live)}",
                metadata={
                    "limit_name": Limit.VPLMS,
                    "limit": str(vplms_max),
                    "value": str(len(live)),
                },
            )

    async def get(self, name: VplmName) -> Vplm:
        """Raises `NotFound`."""
        stored = await self.record(name)
        return stored.document.view(str(name), stored.etag)

    async def record(self, name: VplmName) -> Stored[VplmRecord]:
        """The record of a vPLM that is not deleted. Raises `NotFound`."""
        return await self._store.read(self.reading(name))

    def reading(self, name: VplmName) -> Reading[Stored[VplmRecord]]:
        """As `record`, among other objects that are read one after another."""
        return live((yield from self._documents.reading(keys.vplm(name), VplmRecord)), name)

    async def list_page(self, tenant: TenantId, size: int, token: str) -> tuple[list[Vplm], str]:
        """A page of vPLMs by id, and the token of the next."""
        listing = f"vplms of {tenant}"
        after = pages.place_of(token, listing)
        names = [n for n in await self._store.list_folders(keys.vplms(tenant)) if n > after]
        found, more = await load_page(names, self._loader(tenant), size)
        following = pages.token_for(listing, found[-1][0]) if more else ""
        return [vplm for _, vplm in found], following

    async def update(self, change: VplmChange) -> Vplm:
        """Change what people read, or how it is answered where nobody says. Raises `NotFound`,
        `Aborted` where `etag` is not current.
        """

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            record = live(stored, change.name).document
            if record.note(change.request_id, RequestKind.UPDATE):
                return None
            check_etag(stored, change.etag)
            wanted: dict[str, object] = {}
            if change.display_name is not None:
                wanted["display_name"] = change.display_name
            if change.labels is not None:
                wanted["labels"] = dict(change.labels)
            if change.sets_exactness:
                wanted["exactness"] = change.exactness
            note = RequestNote(request_id=change.request_id, kind=RequestKind.UPDATE)
            return record.noted(note, **wanted)

        seen = self._announced(change.name) if change.sets_exactness else nullcontext
        return await self._edit(change.name, apply, seen)

    async def set_alias(self, move: AliasMove) -> Vplm:
        """Point an alias to a version, or to two that share its requests; what it pointed to before
        is replaced in whole.

        Raises:
            NotFound: no such vPLM or version.
            FailedPrecondition: a version is a whole model, which is not served.
            InvalidArgument: both versions are the same.
            Aborted: `etag` is not current.
            QuotaExceeded: it would be one alias too many.
        """

        await self._check_served(move)

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            record = live(stored, move.name).document
            if record.note(move.request_id, RequestKind.SET_ALIAS):
                return None
            check_etag(stored, move.etag)
            aliases.check(record, move)
            note = RequestNote(
                request_id=move.request_id, kind=RequestKind.SET_ALIAS, version=move.version
            )
            return record.noted(note, **aliases.moved(record, move))

        return await self._edit(move.name, apply, self._announced(move.name))

    async def _check_served(self, move: AliasMove) -> None:
        """Raise `FailedPrecondition` where an alias shall point to what cannot be served."""
        record = (await self.record(move.name)).document
        for number in filter(record.has, move.versions):
            place = keys.version(move.name, record.uid, number)
            manifest = await self._documents.read(place, VersionManifest)
            if manifest is not None:
                check_served(VersionName(move.name, number), manifest.document.spec)

    async def roll_back(self, rollback: Rollback) -> Vplm:
        """Take an alias back to where it pointed before.

        Raises:
            NotFound: no such vPLM or alias.
            FailedPrecondition: no earlier target is remembered, or it is deleted.
            Aborted: `etag` is not current.
        """

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            record = live(stored, rollback.name).document
            if record.note(rollback.request_id, RequestKind.ROLLBACK_ALIAS):
                return None
            check_etag(stored, rollback.etag)
            version, wanted = aliases.rolled_back(record, rollback)
            note = RequestNote(
                request_id=rollback.request_id, kind=RequestKind.ROLLBACK_ALIAS, version=version
            )
            return record.noted(note, **wanted)

        return await self._edit(rollback.name, apply, self._announced(rollback.name))

    async def alias_moves(self, name: VplmName, alias: str) -> list[AliasMoved]:
        """The moves of an alias, or of all, that are remembered, newest first. `NotFound`."""
        record = (await self.record(name)).document
        if alias and alias not in record.aliases:
            raise aliases.no_alias(name, alias)
        wanted = [alias] if alias else sorted(record.aliases)
        return [move for each in wanted for move in reversed(aliases.history(record, each))]

    async def _edit(
        self,
        name: VplmName,
        change: Callable[[Stored[VplmRecord] | None], VplmRecord | None],
        around: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> Vplm:
        stored = await self._documents.edit(keys.vplm(name), VplmRecord, change, around)
        return stored.document.view(str(name), stored.etag)

    def _announced(self, name: VplmName) -> Callable[[], AbstractAsyncContextManager[None]]:
        return partial(self._announcer.changing, str(name))

    def _loader(self, tenant: TenantId) -> Callable[[str], asyncio.Future[Vplm | None]]:
        async def load(vplm: str) -> Vplm | None:
            name = VplmName(tenant, vplm)
            stored = await self._documents.read(keys.vplm(name), VplmRecord)
            if stored is None or stored.document.deleted is not None:
                return None
            return stored.document.view(str(name), stored.etag)

        return lambda vplm: asyncio.ensure_future(load(vplm))

    async def _remove(self, folder: str) -> None:
        """Best effort: nothing points into `folder` any more, and what stays is swept later."""
        try:
            async for info in every_object(self._store, folder):
                await self._store.delete(info.key)
        except SmileError as error:
            get_logger().warning("left bytes for the sweeper", folder=folder, why=error.message)


async def check_module(data: bytes, spec: ModuleSpec, backbone: Backbone) -> None:
    """Raise `InvalidArgument` where bytes are not exactly the spec's tensors, all finite."""
    try:
        await asyncio.to_thread(weights.decode, data, spec, backbone.shape)
    except DataCorrupted as error:
        raise InvalidArgument(
            f"the weights cannot be used: {error.message}; nothing was stored",
            reason="MODULE_INVALID",
        ) from error


def check_backbone(spec: ModuleSpec, backbone: Backbone) -> None:
    """Raise `InvalidArgument` or `InvalidSpec` where a spec is not made for a backbone."""
    layout.tensors(spec, backbone.shape)
    same = (
        BackboneName.parse(backbone.name).backbone == spec.backbone
        and backbone.digest == spec.backbone_digest
    )
    if not same:
        raise InvalidArgument(
            f"the spec is for backbone '{spec.backbone}' with digest {spec.backbone_digest}, got "
            f"{backbone.name} with digest {backbone.digest}",
            reason="BACKBONE_MISMATCH",
        )


def _first_manifest(new: NewVplm) -> VersionManifest:
    return VersionManifest(
        number=1,
        digest=new.declared.digest,
        size_bytes=new.declared.size_bytes,
        spec=new.spec,
        origin=new.origin,
        create_time=now(),
        note=new.note,
        request_id=new.request_id,
        derived_from=new.derived_from,
        shared=new.by_reference,
    )


def _first_record(new: NewVplm, predecessor: Deletion | None) -> VplmRecord:
    made = now()
    return VplmRecord(
        uid=new.uid,
        request_id=new.request_id,
        predecessor=predecessor,
        spec=new.spec,
        backbone=new.backbone,
        display_name=new.display_name,
        labels=dict(new.labels),
        aliases={SERVING: 1},
        moves={SERVING: (AliasMoved(SERVING, 1, 1, time=made),)},
        exactness=new.exactness,
        latest_version=1,
        create_time=made,
        update_time=made,
    )


def check_etag(stored: Stored[D] | None, etag: str) -> None:
    """Raise `Aborted` where `etag` is given and not that of what is stored."""
    if stored is not None and etag and etag != stored.etag:
        raise Aborted(
            "the vPLM was changed since that etag was read; read it again",
            metadata={"etag": stored.etag},
        )
