"""What the trainer asks of storage, in domain values: the seam between its rules and the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from smile.model.specs import ModuleSpec
from smile.names import DatasetName, JobName, TenantId, VersionName, VplmName
from smile.resources import (
    Dataset,
    Metric,
    TrainingJob,
    TrainingRecord,
    TrainingSummary,
    VersionOrigin,
    Vplm,
    VplmVersion,
)


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version to be stored. The same `request_id` stores it once."""

    vplm: VplmName
    data: bytes = field(repr=False)
    digest: str
    training_job: str
    metrics: dict[str, float]
    request_id: str
    origin: VersionOrigin = VersionOrigin.TRAINING
    summary: TrainingSummary | None = None
    spec: ModuleSpec | None = None  # the vPLM's own where None


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """How much a tenant stores, and how much it may."""

    used: int
    allowed: int


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Some records, and the token of the next page ('' on the last)."""

    records: tuple[TrainingRecord, ...]
    next_page_token: str = ""


class Storage(Protocol):
    """Durable state.

    Every method raises `Unavailable` while storage is away, and `NotFound` alike for what is absent
    and for what is another tenant's.
    """

    async def vplm(self, name: VplmName) -> Vplm: ...

    async def version(self, name: VersionName) -> VplmVersion: ...

    async def versions(self, vplm: VplmName) -> tuple[VplmVersion, ...]:
        """The newest versions, newest first; one page."""
        ...

    async def download_version(self, name: VersionName) -> tuple[VplmVersion, bytes]:
        """The manifest and its bytes. Raises `DataCorrupted` if they do not match its digest."""
        ...

    async def stored_bytes(self, tenant: TenantId) -> StoredBytes: ...

    async def dataset(self, name: DatasetName) -> Dataset: ...

    async def download_dataset(self, name: DatasetName, to: Path) -> Dataset:
        """Writes the bytes to `to`. Raises `DataCorrupted` if they do not match their digest."""
        ...

    async def create_record(self, job: TrainingJob) -> TrainingRecord:
        """Raises `AlreadyExists` for another job of that name."""
        ...

    async def update_record(self, record: TrainingRecord) -> TrainingRecord:
        """Raises `Aborted` under a lower fence, `FailedPrecondition` (JOB_FINISHED) at the end."""
        ...

    async def record(self, name: JobName) -> TrainingRecord: ...

    async def records(self, tenant: TenantId, page_size: int, page_token: str) -> RecordPage: ...

    async def pending_records(self, page_token: str) -> RecordPage:
        """Records of all tenants whose job has not ended."""
        ...

    async def put_version(self, version: NewVersion) -> VplmVersion: ...

    async def set_alias(self, version: VersionName, alias: str, request_id: str) -> None: ...

    async def put_curve(self, name: JobName, fence: int, metrics: Sequence[Metric]) -> None:
        """Raises `Aborted` under a lower fence, `FailedPrecondition` (JOB_FINISHED) at the end."""
        ...

    async def put_checkpoint(self, name: JobName, fence: int, data: bytes) -> None:
        """Raises `Aborted` under a lower fence, `FailedPrecondition` (JOB_FINISHED) at the end."""
        ...

    async def checkpoint(self, name: JobName) -> bytes:
        """The latest one's bytes; b"" where there is none."""
        ...

    def curve(self, name: JobName) -> AsyncIterator[Metric]: ...
