"""`Storage` over gRPC. Bytes are streamed, and checked against their digest on this side too."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import grpc

from services.trainer.storage import NewVersion, RecordPage, StoredBytes
from smile import codec
from smile.errors import DataCorrupted
from smile.limits import CHECKPOINT_BYTES_MAX, CHUNK_BYTES_MAX, FULL_BYTES_MAX, PAGE_SIZE_MAX
from smile.names import DatasetName, JobName, TenantId, VersionName, VplmName
from smile.resources import Dataset, Metric, TrainingJob, TrainingRecord, Vplm, VplmVersion
from smile.rpc.channel import acting_for
from smile.rpc.status import calling
from smile.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
    training_records_pb2,
    training_records_pb2_grpc,
)

TRANSFER_TIMEOUT_S = 900.0
CURVE_MESSAGE_METRICS_MAX = 10_000


@contextmanager
def _for(tenant: TenantId) -> Iterator[None]:
    with acting_for(tenant), calling():
        yield


class StorageClient:
    """Calls storage with the service key of `channel`, for the tenant of each name."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._storage = storage_pb2_grpc.StorageServiceStub(channel)
        self._datasets = datasets_pb2_grpc.DatasetServiceStub(channel)
        self._records = training_records_pb2_grpc.TrainingRecordServiceStub(channel)

    async def vplm(self, name: VplmName) -> Vplm:
        with _for(name.tenant):
            request = storage_pb2.GetVplmRecordRequest(name=str(name))
            return codec.vplm_from_pb(await self._storage.GetVplm(request))

    async def version(self, name: VersionName) -> VplmVersion:
        with _for(name.vplm.tenant):
            request = storage_pb2.GetVersionRequest(name=str(name))
            return codec.version_from_pb(await self._storage.GetVersion(request))

    async def versions(self, vplm: VplmName) -> tuple[VplmVersion, ...]:
        with _for(vplm.tenant):
            request = storage_pb2.ListVersionsRequest(parent=str(vplm), page_size=PAGE_SIZE_MAX)
            page = await self._storage.ListVersions(request)
        return tuple(map(codec.version_from_pb, page.versions))

    async def download_version(self, name: VersionName) -> tuple[VplmVersion, bytes]:
        data = bytearray()
        version: VplmVersion | None = None
        with _for(name.vplm.tenant):
            request = storage_pb2.DownloadVersionRequest(name=str(name))
            call = self._storage.DownloadVersion(request, timeout=TRANSFER_TIMEOUT_S)
            async for part in call:
                if part.WhichOneof("part") == "version":
                    version = codec.version_from_pb(part.version)
                    continue
                data += part.chunk
                if len(data) > FULL_BYTES_MAX:
                    raise DataCorrupted(f"{name} has more than {FULL_BYTES_MAX} bytes")
        if version is None or hashlib.sha256(data).hexdigest() != version.digest:
            raise DataCorrupted(f"the bytes of {name} do not match their digest")
        return version, bytes(data)

    async def stored_bytes(self, tenant: TenantId) -> StoredBytes:
        with _for(tenant):
            request = storage_pb2.GetUsageRequest(name=f"tenants/{tenant}", page_size=1)
            usage = await self._storage.GetUsage(request)
        return StoredBytes(usage.stored_bytes, usage.quota_bytes)

    async def dataset(self, name: DatasetName) -> Dataset:
        with _for(name.tenant):
            request = datasets_pb2.GetDatasetRequest(name=str(name))
            return codec.dataset_from_pb(await self._datasets.GetDataset(request))

    async def download_dataset(self, name: DatasetName, to: Path) -> Dataset:
        digest = hashlib.sha256()
        dataset: Dataset | None = None
        with _for(name.tenant), _opened(to) as file:
            request = datasets_pb2.DownloadDatasetRequest(name=str(name))
            call = self._datasets.DownloadDataset(request, timeout=TRANSFER_TIMEOUT_S)
            async for part in call:
                if part.WhichOneof("part") == "dataset":
                    dataset = codec.dataset_from_pb(part.dataset)
                    continue
                digest.update(part.chunk)
                await asyncio.to_thread(file.write, part.chunk)
        if dataset is None or digest.hexdigest() != dataset.digest:
            raise DataCorrupted(f"the bytes of {name} do not match their digest")
        return dataset

    async def create_record(self, job: TrainingJob) -> TrainingRecord:
        with _for(JobName.parse(job.name).tenant):
            request = training_records_pb2.CreateTrainingRecordRequest(
                training_job=codec.job_to_pb(job)
            )
            return codec.record_from_pb(await self._records.CreateTrainingRecord(request))

    async def update_record(self, record: TrainingRecord) -> TrainingRecord:
        with _for(JobName.parse(record.job.name).tenant):
            request = training_records_pb2.UpdateTrainingRecordRequest(
                record=codec.record_to_pb(record)
            )
            return codec.record_from_pb(await self._records.UpdateTrainingRecord(request))

    async def record(self, name: JobName) -> TrainingRecord:
        with _for(name.tenant):
            request = training_records_pb2.GetTrainingRecordRequest(name=str(name))
            return codec.record_from_pb(await self._records.GetTrainingRecord(request))

    async def records(self, tenant: TenantId, page_size: int, page_token: str) -> RecordPage:
        with _for(tenant):
            request = training_records_pb2.ListTrainingRecordsRequest(
                parent=f"tenants/{tenant}", page_size=page_size, page_token=page_token
            )
            page = await self._records.ListTrainingRecords(request)
        return RecordPage(tuple(map(codec.record_from_pb, page.records)), page.next_page_token)

    async def pending_records(self, page_token: str) -> RecordPage:
        with calling():
            request = training_records_pb2.ListPendingTrainingRecordsRequest(
                page_size=PAGE_SIZE_MAX, page_token=page_token
            )
            page = await self._records.ListPendingTrainingRecords(request)
        return RecordPage(tuple(map(codec.record_from_pb, page.records)), page.next_page_token)

    async def put_version(self, version: NewVersion) -> VplmVersion:
        with _for(version.vplm.tenant):
            call = self._storage.PutVersion(_version_parts(version), timeout=TRANSFER_TIMEOUT_S)
            return codec.version_from_pb(await call)

    async def set_alias(self, version: VersionName, alias: str, request_id: str) -> None:
        with _for(version.vplm.tenant):
            await self._storage.SetAlias(
                storage_pb2.SetAliasRequest(
                    name=str(version.vplm),
                    alias=alias,
                    version=version.number,
                    request_id=request_id,
                )
            )

    async def put_curve(self, name: JobName, fence: int, metrics: Sequence[Metric]) -> None:
        with _for(name.tenant):
            parts = _curve_parts(name, fence, metrics)
            await self._records.PutTrainingCurve(parts, timeout=TRANSFER_TIMEOUT_S)

    async def put_checkpoint(self, name: JobName, fence: int, data: bytes) -> None:
        with _for(name.tenant):
            parts = _checkpoint_parts(name, fence, data)
            await self._records.PutTrainingCheckpoint(parts, timeout=TRANSFER_TIMEOUT_S)

    async def checkpoint(self, name: JobName) -> bytes:
        data = bytearray()
        with _for(name.tenant):
            request = training_records_pb2.GetTrainingCheckpointRequest(name=str(name))
            call = self._records.GetTrainingCheckpoint(request, timeout=TRANSFER_TIMEOUT_S)
            async for part in call:
                data += part.chunk
                if len(data) > CHECKPOINT_BYTES_MAX:
                    raise DataCorrupted(f"{name}'s checkpoint exceeds {CHECKPOINT_BYTES_MAX} bytes")
        return bytes(data)

    async def curve(self, name: JobName) -> AsyncIterator[Metric]:
        with _for(name.tenant):
            request = training_records_pb2.GetTrainingCurveRequest(name=str(name))
            call = self._records.GetTrainingCurve(request)
        with calling():
            async for part in call:
                for metric in part.metrics:
                    yield codec.metric_from_pb(metric)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        yield file


