"""Where things are in the object store: the only place that makes object keys.

identity/tenants/{t}.json · identity/keys/{t}/{key}.json
tenants/{t}/vplms/{v}/vplm.json                        record (swapped)
tenants/{t}/vplms/{v}/{uid}/versions/{n:09d}.json      manifest (created once)
tenants/{t}/vplms/{v}/{uid}/blobs/{sha256}             bytes of versions
tenants/{t}/deletedVplms/{v}/{uid}/{deletion}.json     record as it was (swapped), while restorable
tenants/{t}/deletedVersions/{v}/{uid}.{n:09d}          empty; there while a version is restorable
publicAdapters/{a}.json · publicBlobs/{sha256}         record (swapped), bytes manifests may name
artifacts/{a}.json · artifactBlobs/{sha256}            record (swapped), bytes records name
tenants/{t}/datasets/{d}/dataset.json · {uid}/data     record (swapped), bytes
tenants/{t}/trainingJobs/{j}/record.json · curve.jsonl
tenants/{t}/trainingJobs/{j}/checkpoints/{fence:019d}  gone once the job has ended
tenants/{t}/trainingJobOrder/{time}-{j}                empty; newest job first
pendingJobs/{t}/{j}                                    empty; there while the job has not ended
accounting/journal/{day}/{reporter}.json               one reporter's counts (swapped), for 9 days
accounting/days/{day}.json                             all tenants' totals (swapped), once over
accounting/tenants/{t}/{day}.json                      the same of one, by vPLM (swapped)
feed/unheard                                           who changes things without a word, if any
quarantine/{id}/{key}                                  what nothing pointed to, for a while

Bytes are below the uid of what they belong to, so that deleting removes a folder and never asks who
else might use a blob.
"""

from __future__ import annotations

from datetime import date, datetime

from smile.names import (
    AdapterName,
    ApiKeyName,
    ArtifactName,
    DatasetName,
    JobName,
    TenantId,
    VplmName,
)

TENANTS = "identity/tenants/"
TENANT_DATA = "tenants/"
PENDING_JOBS = "pendingJobs/"
ADAPTERS = "publicAdapters/"
SHARED_BLOBS = "publicBlobs/"
ARTIFACTS = "artifacts/"
ARTIFACT_BLOBS = "artifactBlobs/"
UNHEARD = "feed/unheard"
QUARANTINE = "quarantine/"
JOURNAL = "accounting/journal/"
USAGE_DAYS = "accounting/days/"
_TIME_MS_MAX = 9_999_999_999_999


def tenant(tenant: TenantId) -> str:
    return f"{TENANTS}{tenant}.json"


def api_keys(tenant: TenantId) -> str:
    return f"identity/keys/{tenant}/"


def api_key(name: ApiKeyName) -> str:
    return f"{api_keys(name.tenant)}{name.key}.json"


def owned(tenant: TenantId) -> str:
    """The folder of all that counts as stored by a tenant."""
    return f"{TENANT_DATA}{tenant}/"


def vplms(tenant: TenantId) -> str:
    return f"{owned(tenant)}vplms/"


def vplm_folder(name: VplmName) -> str:
    return f"{vplms(name.tenant)}{name.vplm}/"


def vplm(name: VplmName) -> str:
    return f"{vplm_folder(name)}vplm.json"


def vplm_contents(name: VplmName, uid: str) -> str:
    return f"{vplm_folder(name)}{uid}/"


def version(name: VplmName, uid: str, number: int) -> str:
    return f"{vplm_contents(name, uid)}versions/{number:09d}.json"


def version_blob(name: VplmName, uid: str, digest: str) -> str:
    return f"{vplm_contents(name, uid)}blobs/{digest}"


def deleted_vplms(tenant: TenantId, vplm: str = "", uid: str = "") -> str:
    """The folder of a tenant's, of those of one name, or of one vPLM that had it."""
    below = "".join(f"{part}/" for part in (vplm, uid) if part)
    return f"{owned(tenant)}deletedVplms/{below}"


def deleted_vplm(name: VplmName, uid: str, deletion: str) -> str:
    return f"{deleted_vplms(name.tenant, name.vplm, uid)}{deletion}.json"


def deleted_versions(tenant: TenantId) -> str:
    return f"{owned(tenant)}deletedVersions/"


def deleted_version(name: VplmName, uid: str, number: int) -> str:
    return f"{deleted_versions(name.tenant)}{name.vplm}/{uid}.{number:09d}"


def adapter(name: AdapterName) -> str:
    return f"{ADAPTERS}{name.adapter}.json"


def shared_blob(digest: str) -> str:
    return f"{SHARED_BLOBS}{digest}"


def artifact(name: ArtifactName) -> str:
    return f"{ARTIFACTS}{name.artifact}.json"


def artifact_blob(digest: str) -> str:
    return f"{ARTIFACT_BLOBS}{digest}"


def datasets(tenant: TenantId) -> str:
    return f"{owned(tenant)}datasets/"


def dataset_folder(name: DatasetName) -> str:
    return f"{datasets(name.tenant)}{name.dataset}/"


def dataset(name: DatasetName) -> str:
    return f"{dataset_folder(name)}dataset.json"


def dataset_bytes(name: DatasetName, uid: str) -> str:
    return f"{dataset_folder(name)}{uid}/data"


def job(name: JobName) -> str:
    return f"{owned(name.tenant)}trainingJobs/{name.job}/record.json"


def curve(name: JobName) -> str:
    return f"{owned(name.tenant)}trainingJobs/{name.job}/curve.jsonl"


def checkpoints(name: JobName) -> str:
    return f"{owned(name.tenant)}trainingJobs/{name.job}/checkpoints/"


def checkpoint(name: JobName, fence: int) -> str:
    """Sorts by fence: a worker that lost its lease can only write below its heirs'."""
    return f"{checkpoints(name)}{fence:019d}"


def job_order(tenant: TenantId) -> str:
    return f"{owned(tenant)}trainingJobOrder/"


def job_place(name: JobName, created: datetime) -> str:
    """Sorts newer jobs before older ones."""
    milliseconds = _TIME_MS_MAX - int(created.timestamp() * 1000)
    return f"{job_order(name.tenant)}{milliseconds:013d}-{name.job}"


def pending_job(name: JobName) -> str:
    return f"{PENDING_JOBS}{name.tenant}/{name.job}"


def journal(day: date) -> str:
    return f"{JOURNAL}{day.isoformat()}/"


def reporter(day: date, reporter: str) -> str:
    return f"{journal(day)}{reporter}.json"


def usage_day(day: date) -> str:
    return f"{USAGE_DAYS}{day.isoformat()}.json"


def tenant_days(tenant: TenantId) -> str:
    return f"accounting/tenants/{tenant}/"


def tenant_day(tenant: TenantId, day: date) -> str:
    return f"{tenant_days(tenant)}{day.isoformat()}.json"


def pending_jobs(tenant: TenantId) -> str:
    return f"{PENDING_JOBS}{tenant}/"


def is_record(key: str) -> bool:
    """Whether a JSON document lies there."""
    return key.endswith(".json") and not key.startswith(QUARANTINE)


def resource(key: str) -> str:
    """The resource a record's key belongs to, without what only storage knows."""
    parts = [part for part in key.split("/") if not part.endswith(".json")]
    return "/".join(parts[:4])
