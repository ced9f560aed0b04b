"""What storage keeps as JSON: one document per object, `"schema": 1`, unknown fields tolerated."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from smile.accounting import Limit
from smile.artifacts import Artifact, ArtifactFile
from smile.errors import AlreadyExists
from smile.model.specs import ModuleSpec
from smile.resources import (
    AliasMoved,
    ApiKey,
    Backbone,
    Canary,
    Dataset,
    DatasetFormat,
    Derivation,
    Exactness,
    PublicAdapter,
    Tenant,
    TrainingRecord,
    TrainingSummary,
    VersionOrigin,
    Vplm,
    VplmVersion,
)

REQUESTS_REMEMBERED_MAX = 64


def now() -> datetime:
    """The time as records keep it."""
    return datetime.now(UTC)


def derived_uid(*parts: str) -> str:
    """An id that a repeated request gets again: 20 hex digits of the hash of `parts`."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


class Document(BaseModel):
    """Base of all documents."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, ser_json_inf_nan="constants"
    )

    schema_version: Literal[1] = Field(default=1, alias="schema")


class Deletion(BaseModel):
    """Who deleted a resource, and when. With a `purge_time` it can be had back, until it is swept
    after that; None: it is gone.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    request_id: str
    time: datetime
    purge_time: datetime | None = None

    @property
    def restorable(self) -> bool:
        """Whether it can still be undone."""
        return self.purge_time is not None


class Deletable(Document):
    """A record that stays as a tombstone once deleted, so that deleting is one atomic swap.

    `uid` is derived from the request that made the resource; `request_id` is that request's.
    `predecessor` is the deletion of what had the name before, so that its repetition has no effect
    on what has the name now.
    """

    uid: str
    request_id: str
    deleted: Deletion | None = None
    predecessor: Deletion | None = None

    def taken_by(self, uid: str, what: str) -> AlreadyExists | None:
        """Why a request that makes `uid` cannot have this name; None where it may.

        Asked for live records of other requests, and for tombstones.
        """
        if self.deleted is None:
            return AlreadyExists(
                f"{what} exists already, made by another request", metadata={"resource": what}
            )
        if self.uid == uid:
            return AlreadyExists(
                f"this request made {what}, which was deleted since; use a new request_id",
                reason="REQUEST_ID_USED",
            )
        return None


class RequestKind(enum.StrEnum):
    """Mutations of a vPLM."""

    PUT_VERSION = "put-version"
    SET_ALIAS = "set-alias"
    ROLLBACK_ALIAS = "rollback-alias"
    UPDATE = "update"
    DELETE = "delete"
    UNDELETE = "undelete"
    DELETE_VERSION = "delete-version"
    UNDELETE_VERSION = "undelete-version"