def _version_parts(version: NewVersion) -> Iterator[storage_pb2.PutVersionRequest]:
    header = storage_pb2.PutVersionHeader(
        parent=str(version.vplm),
        size_bytes=len(version.data),
        digest=version.digest,
        origin=codec.ORIGINS.to_pb(version.origin),
        training_job=version.training_job,
        metrics=version.metrics,
        request_id=version.request_id,
        training=None if version.summary is None else codec.summary_to_pb(version.summary),
        spec=None if version.spec is None else codec.spec_to_pb(version.spec),
    )
    yield storage_pb2.PutVersionRequest(header=header)
    for start in range(0, len(version.data), CHUNK_BYTES_MAX):
        chunk = version.data[start : start + CHUNK_BYTES_MAX]
        yield storage_pb2.PutVersionRequest(chunk=chunk)


def _checkpoint_parts(
    name: JobName, fence: int, data: bytes
) -> Iterator[training_records_pb2.PutTrainingCheckpointRequest]:
    header = training_records_pb2.PutTrainingCheckpointHeader(
        name=str(name),
        fence=fence,
        size_bytes=len(data),
        digest=hashlib.sha256(data).hexdigest(),
    )
    yield training_records_pb2.PutTrainingCheckpointRequest(header=header)
    for start in range(0, len(data), CHUNK_BYTES_MAX):
        chunk = data[start : start + CHUNK_BYTES_MAX]
        yield training_records_pb2.PutTrainingCheckpointRequest(chunk=chunk)


def _curve_parts(
    name: JobName, fence: int, metrics: Sequence[Metric]
) -> Iterator[training_records_pb2.PutTrainingCurveRequest]:
    yield training_records_pb2.PutTrainingCurveRequest(name=str(name), fence=fence)
    for start in range(0, len(metrics), CURVE_MESSAGE_METRICS_MAX):
        part = metrics[start : start + CURVE_MESSAGE_METRICS_MAX]
        yield training_records_pb2.PutTrainingCurveRequest(
            metrics=[codec.metric_to_pb(metric) for metric in part]
        )
