"""What maintenance has seen and done so far, and what of it is yet to be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from services.storage.maintenance.places import Place
from smile.errors import DataCorrupted
from smile.maintenance import (
    Action,
    Finding,
    FindingKind,
    MaintenanceEvent,
    MaintenanceProgress,
    MaintenanceSummary,
    Severity,
)

_REASONS = {
    "BLOB_MISSING": FindingKind.BLOB_MISSING,
    "DIGEST_MISMATCH": FindingKind.DIGEST_MISMATCH,
    "SIGNATURE_INVALID": FindingKind.SIGNATURE_INVALID,
    "SIGNATURE_MISSING": FindingKind.SIGNATURE_MISSING,
    "SIGNATURE_KEY_UNKNOWN": FindingKind.SIGNATURE_INVALID,
}
_COUNTERS = {
    Severity.DAMAGE: "damage",
    Severity.REPAIRABLE: "repairable",
    Severity.NOTE: "notes",
}


class Work:
    """Counts, and findings that `drain` gives once."""

    def __init__(self) -> None:
        self._total = 0
        self._summary = MaintenanceSummary(0)
        self._untold: list[Finding] = []

    def expect(self, objects_total: int) -> None:
        """There are so many objects to look at."""
        self._total = objects_total

    def looked(self, objects: int = 1, bytes_read: int = 0) -> None:
        """So many more objects were looked at, and so many more bytes read."""
        now = self._summary
        self._summary = replace(
            now, objects=now.objects + objects, bytes_read=now.bytes_read + bytes_read
        )

    def found(self, finding: Finding) -> None:
        """Something was found, and maybe done."""
        now = self._summary
        counter = _COUNTERS[finding.severity]
        changed = finding.action is not Action.NONE
        self._summary = replace(
            now,
            **{counter: getattr(now, counter) + 1},
            changed=now.changed + changed,
            changed_bytes=now.changed_bytes + (finding.size_bytes if changed else 0),
        )
        self._untold.append(finding)

    def corrupted(self, place: Place, error: DataCorrupted) -> None:
        """What lies at `place` is not what was stored there."""
        kind = _REASONS.get(error.reason, FindingKind.RECORD_CORRUPTED)
        self.damaged(place, kind, error.message)

    def damaged(self, place: Place, kind: FindingKind, detail: str) -> None:
        """Something stored is lost or wrong."""
        self.found(Finding(kind, Severity.DAMAGE, place.key, place.resource, detail))

    def drain(self) -> Iterator[MaintenanceEvent]:
        """What was found since the last time, and how far the work is."""
        untold, self._untold = self._untold, []
        yield from untold
        done = self._summary
        yield MaintenanceProgress(done.objects, self._total, done.bytes_read)

    @property
    def summary(self) -> MaintenanceSummary:
        """All so far."""
        return self._summary