class RequestNote(BaseModel):
    """A mutation that was done. `version` is the one it is about; 0 where it is about none."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    request_id: str
    kind: RequestKind
    version: int = 0


class VplmRecord(Deletable):
    """The movable part of a vPLM. Versions up to `latest_version` are visible, but for those in
    `deleted_versions`, which can be had back, and in `gone_versions`, inclusive ranges.

    `moves` holds the last moves of each alias, oldest first.
    """

    spec: ModuleSpec
    backbone: Backbone
    display_name: str = ""
    labels: dict[str, str] = {}
    aliases: dict[str, int] = {}
    canaries: dict[str, Canary] = {}
    latest_version: int
    create_time: datetime
    update_time: datetime
    requests: tuple[RequestNote, ...] = ()
    moves: dict[str, tuple[AliasMoved, ...]] = {}
    exactness: Exactness | None = None
    deleted_versions: dict[int, Deletion] = {}
    gone_versions: tuple[tuple[int, int], ...] = ()

    def has(self, number: int) -> bool:
        """Whether there is such a version, not deleted."""
        return (
            1 <= number <= self.latest_version
            and number not in self.deleted_versions
            and not any(first <= number <= last for first, last in self.gone_versions)
        )

    def numbers(self) -> list[int]:
        """The versions there are, newest first, the deleted ones not among them."""
        gone = {n for first, last in self.gone_versions for n in range(first, last + 1)}
        every = range(self.latest_version, 0, -1)
        return [n for n in every if n not in gone and n not in self.deleted_versions]

    def note(self, request_id: str, kind: RequestKind) -> RequestNote | None:
        """What the mutation `request_id` did, if it was done lately.

        Raises:
            AlreadyExists: the id was used by a mutation of another kind.
        """
        for note in self.requests:
            if note.request_id == request_id:
                if note.kind is not kind:
                    raise AlreadyExists(
                        f"request_id {request_id} was used for {note.kind} already",
                        reason="REQUEST_ID_USED",
                    )
                return note
        return None

    def with_notes(self, *notes: RequestNote) -> tuple[RequestNote, ...]:
        """The notes of mutations, the newest last; the oldest are forgotten."""
        return (*self.requests, *notes)[-REQUESTS_REMEMBERED_MAX:]

    def noted(self, note: RequestNote, **wanted: object) -> VplmRecord:
        """The record with new values after the mutation `note`."""
        changed = {**wanted, "requests": self.with_notes(note), "update_time": now()}
        return self.model_copy(update=changed)

    def view(self, name: str, etag: str) -> Vplm:
        """The resource as callers see it."""
        return Vplm(
            name=name,
            spec=self.spec,
            display_name=self.display_name,
            aliases=dict(self.aliases),
            latest_version=self.latest_version,
            create_time=self.create_time,
            update_time=self.update_time,
            etag=etag,
            uid=self.uid,
            labels=dict(self.labels),
            canaries=dict(self.canaries),
            delete_time=self.deleted.time if self.deleted else None,
            purge_time=self.deleted.purge_time if self.deleted else None,
            exactness=self.exactness,
        )


class DeletedVplm(Document):
    """A vPLM in the trash: its record as it was."""

    record: VplmRecord

    @property
    def deletion(self) -> Deletion:
        assert self.record.deleted is not None
        return self.record.deleted


class VersionManifest(Document):
    """One immutable version. Its bytes lie beside it, or where `shared` among those that public
    adapters brought.
    """

    number: int
    digest: str
    size_bytes: int
    spec: ModuleSpec
    origin: VersionOrigin
    training_job: str = ""
    metrics: dict[str, float] = {}
    create_time: datetime
    note: str = ""
    request_id: str
    training: TrainingSummary | None = None
    derived_from: Derivation | None = None
    shared: bool = False

    def view(self, vplm: str, deletion: Deletion | None = None) -> VplmVersion:
        """The resource as callers see it; `deletion` where it is in the trash."""
        return VplmVersion(
            name=f"{vplm}/versions/{self.number}",
            digest=self.digest,
            size_bytes=self.size_bytes,
            spec=self.spec,
            origin=self.origin,
            training_job=self.training_job,
            metrics=dict(self.metrics),
            create_time=self.create_time,
            note=self.note,
            training=self.training,
            derived_from=self.derived_from,
            delete_time=deletion.time if deletion else None,
            purge_time=deletion.purge_time if deletion else None,
        )


class AdapterRecord(Deletable):
    """A public adapter; its bytes are among the shared blobs."""

    spec: ModuleSpec
    backbone: Backbone
    digest: str
    size_bytes: int
    create_time: datetime
    display_name: str = ""
    description: str = ""
    license: str = ""
    source: str = ""
    tags: dict[str, str] = {}
    metrics: dict[str, float] = {}

    def view(self, name: str) -> PublicAdapter:
        """The resource as callers see it."""
        return PublicAdapter(
            name=name,
            spec=self.spec,
            digest=self.digest,
            size_bytes=self.size_bytes,
            create_time=self.create_time,
            display_name=self.display_name,
            description=self.description,
            license=self.license,
            source=self.source,
            tags=dict(self.tags),
            metrics=dict(self.metrics),
        )


class ArtifactRecord(Deletable):
    """An artifact. `files` are those of `artifact`; none once it is deleted."""

    artifact: Artifact
    files: tuple[ArtifactFile, ...]

    def view(self, name: str) -> Artifact:
        """The resource as callers see it."""
        return replace(self.artifact, name=name, files=self.files)


class DatasetRecord(Deletable):
    """An immutable dataset; its bytes are beside it."""

    format: DatasetFormat
    digest: str
    size_bytes: int
    create_time: datetime
    display_name: str = ""

    def view(self, name: str) -> Dataset:
        """The resource as callers see it."""
        return Dataset(
            name, self.format, self.digest, self.size_bytes, self.create_time, self.display_name
        )


class TenantRecord(Document):
    """A tenant, and the key made with it."""

    display_name: str = ""
    create_time: datetime
    quota_bytes: int
    request_id: str
    first_key_id: str
    limits: dict[Limit, int] = {}

    def view(self, tenant: str) -> Tenant:
        """The resource as callers see it."""
        return Tenant(
            f"tenants/{tenant}",
            self.display_name,
            self.create_time,
            self.quota_bytes,
            dict(self.limits),
        )


class KeyRecord(Document):
    """An API key, without its secret: only the SHA-256 of that."""

    secret_sha256: str
    display_name: str = ""
    create_time: datetime
    revoke_time: datetime | None = None
    request_id: str

    def view(self, name: str) -> ApiKey:
        """The resource as callers see it."""
        return ApiKey(name, self.display_name, self.create_time, self.revoke_time)


class JobRecord(Document):
    """A training job with the fence of its last writer."""

    record: TrainingRecord
