"""Versions whose vPLM's record is gone: found, told apart from broken-off creations, and restored.

A record is never deleted: what is deleted leaves a tombstone in its place. So manifests beside no
record at all are of a creation that broke off, or their record was lost. A second version says that
it was lost, as only a vPLM that is there gets one; of a first version alone nobody can say, unless
it is too young for its creation to be over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.storage import keys
from services.storage.documents import Documents
from services.storage.grace import REQUEST_AGE_MAX, Grace
from services.storage.maintenance.places import Place, PlaceKind, place_of
from services.storage.maintenance.work import Work
from services.storage.quota import every_object
from services.storage.records import Deletion, VersionManifest, VplmRecord, derived_uid, now
from smile.errors import DataCorrupted
from smile.maintenance import Action, Finding, FindingKind, Severity
from smile.model.specs import SERVED
from smile.names import VplmName
from smile.resources import SERVING, AliasMoved, Backbone
from smile.store.objects import ObjectInfo, ObjectStore

BY = "storage-rebuild"


@dataclass(frozen=True, slots=True)
class Orphans:
    """The versions of one uid, in order; `name` has no record."""

    name: VplmName
    uid: str
    manifests: tuple[ObjectInfo, ...]

    @property
    def numbers(self) -> list[int]:
        return [int(place_of(info.key).last) for info in self.manifests]

    @property
    def certain(self) -> bool:
        """Whether there was a record once."""
        return self.numbers[-1] > 1

    def missed(self, time: datetime) -> bool:
        """Whether their record may be missed, at `time` by the store's clock."""
        return self.certain or time - self.manifests[-1].modified > REQUEST_AGE_MAX

    @property
    def severity(self) -> Severity:
        """How bad it is that they have no record."""
        return Severity.DAMAGE if self.certain else Severity.REPAIRABLE

    def finding(self, severity: Severity, action: Action = Action.NONE) -> Finding:
        """What is told of them."""
        if self.certain:
            was = f"the record of {len(self.manifests)} versions is missing"
        else:
            was = "a first version has no record: its creation broke off, or the record is lost"
        why = (
            f"{was}; a backup has it whole, rebuild makes one without labels, display name and "
            f"aliases but {SERVING}, which is the newest version"
        )
        place = place_of(keys.vplm(self.name))
        kind = FindingKind.RECORD_MISSING
        return Finding(kind, severity, place.key, place.resource, why, action=action)


class OrphanSearch:
    """Finds orphans among all objects of a tenant's, or of the store's, seen in order of keys."""

    def __init__(self) -> None:
        self._versions: dict[VplmName, dict[str, list[ObjectInfo]]] = {}
        self._trashed: set[tuple[VplmName, str]] = set()

    def saw(self, place: Place, info: ObjectInfo) -> None:
        """One more object. Records come after the versions below them, and the trash before."""
        if place.kind is PlaceKind.DELETED_VPLM:
            self._trashed.add((place.vplm, place.uid))
        elif place.kind is PlaceKind.VPLM:
            self._versions.pop(place.vplm, None)
        elif place.kind is PlaceKind.MANIFEST and (place.vplm, place.uid) not in self._trashed:
            self._versions.setdefault(place.vplm, {}).setdefault(place.uid, []).append(info)

    def found(self) -> Iterator[Orphans]:
        """Of each name without a record, what was last below it."""
        for name, by_uid in self._versions.items():
            every = [Orphans(name, uid, tuple(infos)) for uid, infos in by_uid.items()]
            yield max(every, key=lambda each: max(info.modified for info in each.manifests))


class Restorer:
    """Writes a record for orphans, of what their manifests say."""

    def __init__(self, store: ObjectStore, work: Work) -> None:
        self._store = store
        self._documents = Documents(store)
        self._work = work

    async def restore(
        self, lost: Orphans, backbones: Mapping[str, Backbone], *, dry_run: bool
    ) -> None:
        """Restore one vPLM, unless someone has made one of that name meanwhile. What stands in the
        way is told.

        Args:
            backbones: Those that records name, by digest: manifests have not all of a backbone.
        """
        manifests = await self._readable(lost)
        deleted = await self._deleted(lost)
        kept = [
            manifest
            for number, manifest in manifests.items()
            if number not in deleted and manifest.spec.pet.kind in SERVED
        ]
        if not kept:
            return self._impossible(lost, "no manifest of a version that can be served is whole")
        spec = kept[0].spec
        backbone = backbones.get(spec.backbone_digest)
        if backbone is None:
            why = f"no record names its backbone {spec.backbone}: create a vPLM on it, try again"
            return self._impossible(lost, why)
        record = _record(lost, kept, backbone).model_copy(update={"deleted_versions": deleted})
        if dry_run:
            if await self._store.get(keys.vplm(lost.name)) is None:
                self._work.found(lost.finding(Severity.NOTE))
        elif await self._documents.create(keys.vplm(lost.name), record):
            self._work.found(lost.finding(Severity.NOTE, Action.RESTORED))
        return None

    async def _readable(self, lost: Orphans) -> dict[int, VersionManifest]:
        found: dict[int, VersionManifest] = {}
        for info in lost.manifests:
            try:
                stored = await self._documents.read(info.key, VersionManifest)
            except DataCorrupted as error:
                self._work.corrupted(place_of(info.key), error)
                continue
            if stored is not None:
                found[stored.document.number] = stored.document
        return found

    async def _deleted(self, lost: Orphans) -> dict[int, Deletion]:
        """Versions that were in the trash, by the marks that are there for the sweeper; they have
        their time anew.
        """
        folder = f"{keys.deleted_versions(lost.name.tenant)}{lost.name.vplm}/"
        marks = [place_of(info.key) async for info in every_object(self._store, folder)]
        numbers = {int(mark.last) for mark in marks if mark.uid == lost.uid}
        if not (deleted := numbers & set(lost.numbers)):
            return {}
        ending = await Grace(self._store).deletion(BY, for_good=False)
        return dict.fromkeys(sorted(deleted), ending)

    def _impossible(self, lost: Orphans, why: str) -> None:
        place = place_of(keys.vplm(lost.name))
        self._work.damaged(place, FindingKind.RECORD_MISSING, f"it cannot be restored: {why}")


def _record(lost: Orphans, manifests: Sequence[VersionManifest], backbone: Backbone) -> VplmRecord:
    """With `serving` at the newest of `manifests`, which are in order, whole and can be served;
    numbers that are not there are gone for good.
    """
    first, newest, made = manifests[0], manifests[-1], now()
    made_by_it = derived_uid("vplm", str(lost.name), first.request_id) == lost.uid
    missing = sorted(set(range(1, lost.numbers[-1] + 1)) - set(lost.numbers))
    return VplmRecord(
        uid=lost.uid,
        request_id=first.request_id if made_by_it else "",
        spec=first.spec,
        backbone=backbone,
        aliases={SERVING: newest.number},
        moves={SERVING: (AliasMoved(SERVING, 1, newest.number, time=made, by=BY),)},
        latest_version=lost.numbers[-1],
        create_time=first.create_time,
        update_time=made,
        gone_versions=tuple((number, number) for number in missing),
    )
