"""What an object is, read from its key: the inverse of `services.storage.keys`. Pure."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from services.storage import keys
from smile.names import DatasetName, JobName, TenantId, VplmName
from smile.store.objects import PROBE_PREFIX


class PlaceKind(enum.StrEnum):
    """Kinds of objects."""

    TENANT = "tenant"
    API_KEY = "api-key"
    VPLM = "vplm"
    MANIFEST = "manifest"
    BLOB = "blob"
    DELETED_VPLM = "deleted-vplm"
    DELETED_VERSION = "deleted-version"
    ADAPTER = "adapter"
    SHARED_BLOB = "shared-blob"
    ARTIFACT = "artifact"
    ARTIFACT_BLOB = "artifact-blob"
    DATASET = "dataset"
    DATASET_BYTES = "dataset-bytes"
    JOB = "job"
    CURVE = "curve"
    CHECKPOINT = "checkpoint"
    JOB_ORDER = "job-order"
    PENDING_JOB = "pending-job"
    FEED = "feed"
    PROBE = "probe"
    QUARANTINED = "quarantined"
    OTHER_RECORD = "other-record"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Place:
    """What lies at `key`. `owner` is the id of the vPLM, dataset or job; `last` what follows it."""

    key: str
    kind: PlaceKind
    tenant: str = ""
    owner: str = ""
    uid: str = ""
    last: str = ""

    @property
    def vplm(self) -> VplmName:
        return VplmName(TenantId(self.tenant), self.owner)

    @property
    def dataset(self) -> DatasetName:
        return DatasetName(TenantId(self.tenant), self.owner)

    @property
    def job(self) -> JobName:
        return JobName(TenantId(self.tenant), self.owner)

    @property
    def resource(self) -> str:
        """The resource it belongs to; empty where to none."""
        for kinds, collection in _COLLECTIONS:
            if self.kind in kinds:
                return f"tenants/{self.tenant}/{collection}/{self.owner}"
        return f"tenants/{self.tenant}" if self.tenant else ""


_K = PlaceKind
_COLLECTIONS = (
    ((_K.VPLM, _K.MANIFEST, _K.BLOB, _K.DELETED_VPLM, _K.DELETED_VERSION), "vplms"),
    ((_K.DATASET, _K.DATASET_BYTES), "datasets"),
    ((_K.JOB, _K.CURVE, _K.CHECKPOINT, _K.JOB_ORDER, _K.PENDING_JOB), "trainingJobs"),
    ((_K.API_KEY,), "apiKeys"),
)
_OWNED = r"tenants/(?P<tenant>[^/]+)/"
_UID = r"(?P<uid>[0-9a-f]{20})"
_SHA = r"(?P<last>[0-9a-f]{64})"
_PATTERNS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (_K.TENANT, r"identity/tenants/(?P<tenant>[^/]+)\.json"),
        (_K.API_KEY, r"identity/keys/(?P<tenant>[^/]+)/(?P<owner>[^/]+)\.json"),
        (_K.VPLM, rf"{_OWNED}vplms/(?P<owner>[^/]+)/vplm\.json"),
        (
            _K.MANIFEST,
            rf"{_OWNED}vplms/(?P<owner>[^/]+)/{_UID}/versions/(?P<last>\d{{9}})\.json",
        ),
        (_K.BLOB, rf"{_OWNED}vplms/(?P<owner>[^/]+)/{_UID}/blobs/{_SHA}"),
        (
            _K.DELETED_VPLM,
            rf"{_OWNED}deletedVplms/(?P<owner>[^/]+)/{_UID}/(?P<last>[^/]+)\.json",
        ),
        (
            _K.DELETED_VERSION,
            rf"{_OWNED}deletedVersions/(?P<owner>[^/]+)/{_UID}\.(?P<last>\d{{9}})",
        ),
        (_K.ADAPTER, r"publicAdapters/(?P<owner>[^/]+)\.json"),
        (_K.SHARED_BLOB, rf"publicBlobs/{_SHA}"),
        (_K.ARTIFACT, r"artifacts/(?P<owner>[^/]+)\.json"),
        (_K.ARTIFACT_BLOB, rf"artifactBlobs/{_SHA}"),
        (_K.DATASET, rf"{_OWNED}datasets/(?P<owner>[^/]+)/dataset\.json"),
        (_K.DATASET_BYTES, rf"{_OWNED}datasets/(?P<owner>[^/]+)/{_UID}/data"),
        (_K.JOB, rf"{_OWNED}trainingJobs/(?P<owner>[^/]+)/record\.json"),
        (_K.CURVE, rf"{_OWNED}trainingJobs/(?P<owner>[^/]+)/curve\.jsonl"),
        (
            _K.CHECKPOINT,
            rf"{_OWNED}trainingJobs/(?P<owner>[^/]+)/checkpoints/(?P<last>\d{{19}})",
        ),
        (_K.JOB_ORDER, rf"{_OWNED}trainingJobOrder/(?P<last>\d{{13}})-(?P<owner>[^/]+)"),
        (_K.PENDING_JOB, r"pendingJobs/(?P<tenant>[^/]+)/(?P<owner>[^/]+)"),
        (_K.FEED, r"feed/[^/]+"),
        (_K.PROBE, rf"{PROBE_PREFIX}.+"),
        (_K.QUARANTINED, rf"{keys.QUARANTINE}(?P<last>.+)"),
        (_K.OTHER_RECORD, rf"(?:{_OWNED})?.+\.json"),
    )
)


def place_of(key: str) -> Place:
    """What `key` says that it is."""
    for kind, pattern in _PATTERNS:
        if (match := pattern.fullmatch(key)) is not None:
            found = {name: text for name, text in match.groupdict().items() if text}
            return Place(key, kind, **found)
    return Place(key, PlaceKind.UNKNOWN)
