"""Deleted versions: the vPLM's record says which; their numbers are never given again.

An empty object marks each for the sweeper, written before the record says so. Once the grace period
has ended the record says that the number is gone, then its manifest is removed; its bytes go with
the next collection of what no manifest names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from services.storage import aliases, keys
from services.storage.catalog import check_etag
from services.storage.changes import Announcer, Unannounced
from services.storage.deletable import live
from services.storage.documents import Documents, Stored
from services.storage.grace import Left, swept
from services.storage.quota import Ledger
from services.storage.records import (
    Deletion,
    RequestKind,
    RequestNote,
    VersionManifest,
    VplmRecord,
)
from services.storage.trash import Trash
from smile.errors import FailedPrecondition, NotFound, QuotaExceeded, SmileError
from smile.logs import get_logger
from smile.names import VersionName, VplmName
from smile.resources import VplmVersion
from smile.store.objects import ObjectStore

DELETED_VERSIONS_MAX = 256  # of one vPLM, that can be had back


@dataclass(frozen=True, slots=True)
class VersionDeletion:
    """A version to delete. `for_good`: without a way back; also out of the trash."""

    name: VersionName
    request_id: str
    etag: str = ""
    for_good: bool = False


class VersionTrash:
    """Deletes versions, and gives them back. `trash` says how long they can be had back."""

    def __init__(
        self,
        store: ObjectStore,
        trash: Trash,
        ledger: Ledger,
        announcer: Announcer | None = None,
    ) -> None:
        self._store = store
        self._documents = Documents(store)
        self._trash = trash
        self._ledger = ledger
        self._announcer = announcer or Unannounced()

    async def delete(self, wanted: VersionDeletion) -> VplmVersion:
        """Delete a version, as it was.

        Raises:
            NotFound: no such version.
            FailedPrecondition: an alias names it.
            QuotaExceeded: too many deleted ones can be had back.
            Aborted: `etag` is not the vPLM's.
        """
        number = wanted.name.number
        ending = await self._trash.grace.deletion(wanted.request_id, for_good=wanted.for_good)
        changed = _trashed if ending.restorable else _gone

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            record = _live(stored, wanted.name)
            if record.note(wanted.request_id, RequestKind.DELETE_VERSION) is not None:
                return None
            check_etag(stored, wanted.etag)
            _check(record, wanted)
            note = RequestNote(
                request_id=wanted.request_id, kind=RequestKind.DELETE_VERSION, version=number
            )
            return record.noted(note, **changed(record, number, ending))

        place = keys.vplm(wanted.name.vplm)
        record = _live(await self._documents.read(place, VplmRecord), wanted.name)
        manifest = await self._manifest(wanted, record, ending)
        await self._documents.edit(place, VplmRecord, apply, self._marking(wanted.name, record.uid))
        return manifest

    async def undelete(self, name: VersionName, request_id: str) -> VplmVersion:
        """Have a deleted version back.

        Raises:
            NotFound: no such version can be had back.
            AlreadyExists: the request id was used for something else.
        """

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            record = _live(stored, name)
            if record.note(request_id, RequestKind.UNDELETE_VERSION) is not None:
                return None
            held = record.deleted_versions.get(name.number)
            if held is None or not held.restorable:
                raise _absent(name)
            note = RequestNote(
                request_id=request_id, kind=RequestKind.UNDELETE_VERSION, version=name.number
            )
            others = {n: d for n, d in record.deleted_versions.items() if n != name.number}
            return record.noted(note, deleted_versions=others)

        stored = await self._documents.edit(keys.vplm(name.vplm), VplmRecord, apply)
        place = keys.version(name.vplm, stored.document.uid, name.number)
        manifest = await self._documents.read(place, VersionManifest)
        if manifest is None:
            raise _absent(name)
        return manifest.document.view(str(name.vplm))

    async def sweep(self) -> int:
        """Remove for good what nobody can have back any more; the versions removed."""
        return await swept(self._store, keys.deleted_versions, self._end_of)

    async def _end_of(self, left: Left) -> bool:
        entry = left.info.key.removeprefix(keys.deleted_versions(left.tenant))
        vplm, _, rest = entry.partition("/")
        uid, _, number = rest.partition(".")
        name = VersionName(VplmName(left.tenant, vplm), int(number))
        stored = await self._documents.read(keys.vplm(name.vplm), VplmRecord)
        if stored is None or stored.document.deleted is not None or stored.document.uid != uid:
            if not await self._trash.holds(name.vplm, uid):
                await self._store.delete(left.info.key)
            return False
        if stored.document.has(name.number):  # had back, or just being deleted
            if left.stale:
                await self._store.delete(left.info.key)
            return False
        held = stored.document.deleted_versions.get(name.number)
        if held is not None and not left.ended(held):
            return False
        await self._end(name, uid, left)
        return await self._remove(name, uid)

    async def _end(self, name: VersionName, uid: str, left: Left) -> None:
        """Let the record say that the number is gone."""

        def apply(stored: Stored[VplmRecord] | None) -> VplmRecord | None:
            record = live(stored, name.vplm).document
            held = record.deleted_versions.get(name.number)
            if record.uid != uid or held is None:
                return None
            if not left.ended(held):
                raise FailedPrecondition(f"{name} can be had back")
            return record.model_copy(update=_gone(record, name.number, held))

        await self._documents.edit(keys.vplm(name.vplm), VplmRecord, apply)

    async def _remove(self, name: VersionName, uid: str) -> bool:
        """Remove a gone version's manifest and mark; best effort, the mark brings the sweeper."""
        try:
            await self._store.delete(keys.version(name.vplm, uid, name.number))
            await self._store.delete(keys.deleted_version(name.vplm, uid, name.number))
        except SmileError as error:
            get_logger().warning("left a version for the sweeper", why=error.message)
            return False
        self._ledger.forget(name.vplm.tenant)
        return True

    async def _manifest(
        self, wanted: VersionDeletion, record: VplmRecord, ending: Deletion
    ) -> VplmVersion:
        number = wanted.name.number
        place = keys.version(wanted.name.vplm, record.uid, number)
        stored = await self._documents.read(place, VersionManifest)
        if stored is None or number > record.latest_version:
            raise _absent(wanted.name)
        return stored.document.view(
            str(wanted.name.vplm), record.deleted_versions.get(number, ending)
        )

    def _marking(
        self, name: VersionName, uid: str
    ) -> Callable[[], AbstractAsyncContextManager[None]]:
        @asynccontextmanager
        async def around() -> AsyncIterator[None]:
            place = keys.deleted_version(name.vplm, uid, name.number)
            await self._store.put_if_absent(place, b"")
            async with self._announcer.changing(str(name.vplm)):
                yield

        return around


