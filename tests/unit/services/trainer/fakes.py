"""An in-memory storage with the rules of the real one, and ready-made rows."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from services.trainer.storage import NewVersion, RecordPage, StoredBytes
from smile.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound, Unavailable
from smile.names import DatasetName, JobName, TenantId, VersionName, VplmName
from smile.resources import (
    Dataset,
    DatasetFormat,
    Metric,
    TrainingJob,
    TrainingRecord,
    Vplm,
    VplmVersion,
)


def absent(name: object) -> NotFound:
    return NotFound(f"{name} does not exist", metadata={"resource": str(name)})


@dataclass
class FakeStorage:
    """`away` set, everything raises `Unavailable`; `fail_after` names calls that raise after they
    took effect, as a lost reply or a crash right behind the call would."""

    vplms: dict[str, Vplm] = field(default_factory=dict)
    datasets: dict[str, tuple[Dataset, bytes]] = field(default_factory=dict)
    stored: dict[str, list[tuple[VplmVersion, bytes, str]]] = field(default_factory=dict)
    kept: dict[str, TrainingRecord] = field(default_factory=dict)
    curves: dict[str, list[Metric]] = field(default_factory=dict)
    checkpoints: dict[str, bytes] = field(default_factory=dict)
    aliases: list[tuple[str, str]] = field(default_factory=list)
    bytes_stored: StoredBytes = StoredBytes(0, 1 << 30)  # noqa: RUF009 -- frozen
    away: bool = False
    fail_after: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)

    def add_dataset(self, name: str, data: bytes, format: DatasetFormat) -> None:
        digest = hashlib.sha256(data).hexdigest()
        self.datasets[name] = (Dataset(name, format, digest, len(data)), data)

    async def vplm(self, name: VplmName) -> Vplm:
        self._called("vplm")
        if str(name) not in self.vplms:
            raise absent(name)
        return self.vplms[str(name)]

    async def version(self, name: VersionName) -> VplmVersion:
        return (await self.download_version(name))[0]

    async def versions(self, vplm: VplmName) -> tuple[VplmVersion, ...]:
        self._called("versions")
        return tuple(version for version, _, _ in reversed(self.stored.get(str(vplm), [])))

    async def download_version(self, name: VersionName) -> tuple[VplmVersion, bytes]:
        self._called("download_version")
        for version, data, _ in self.stored.get(str(name.vplm), []):
            if version.name == str(name):
                return version, data
        raise absent(name)

    async def stored_bytes(self, tenant: TenantId) -> StoredBytes:
        self._called("stored_bytes")
        return self.bytes_stored

    async def dataset(self, name: DatasetName) -> Dataset:
        self._called("dataset")
        if str(name) not in self.datasets:
            raise absent(name)
        return self.datasets[str(name)][0]

    async def download_dataset(self, name: DatasetName, to: Path) -> Dataset:
        dataset = await self.dataset(name)
        await asyncio.to_thread(to.write_bytes, self.datasets[str(name)][1])
        return dataset

    async def create_record(self, job: TrainingJob) -> TrainingRecord:
        self._called("create_record")
        if job.name in self.kept:
            raise AlreadyExists(f"{job.name} exists")
        self.kept[job.name] = TrainingRecord(job)
        self._fail("create_record")
        return self.kept[job.name]

    async def update_record(self, record: TrainingRecord) -> TrainingRecord:
        self._called("update_record")
        before = self.kept[record.job.name]
        if record != before:
            if record.fence < before.fence:
                raise Aborted(f"fence {record.fence} is below {before.fence}")
            if before.job.state.done:
                raise FailedPrecondition("the job has ended", reason="JOB_FINISHED")
        self.kept[record.job.name] = record
        self._fail("update_record")
        if record.job.state.done:
            self._fail("update_record_done")
        return record

    async def record(self, name: JobName) -> TrainingRecord:
        self._called("record")
        if str(name) not in self.kept:
            raise absent(name)
        return self.kept[str(name)]

    async def records(self, tenant: TenantId, page_size: int, page_token: str) -> RecordPage:
        self._called("records")
        mine = [r for r in self.kept.values() if r.job.name.startswith(f"tenants/{tenant}/")]
        start = int(page_token or 0)
        page = mine[::-1][start : start + page_size]
        more = start + page_size < len(mine)
        return RecordPage(tuple(page), str(start + page_size) if more else "")

    async def pending_records(self, page_token: str) -> RecordPage:
        self._called("pending_records")
        pending = [record for record in self.kept.values() if not record.job.state.done]
        start = int(page_token or 0)
        more = start + 2 < len(pending)
        return RecordPage(tuple(pending[start : start + 2]), str(start + 2) if more else "")

    async def put_version(self, version: NewVersion) -> VplmVersion:
        self._called("put_version")
        if str(version.vplm) not in self.vplms:
            raise absent(version.vplm)
        versions = self.stored.setdefault(str(version.vplm), [])
        for earlier, _, request_id in versions:
            if request_id == version.request_id:
                return earlier
        made = VplmVersion(
            name=f"{version.vplm}/versions/{len(versions) + 1}",
            digest=version.digest,
            size_bytes=len(version.data),
            spec=version.spec or self.vplms[str(version.vplm)].spec,
            origin=version.origin,
            training_job=version.training_job,
            metrics=version.metrics,
            training=version.summary,
        )
        versions.append((made, version.data, version.request_id))
        self._fail("put_version")
        return made

    async def set_alias(self, version: VersionName, alias: str, request_id: str) -> None:
        self._called("set_alias")
        vplm = self.vplms[str(version.vplm)]
        moved = {**vplm.aliases, alias: version.number}
        self.vplms[str(version.vplm)] = replace(vplm, aliases=moved)
        self.aliases.append((str(version), alias))
        self._fail("set_alias")

    async def put_curve(self, name: JobName, fence: int, metrics: Sequence[Metric]) -> None:
        self._called("put_curve")
        self._may_write(name, fence)
        self.curves[str(name)] = list(metrics)

    async def put_checkpoint(self, name: JobName, fence: int, data: bytes) -> None:
        self._called("put_checkpoint")
        self._may_write(name, fence)
        self.checkpoints[str(name)] = data
        self._fail("put_checkpoint")

    async def checkpoint(self, name: JobName) -> bytes:
        self._called("checkpoint")
        return self.checkpoints.get(str(name), b"")

    async def curve(self, name: JobName) -> AsyncIterator[Metric]:
        self._called("curve")
        for metric in self.curves.get(str(name), []):
            yield metric

    def _may_write(self, name: JobName, fence: int) -> None:
        kept = self.kept[str(name)]
        if fence < kept.fence:
            raise Aborted(f"fence {fence} is below {kept.fence}")
        if kept.job.state.done:
            raise FailedPrecondition("the job has ended", reason="JOB_FINISHED")

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if self.away:
            raise Unavailable("storage is away")

    def _fail(self, call: str) -> None:
        if call in self.fail_after:
            self.fail_after.discard(call)
            raise Crash(call)


class Crash(BaseException):
    """Ends a worker as a kill would: no handler runs."""
