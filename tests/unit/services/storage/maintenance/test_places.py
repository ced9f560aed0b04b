"""Every key that storage makes says what lies there."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.storage import keys
from services.storage.maintenance.places import PlaceKind, place_of
from smile.names import ApiKeyName, DatasetName, JobName, TenantId, VplmName

ACME = TenantId("acme")
VPLM = VplmName(ACME, "topics")
DATASET = DatasetName(ACME, "news")
JOB = JobName(ACME, "j1")
UID = "0123456789abcdef0123"
SHA = "ab" * 32
CREATED = datetime(2026, 1, 2, tzinfo=UTC)

KEYS = {
    keys.tenant(ACME): (PlaceKind.TENANT, "tenants/acme"),
    keys.api_key(ApiKeyName(ACME, "k1")): (PlaceKind.API_KEY, "tenants/acme/apiKeys/k1"),
    keys.vplm(VPLM): (PlaceKind.VPLM, str(VPLM)),
    keys.version(VPLM, UID, 3): (PlaceKind.MANIFEST, str(VPLM)),
    keys.version_blob(VPLM, UID, SHA): (PlaceKind.BLOB, str(VPLM)),
    keys.deleted_vplm(VPLM, UID, "d1"): (PlaceKind.DELETED_VPLM, str(VPLM)),
    keys.deleted_version(VPLM, UID, 3): (PlaceKind.DELETED_VERSION, str(VPLM)),
    f"{keys.ADAPTERS}bio.json": (PlaceKind.ADAPTER, ""),
    keys.shared_blob(SHA): (PlaceKind.SHARED_BLOB, ""),
    keys.dataset(DATASET): (PlaceKind.DATASET, str(DATASET)),
    keys.dataset_bytes(DATASET, UID): (PlaceKind.DATASET_BYTES, str(DATASET)),
    keys.job(JOB): (PlaceKind.JOB, str(JOB)),
    keys.curve(JOB): (PlaceKind.CURVE, str(JOB)),
    keys.checkpoint(JOB, 7): (PlaceKind.CHECKPOINT, str(JOB)),
    keys.job_place(JOB, CREATED): (PlaceKind.JOB_ORDER, str(JOB)),
    keys.pending_job(JOB): (PlaceKind.PENDING_JOB, str(JOB)),
    keys.UNHEARD: (PlaceKind.FEED, ""),
    f"{keys.QUARANTINE}id/{keys.vplm(VPLM)}": (PlaceKind.QUARANTINED, ""),
    "probe/0123": (PlaceKind.PROBE, ""),
    "probe/0123/create-only": (PlaceKind.PROBE, ""),
    "tenants/acme/other/thing.json": (PlaceKind.OTHER_RECORD, "tenants/acme"),
    "tenants/acme/vplms/topics/x": (PlaceKind.UNKNOWN, ""),
    f"tenants/acme/vplms/topics/{UID}/blobs/{SHA[1:]}": (PlaceKind.UNKNOWN, ""),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_says_what_lies_there(key: str) -> None:
    place = place_of(key)
    assert (place.key, place.kind, place.resource) == (key, *KEYS[key])


def test_names_are_read_back() -> None:
    manifest = place_of(keys.version(VPLM, UID, 3))
    assert (manifest.vplm, manifest.uid, int(manifest.last)) == (VPLM, UID, 3)
    assert place_of(keys.dataset_bytes(DATASET, UID)).dataset == DATASET
    assert place_of(keys.pending_job(JOB)).job == JOB
    assert place_of(keys.checkpoint(JOB, 7)).job == JOB


def test_records_are_the_documents() -> None:
    assert [key for key in KEYS if keys.is_record(key)] == [
        key for key in KEYS if key.endswith(".json") and not key.startswith(keys.QUARANTINE)
    ]
