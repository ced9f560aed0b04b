"""vPLMs: commit, read, change, delete.

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

from services.storage import keys
from services.storage.blobs import ByteBudget, Declared, received
from services.storage.changes import Announcer, Unannounced
from services.storage.documents import Documents, Stored, load_page, stored_bytes
from services.storage.identity import Identity
from services.storage.quota import Ledger, Places, every_object
from services.storage.records import (
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
from smile.names import BackboneName, TenantId, VplmName
from smile.resources import SERVING, Backbone, Canary, VersionOrigin, Vplm
from smile.store.objects import ObjectStore

ALIASES_MAX = 16


@dataclass(frozen=True, slots=True)
class NewVplm:
    """A vPLM to store with its first version. `spec` must be placed on `backbone`."""

    name: VplmName
    spec: ModuleSpec
    backbone: Backbone
    declared: Declared
    request_id: str
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: VersionOrigin = VersionOrigin.INITIAL
    note: str = ""

    @property
    def uid(self) -> str:
        """The uid that this request, and its repetitions, give to what they make."""
        return derived_uid("vplm", str(self.name), self.request_id)


@dataclass(frozen=True, slots=True)
class VplmChange:
    """New values; None keeps the old. With `etag`, a lost update is refused."""

    name: VplmName
    request_id: str
    etag: str = ""
    display_name: str | None = None
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class AliasMove:
    """Where an alias shall point: to one version, or with `canary` to two. With `etag`, a lost
    update is refused.
    """

    name: VplmName
    alias: str
    version: int
    request_id: str
    etag: str = ""
    canary: Canary | None = None

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version the alias shall point to."""
        return (self.version,) if self.canary is None else (self.version, self.canary.version)


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
            QuotaExceeded: the tenant has no room.
        """
        _check_backbone(new)
        if (earlier := await self._made_earlier(new)) is not None:
            return earlier
        tenant = await self._identity.tenant(new.name.tenant)
        vplms_max = self._identity.limits_of(tenant)[Limit.VPLMS]
        await self._check_count(new.name.tenant, vplms_max)
        manifest = _first_manifest(new)
        size = new.declared.size_bytes + stored_bytes(manifest, _first_record(new, None))
        async with self._ledger.reserved(new.name.tenant, size, tenant.quota_bytes):
            with self._budget.held(new.declared.size_bytes):
                data = await received(chunks, new.declared)
                await check_module(data, new.spec, new.backbone)
                blob = keys.version_blob(new.name, new.uid, new.declared.digest)
                await asyncio.gather(  # nobody sees either before the record
                    self._store.put_if_absent(blob, data),
                    self._documents.create(keys.version(new.name, new.uid, 1), manifest),
                )
            return await self._publish(new)

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
        return live(await self._documents.read(keys.vplm(name), VplmRecord), name)

    async def list_page(self, tenant: TenantId, size: int, token: str) -> tuple[list[Vplm], str]:
        """A page of vPLMs by id, and the token of the next."""
        listing = f"vplms of {tenant}"
        after = pages.place_of(token, listing)
        names = [n for n in await self._store.list_folders(keys.vplms(tenant)) if n > after]
        found, more = await load_page(names, self._loader(tenant), size)
        following = pages.token_for(listing, found[-1][0]) if more else ""
        return [vplm for _, vplm in found], following

    async def update(self, change: VplmChange) -> Vplm:
        """Change what people read. Raises `NotFound`, `Aborted` where `etag` is not current."""

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            record = live(stored, change.name).document
            if record.note(change.request_id, RequestKind.UPDATE):
                return None
            _check_etag(stored, change.etag)
            wanted: dict[str, object] = {}
            if change.display_name is not None:
                wanted["display_name"] = change.display_name
            if change.labels is not None:
                wanted["labels"] = dict(change.labels)
            note = RequestNote(request_id=change.request_id, kind=RequestKind.UPDATE)
            return _changed(record, wanted, note)

        return await self._edit(change.name, apply)

    async def set_alias(self, move: AliasMove) -> Vplm:
        """Point an alias to a version, or to two that share its requests; what it pointed to before
        is replaced in whole.

        Raises:
            NotFound: no such vPLM or version.
            InvalidArgument: both versions are the same.
            Aborted: `etag` is not current.
            QuotaExceeded: it would be one alias too many.
        """

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            record = live(stored, move.name).document
            if record.note(move.request_id, RequestKind.SET_ALIAS):
                return None
            _check_etag(stored, move.etag)
            _check_alias(record, move)
            note = RequestNote(
                request_id=move.request_id, kind=RequestKind.SET_ALIAS, version=move.version
            )
            return _changed(record, _pointing(record, move), note)

        return await self._edit(move.name, apply, self._announced(move.name))

    async def delete(self, name: VplmName, etag: str, request_id: str) -> None:
        """Delete a vPLM. The record becomes a tombstone at once; its bytes go after that.

        Raises:
            NotFound: no such vPLM, or deleted by another request.
            Aborted: `etag` is not current.
        """

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            if stored is not None and _deleted_by(stored.document, request_id):
                return None
            record = live(stored, name).document
            _check_etag(stored, etag)
            deletion = Deletion(request_id=request_id, time=now())
            cleared = {
                "labels": {},
                "display_name": "",
                "aliases": {},
                "canaries": {},
                "requests": (),
            }
            return record.model_copy(update={"deleted": deletion, **cleared})

        stored = await self._documents.edit(
            keys.vplm(name), VplmRecord, apply, self._announced(name)
        )
        if stored.document.deleted is not None:
            await self._remove(keys.vplm_contents(name, stored.document.uid))
        self._ledger.forget(name.tenant)

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


def live(stored: Stored[VplmRecord] | None, name: VplmName) -> Stored[VplmRecord]:
    """`stored` where there is a vPLM. Raises `NotFound`."""
    if stored is None or stored.document.deleted is not None:
        raise NotFound(f"{name} does not exist", metadata={"resource": str(name)})
    return stored


async def check_module(data: bytes, spec: ModuleSpec, backbone: Backbone) -> None:
    """Raise `InvalidArgument` where bytes are not exactly the spec's tensors, all finite."""
    try:
        await asyncio.to_thread(weights.decode, data, spec, backbone.shape)
    except DataCorrupted as error:
        raise InvalidArgument(
            f"the weights cannot be used: {error.message}; nothing was stored",
            reason="MODULE_INVALID",
        ) from error


