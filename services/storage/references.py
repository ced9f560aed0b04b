"""Which blob a manifest names.

Most lie beside the manifest, below their vPLM's uid. A version that is a public adapter as it was
published names the adapter's bytes, which lie among the shared blobs: as many versions as like may
name one of them. What may be removed is what no manifest and no adapter names; manifests of deleted
vPLMs and versions stay where they are until the trash lets them go, and count like all others
(`maintenance.references` asks).
"""

from __future__ import annotations

from services.storage import keys
from services.storage.records import VersionManifest


def blob_of(folder: str, manifest: VersionManifest) -> str:
    """Where a version's bytes are; `folder` holds its vPLM's contents (`keys.vplm_contents`)."""
    if manifest.shared:
        return keys.shared_blob(manifest.digest)
    return f"{folder}blobs/{manifest.digest}"