def _live(stored: Stored[VplmRecord] | None, name: VersionName) -> VplmRecord:
    """The record of a version's vPLM; where there is none, what is absent is the version."""
    if stored is None or stored.document.deleted is not None:
        raise _absent(name)
    return stored.document


def _check(record: VplmRecord, wanted: VersionDeletion) -> None:
    number = wanted.name.number
    if not record.has(number):
        if wanted.for_good and number in record.deleted_versions:
            return
        raise _absent(wanted.name)
    if named := aliases.pointing_to(record, number):
        raise FailedPrecondition(
            f"{wanted.name} cannot be deleted while an alias names it: {', '.join(named)}; point "
            "the alias to another version first",
            reason="VERSION_IN_USE",
            metadata={"aliases": ",".join(named)},
        )
    if len(record.deleted_versions) >= DELETED_VERSIONS_MAX:
        raise QuotaExceeded(
            f"of one vPLM at most {DELETED_VERSIONS_MAX} deleted versions can be had back, and "
            f"{len(record.deleted_versions)} can; delete some for good",
            metadata={
                "limit": str(DELETED_VERSIONS_MAX),
                "value": str(len(record.deleted_versions)),
            },
        )


def _trashed(record: VplmRecord, number: int, ending: Deletion) -> dict[str, object]:
    return {"deleted_versions": {**record.deleted_versions, number: ending}}


def _gone(record: VplmRecord, number: int, _: Deletion) -> dict[str, object]:
    """Fields of a record that has a number no more; neighbouring ranges become one."""
    ranges = sorted((*record.gone_versions, (number, number)))
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    others = {n: d for n, d in record.deleted_versions.items() if n != number}
    return {"deleted_versions": others, "gone_versions": tuple(joined)}


def _absent(name: VersionName) -> NotFound:
    return NotFound(f"{name} does not exist", metadata={"resource": str(name)})