def _check_backbone(new: NewVplm) -> None:
    layout.tensors(new.spec, new.backbone.shape)
    same = (
        BackboneName.parse(new.backbone.name).backbone == new.spec.backbone
        and new.backbone.digest == new.spec.backbone_digest
    )
    if not same:
        raise InvalidArgument(
            f"the spec is for backbone '{new.spec.backbone}' with digest "
            f"{new.spec.backbone_digest}, got {new.backbone.name} with digest "
            f"{new.backbone.digest}",
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
        latest_version=1,
        create_time=made,
        update_time=made,
    )


def _changed(record: VplmRecord, wanted: Mapping[str, object], note: RequestNote) -> VplmRecord:
    return record.model_copy(
        update={**wanted, "requests": record.with_notes(note), "update_time": now()}
    )


def _check_etag(stored: Stored[VplmRecord] | None, etag: str) -> None:
    if stored is not None and etag and etag != stored.etag:
        raise Aborted(
            "the vPLM was changed since that etag was read; read it again",
            metadata={"etag": stored.etag},
        )


def _pointing(record: VplmRecord, move: AliasMove) -> dict[str, object]:
    """Aliases and canaries after a move."""
    canaries = {alias: held for alias, held in record.canaries.items() if alias != move.alias}
    if move.canary is not None:
        canaries[move.alias] = move.canary
    return {"aliases": {**record.aliases, move.alias: move.version}, "canaries": canaries}


def _check_alias(record: VplmRecord, move: AliasMove) -> None:
    for number in move.versions:
        if not 1 <= number <= record.latest_version:
            version = f"{move.name}/versions/{number}"
            raise NotFound(f"{version} does not exist", metadata={"resource": version})
    if move.canary is not None and move.canary.version == move.version:
        raise InvalidArgument(
            f"an alias splits its traffic between two versions, got version {move.version} twice",
            violations=[("canary.version", "must be another version than `version`")],
        )
    if move.alias not in record.aliases and len(record.aliases) >= ALIASES_MAX:
        raise QuotaExceeded(
            f"a vPLM has at most {ALIASES_MAX} aliases, and has {len(record.aliases)}",
            metadata={"limit": str(ALIASES_MAX), "value": str(len(record.aliases))},
        )


def _deleted_by(record: VplmRecord, request_id: str) -> bool:
    """Whether this request deleted the vPLM, or the one that had its name before."""
    return any(
        deletion is not None and deletion.request_id == request_id
        for deletion in (record.deleted, record.predecessor)
    )
