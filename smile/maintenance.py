"""What operators are told of the object store: what it can do, and how what it holds fares."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias


class Severity(enum.StrEnum):
    """How bad a finding is."""

    DAMAGE = "damage"  # something stored is lost or wrong: a backup has it
    REPAIRABLE = "repairable"  # `rebuild` makes it good
    NOTE = "note"  # nothing is wrong


class FindingKind(enum.StrEnum):
    """What was found."""

    RECORD_CORRUPTED = "record-corrupted"
    SIGNATURE_INVALID = "signature-invalid"
    SIGNATURE_MISSING = "signature-missing"
    SIGNATURE_OLD = "signature-old"
    RECORD_MISSING = "record-missing"
    MANIFEST_MISSING = "manifest-missing"
    BLOB_MISSING = "blob-missing"
    DIGEST_MISMATCH = "digest-mismatch"
    MODULE_INVALID = "module-invalid"
    POINTER_DANGLING = "pointer-dangling"
    INDEX_MISSING = "index-missing"
    INDEX_STALE = "index-stale"
    UNREFERENCED = "unreferenced"
    UNKNOWN_OBJECT = "unknown-object"


class Action(enum.StrEnum):
    """What was done about a finding."""

    NONE = "none"
    QUARANTINED = "quarantined"
    RESTORED = "restored"
    REMOVED = "removed"
    REPAIRED = "repaired"


class Capability(enum.StrEnum):
    """What an object store may be able to do."""

    CREATE_ONLY = "create-only"
    CONDITIONAL_REPLACE = "conditional-replace"
    READ_AFTER_WRITE = "read-after-write"
    LIST_AFTER_WRITE = "list-after-write"
    STREAMED_WRITES = "streamed-writes"
    RANGE_READS = "range-reads"
    SHARED = "shared"
    DURABLE = "durable"
    VERSIONING = "versioning"


class StoreMode(enum.StrEnum):
    """Ways to use an object store that ask different things of it."""

    RECORDS = "records"  # to keep anything at all
    REPLICAS = "replicas"  # several processes of storage over one store
    VERSIONED = "versioned"  # what is overwritten or deleted can be had back from the store


@dataclass(frozen=True, slots=True)
class CapabilityReport:
    """What was seen of one capability. `detail` says why where it is missing."""

    capability: Capability
    granted: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ModeReport:
    """Whether the store has what a mode needs.

    Attributes:
        wanted: Whether the settings ask for the mode: then storage is not ready without.
        missing: What the store lacks.
    """

    mode: StoreMode
    wanted: bool
    missing: tuple[Capability, ...] = ()

    @property
    def granted(self) -> bool:
        return not self.missing


@dataclass(frozen=True, slots=True)
class Signing:
    """How records are signed.

    Attributes:
        key: Id of the key that signs; empty where none does.
        verification_keys: Ids of all keys whose signatures count.
        unsigned_accepted: Whether records without a signature are read.
    """

    key: str = ""
    verification_keys: tuple[str, ...] = ()
    unsigned_accepted: bool = True


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The object store, as it was probed.

    Attributes:
        store: Where the bytes are, without credentials.
        probe_time: When; None before the first probe that the store answered.
    """

    store: str
    probe_time: datetime | None = None
    capabilities: tuple[CapabilityReport, ...] = ()
    modes: tuple[ModeReport, ...] = ()
    signing: Signing = Signing()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Attributes:
        resource: What it belongs to, as `tenants/{t}/vplms/{v}`; empty where to nothing.
        object_key: Where it lies in the store.
    """

    kind: FindingKind
    severity: Severity
    object_key: str
    resource: str = ""
    detail: str = ""
    size_bytes: int = 0
    action: Action = Action.NONE


@dataclass(frozen=True, slots=True)
class MaintenanceProgress:
    """How far the work is. `objects_total` is 0 while it is not known."""

    objects_done: int
    objects_total: int = 0
    bytes_read: int = 0


@dataclass(frozen=True, slots=True)
class MaintenanceSummary:
    """How the work ended: the last that is told.

    Attributes:
        objects: Looked at.
        bytes_read: Of objects read whole.
        changed: Objects that were removed, restored or made anew.
        changed_bytes: Their bytes.
    """

    objects: int
    bytes_read: int = 0
    damage: int = 0
    repairable: int = 0
    notes: int = 0
    changed: int = 0
    changed_bytes: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing was found to be wrong."""
        return not self.damage and not self.repairable


MaintenanceEvent: TypeAlias = Finding | MaintenanceProgress | MaintenanceSummary
