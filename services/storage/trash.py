"""Deleted vPLMs: gone for everybody at once, and to be had back until their grace period ends.

A deletion writes the record as it is into the trash, then turns it into a tombstone, which is the
commit point. An undelete reads the tombstone, then the trash, then puts the record back in the
tombstone's place. The sweeper says in the trash that the end has come, then writes the tombstone
anew, then removes the bytes: an undelete that had looked before, however long ago, finds another
tombstone than it read. What lies in the trash while its vPLM lives is of a request that broke off;
nobody sees it, and the sweeper removes it.

A name is free as soon as what had it is deleted. What was deleted under it stays in the trash, and
can be had back once the name is free again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from services.storage import keys
from services.storage.catalog import Catalog, check_etag
from services.storage.changes import Announcer, Unannounced
from services.storage.deletable import deleted_by, live
from services.storage.documents import Documents, Stored, load_page
from services.storage.grace import Grace, Left, swept
from services.storage.quota import Ledger, every_object
from services.storage.records import (
    DeletedVplm,
    Deletion,
    RequestKind,
    RequestNote,
    VplmRecord,
    derived_uid,
    now,
)
from smile import pages
from smile.errors import Aborted, AlreadyExists, DataCorrupted, NotFound, SmileError
from smile.logs import get_logger
from smile.names import TenantId, VplmName
from smile.resources import Vplm
from smile.store.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class VplmDeletion:
    """A vPLM to delete. `for_good`: at once and without a way back, with all that is in the trash
    under its name.
    """

    name: VplmName
    request_id: str
    etag: str = ""
    for_good: bool = False

    @property
    def id(self) -> str:
        """What the trash knows it by."""
        return derived_uid("deletion", self.request_id)


@dataclass(frozen=True, slots=True)
class Restoration:
    """A deleted vPLM to have back: the one with `uid`, or the last that was deleted."""

    name: VplmName
    request_id: str
    uid: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Trashed:
    """A document of the trash, and where it is."""

    name: VplmName
    key: str
    stored: Stored[DeletedVplm]

    @property
    def record(self) -> VplmRecord:
        return self.stored.document.record

    def view(self) -> Vplm:
        return self.record.view(str(self.name), self.stored.etag)


class Trash:
    """Deletes vPLMs, and gives them back.

    Args:
        store: Where everything is.
        catalog: The vPLMs.
        ledger: Told where bytes are gone.
        grace: How long what is deleted can be had back.
        announcer: Tells of deletions.
    """

    def __init__(
        self,
        store: ObjectStore,
        catalog: Catalog,
        ledger: Ledger,
        grace: Grace | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        self._store = store
        self._documents = Documents(store)
        self._catalog = catalog
        self._ledger = ledger
        self.grace = grace or Grace(store)
        self._announcer = announcer or Unannounced()

    async def delete(self, wanted: VplmDeletion) -> Vplm:
        """Delete a vPLM, as it was.

        Raises:
            NotFound: no such vPLM, or deleted by another request.
            Aborted: `etag` is not current.
        """
        if wanted.for_good and (emptied := await self._empty(wanted)) is not None:
            return emptied
        ending = await self.grace.deletion(wanted.request_id, for_good=wanted.for_good)
        taken: list[VplmRecord] = []

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            if stored is not None and _deleted_by(stored.document, wanted.request_id):
                return None
            record = live(stored, wanted.name).document
            check_etag(stored, wanted.etag)
            note = RequestNote(request_id=wanted.request_id, kind=RequestKind.DELETE)
            whole = {"deleted": ending, "requests": record.with_notes(note)}
            taken[:] = [record.model_copy(update=whole)]
            return _tombstone(record, ending)

        stored = await self._documents.edit(
            keys.vplm(wanted.name), VplmRecord, apply, self._trashing(wanted, taken)
        )
        deleted = stored.document.deleted
        if deleted is not None and deleted.request_id == wanted.request_id:
            if not deleted.restorable:
                await self._remove(wanted.name, stored.document.uid)
            if taken:
                return taken[0].view(str(wanted.name), stored.etag)
        self._ledger.forget(wanted.name.tenant)
        return await self._deleted_earlier(wanted, stored)

    async def undelete(self, wanted: Restoration) -> Vplm:
        """Have a deleted vPLM back, as it was.

        Raises:
            NotFound: nothing of that name (and uid) can be had back.
            AlreadyExists: the name is in use.
            Aborted: `etag` is not current, or something else happened to it meanwhile.
            QuotaExceeded: the tenant has as many vPLMs as it may.
        """
        place = keys.vplm(wanted.name)
        stored = await self._documents.read(place, VplmRecord)
        if stored is not None and stored.document.deleted is None:
            if stored.document.note(wanted.request_id, RequestKind.UNDELETE) is not None:
                return stored.document.view(str(wanted.name), stored.etag)
            raise AlreadyExists(
                f"{wanted.name} is in use; delete what has the name to have another one back",
                metadata={"resource": str(wanted.name)},
            )
        found = await self._last(wanted)
        check_etag(found.stored, wanted.etag)
        await self._catalog.check_count(wanted.name.tenant)
        note = RequestNote(request_id=wanted.request_id, kind=RequestKind.UNDELETE)
        predecessor = stored.document.deleted if stored else None
        back = found.record.noted(note, deleted=None, predecessor=predecessor)
        etag = await self._documents.swap(place, back, stored.etag if stored else None)
        await self._forget(found.key)
        return back.view(str(wanted.name), etag)

    async def list_page(self, tenant: TenantId, size: int, token: str) -> tuple[list[Vplm], str]:
        """A page of vPLMs by id, deleted ones that can be had back among them, and the token of the
        next.
        """
        listing = f"vplms of {tenant}, deleted ones among them"
        after = pages.place_of(token, listing)
        every = [*await self._store.list_folders(keys.vplms(tenant)), *await self.entries(tenant)]
        wanted = sorted((e for e in every if _order(e) > _order(after)), key=_order)

        async def load(entry: str) -> Vplm | None:
            if "/" in entry:
                return await self.load(tenant, entry)
            try:
                return await self._catalog.get(VplmName(tenant, entry))
            except NotFound:
                return None

        found, more = await load_page(wanted, load, size)
        following = pages.token_for(listing, found[-1][0]) if more else ""
        return [vplm for _, vplm in found], following

    async def entries(self, tenant: TenantId) -> list[str]:
        """What is in a tenant's trash, as `{vplm}/{document}`; see `load`."""
        folder = keys.deleted_vplms(tenant)
        return [info.key.removeprefix(folder) async for info in every_object(self._store, folder)]

    async def load(self, tenant: TenantId, entry: str) -> Vplm | None:
        """A deleted vPLM; None where it cannot be had back (any more)."""
        name = VplmName(tenant, entry.partition("/")[0])
        found = await self._read(name, f"{keys.deleted_vplms(tenant)}{entry}")
        if found is None or not found.stored.document.deletion.restorable:
            return None
        return None if await self._lives(found) else found.view()

    async def holds(self, name: VplmName, uid: str) -> bool:
        """Whether the trash has a vPLM whose bytes are needed to have it back.

        Ask it after the vPLM's record: a deletion writes into the trash first.
        """
        prefix = keys.deleted_vplms(name.tenant, name.vplm, uid)
        async for info in every_object(self._store, prefix):
            try:
                found = await self._read(name, info.key)
            except DataCorrupted:
                return True  # unreadable: touch nothing
            if found is not None and found.stored.document.deletion.restorable:
                return True
        return False

    async def sweep(self) -> int:
        """Remove for good what nobody can have back any more; the vPLMs removed."""
        return await swept(self._store, keys.deleted_vplms, self._end_of)

    async def _end_of(self, left: Left) -> bool:
        entry = left.info.key.removeprefix(keys.deleted_vplms(left.tenant))
        found = await self._read(VplmName(left.tenant, entry.partition("/")[0]), left.info.key)
        if found is None:
            return False
        if await self._lives(found):  # a deletion or an undelete that broke off, or is under way
            if left.stale:
                await self._store.delete(left.info.key)
            return False
        return left.ended(found.stored.document.deletion) and await self._purge(found)

    async def _purge(self, found: Trashed) -> bool:
        """Say that it is gone, then remove it; False where somebody has it back."""
        document = found.stored.document
        gone = document.deletion.model_copy(update={"purge_time": None})
        ended = document.model_copy(
            update={"record": found.record.model_copy(update={"deleted": gone})}
        )
        try:
            await self._documents.swap(found.key, ended, found.stored.etag)
        except Aborted:
            return False
        if not await self._fence(found, gone):
            return False
        if await self._remove(found.name, found.record.uid):
            await self._forget(found.key)  # else the sweeper comes again
        return True

    async def _fence(self, found: Trashed, gone: Deletion) -> bool:
        """Write the tombstone anew, so that who read it before cannot replace it; False where
        somebody has.
        """
        lives = False

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            nonlocal lives
            if stored is not None and stored.document.deleted is None:
                lives = stored.document.uid == found.record.uid
                return None
            last = _tombstone(found.record, gone) if stored is None else stored.document
            return last.model_copy(update={"update_time": now()})

        await self._documents.edit(keys.vplm(found.name), VplmRecord, apply)
        return not lives

    async def _empty(self, wanted: VplmDeletion) -> Vplm | None:
        """Remove for good what is in the trash under a name; the last of it where no vPLM has the
        name, which is then all there is to do.
        """
        stored = await self._documents.read(keys.vplm(wanted.name), VplmRecord)
        if stored is not None and stored.document.note(wanted.request_id, RequestKind.DELETE):
            return stored.document.view(str(wanted.name), stored.etag)
        found = await self._all(wanted.name)
        for each in found:
            await self._purge(each)
        self._ledger.forget(wanted.name.tenant)
        if stored is None or stored.document.deleted is None or not found:
            return None
        note = RequestNote(request_id=wanted.request_id, kind=RequestKind.DELETE)

        def remember(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            return stored.document.noted(note) if stored and stored.document.deleted else None

        await self._documents.edit(keys.vplm(wanted.name), VplmRecord, remember)
        return found[-1].view()

    async def _deleted_earlier(self, wanted: VplmDeletion, stored: Stored[VplmRecord]) -> Vplm:
        """What a repeated deletion answers: the vPLM as it is in the trash, or as it is now."""
        record = stored.document
        if record.deleted is None and record.note(wanted.request_id, RequestKind.DELETE):
            return record.view(str(wanted.name), stored.etag)  # had back since
        ending = f"/{wanted.id}.json"
        for found in await self._all(wanted.name):
            if found.key.endswith(ending):
                return found.view()
        if record.deleted is not None:
            return record.view(str(wanted.name), stored.etag)
        raise NotFound(
            f"{wanted.name} was deleted by this request, for good; another vPLM has the name now",
            metadata={"resource": str(wanted.name)},
        )

    async def _last(self, wanted: Restoration) -> Trashed:
        found = [
            each
            for each in await self._all(wanted.name)
            if each.stored.document.deletion.restorable and wanted.uid in ("", each.record.uid)
        ]
        if not found:
            raise NotFound(f"{wanted.name} does not exist", metadata={"resource": str(wanted.name)})
        return found[-1]

    async def _all(self, name: VplmName) -> list[Trashed]:
        """What the trash has under a name and can be read, the last deleted last."""
        found = []
        folder = keys.deleted_vplms(name.tenant, name.vplm)
        async for info in every_object(self._store, folder):
            each = await self._read(name, info.key)
            if each is not None and not await self._lives(each):
                found.append(each)
        return sorted(found, key=lambda each: each.stored.document.deletion.time)

    async def _read(self, name: VplmName, key: str) -> Trashed | None:
        stored = await self._documents.read(key, DeletedVplm)
        return None if stored is None else Trashed(name, key, stored)

    async def _lives(self, found: Trashed) -> bool:
        """Whether its vPLM is not deleted: what lies in the trash means nothing."""
        stored = await self._documents.read(keys.vplm(found.name), VplmRecord)
        if stored is None or stored.document.deleted is not None:
            return False
        return stored.document.uid == found.record.uid

    def _trashing(
        self, wanted: VplmDeletion, taken: list[VplmRecord]
    ) -> Callable[[], AbstractAsyncContextManager[None]]:
        """Around a tombstone's writing: the record goes into the trash first, and watchers hear."""

        @asynccontextmanager
        async def around() -> AsyncIterator[None]:
            (record,) = taken
            if record.deleted is not None and record.deleted.restorable:
                place = keys.deleted_vplm(wanted.name, record.uid, wanted.id)
                document = DeletedVplm(record=record)
                await self._documents.edit(place, DeletedVplm, lambda _: document)
            async with self._announcer.changing(str(wanted.name)):
                yield

        return around

    async def _remove(self, name: VplmName, uid: str) -> bool:
        """Best effort: nothing points to these any more, and what stays is swept later. Whether
        nothing does.
        """
        self._ledger.forget(name.tenant)
        folder = keys.vplm_contents(name, uid)
        try:
            async for info in every_object(self._store, folder):
                await self._store.delete(info.key)
        except SmileError as error:
            get_logger().warning("left bytes for the sweeper", folder=folder, why=error.message)
            return False
        return True

    async def _forget(self, key: str) -> None:
        """Best effort, as `_remove`."""
        try:
            await self._store.delete(key)
        except SmileError as error:
            get_logger().warning("left in the trash", key=key, why=error.message)


def _order(entry: str) -> list[str]:
    """What had a name comes right after what has it now."""
    return entry.split("/") if entry else []


def _tombstone(record: VplmRecord, deletion: Deletion) -> VplmRecord:
    """What stays where the record was."""
    cleared = {
        "labels": {},
        "display_name": "",
        "aliases": {},
        "canaries": {},
        "requests": (),
        "moves": {},
        "deleted_versions": {},
    }
    return record.model_copy(update={"deleted": deletion, **cleared})


def _deleted_by(record: VplmRecord, request_id: str) -> bool:
    """Whether this request deleted the vPLM, or the one that had its name before."""
    noted = record.note(request_id, RequestKind.DELETE) is not None
    return noted or deleted_by(record, request_id)
