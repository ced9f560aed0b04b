"""`TrainingRecordService`: what must outlive the trainer's queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from services.storage.blobs import Declared
from services.storage.training_records import TrainingRecords
from smile import codec
from smile.errors import InvalidArgument
from smile.names import JobName, TenantName
from smile.pages import page_size
from smile.resources import Metric
from smile.rpc.auth import current_principal, own
from smile.rpc.streams import opened
from smile.v1 import training_records_pb2, training_records_pb2_grpc

FULL_NAME = "smile.v1.TrainingRecordService"
MESSAGE_METRICS_MAX = 10_000

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"
_Checkpoint: TypeAlias = AsyncIterator[training_records_pb2.PutTrainingCheckpointRequest]
_Puts: TypeAlias = AsyncIterator[training_records_pb2.PutTrainingCurveRequest]


class TrainingRecordServicer(training_records_pb2_grpc.TrainingRecordServiceServicer):
    """Decodes, asks the records, encodes."""

    def __init__(self, records: TrainingRecords) -> None:
        self._records = records

    async def CreateTrainingRecord(
        self, request: training_records_pb2.CreateTrainingRecordRequest, context: Context
    ) -> training_records_pb2.TrainingRecord:
        _job(request.training_job.name)
        record = await self._records.create(codec.job_from_pb(request.training_job))
        return codec.record_to_pb(record)

    async def UpdateTrainingRecord(
        self, request: training_records_pb2.UpdateTrainingRecordRequest, context: Context
    ) -> training_records_pb2.TrainingRecord:
        _job(request.record.training_job.name)
        record = await self._records.update(codec.record_from_pb(request.record))
        return codec.record_to_pb(record)

    async def GetTrainingRecord(
        self, request: training_records_pb2.GetTrainingRecordRequest, context: Context
    ) -> training_records_pb2.TrainingRecord:
        return codec.record_to_pb(await self._records.get(_job(request.name)))

    async def ListTrainingRecords(
        self, request: training_records_pb2.ListTrainingRecordsRequest, context: Context
    ) -> training_records_pb2.ListTrainingRecordsResponse:
        parent = own(request.parent, TenantName.parse, current_principal())
        records, token = await self._records.list_page(
            parent.tenant, page_size(request.page_size), request.page_token
        )
        return training_records_pb2.ListTrainingRecordsResponse(
            records=[codec.record_to_pb(record) for record in records], next_page_token=token
        )

    async def ListPendingTrainingRecords(
        self, request: training_records_pb2.ListPendingTrainingRecordsRequest, context: Context
    ) -> training_records_pb2.ListPendingTrainingRecordsResponse:
        records, token = await self._records.list_pending(
            page_size(request.page_size), request.page_token
        )
        return training_records_pb2.ListPendingTrainingRecordsResponse(
            records=[codec.record_to_pb(record) for record in records], next_page_token=token
        )

    async def PutTrainingCurve(
        self, request: _Puts, context: Context
    ) -> training_records_pb2.PutTrainingCurveResponse:
        first = await anext(request, None)
        if first is None:
            raise InvalidArgument("the first message names the job", reason="HEADER_MISSING")
        points = await self._records.put_curve(
            _job(first.name), first.fence, _batches(first, request)
        )
        return training_records_pb2.PutTrainingCurveResponse(metric_count=points)

    async def GetTrainingCurve(
        self, request: training_records_pb2.GetTrainingCurveRequest, context: Context
    ) -> AsyncIterator[training_records_pb2.GetTrainingCurveResponse]:
        async for batch in self._records.curve(_job(request.name)):
            yield training_records_pb2.GetTrainingCurveResponse(
                metrics=[codec.metric_to_pb(metric) for metric in batch]
            )

    async def PutTrainingCheckpoint(
        self, request: _Checkpoint, context: Context
    ) -> training_records_pb2.PutTrainingCheckpointResponse:
        first, chunks = await opened(request)
        header = first.header
        declared = Declared(header.size_bytes, header.digest)
        await self._records.checkpoints.put(_job(header.name), header.fence, declared, chunks)
        return training_records_pb2.PutTrainingCheckpointResponse(size_bytes=header.size_bytes)

    async def GetTrainingCheckpoint(
        self, request: training_records_pb2.GetTrainingCheckpointRequest, context: Context
    ) -> AsyncIterator[training_records_pb2.GetTrainingCheckpointResponse]:
        name = _job(request.name)
        await self._records.get(name)
        async for chunk in self._records.checkpoints.get(name):
            yield training_records_pb2.GetTrainingCheckpointResponse(chunk=chunk)


def _job(name: str) -> JobName:
    """The job, with its tenant written out: records name tenants in full."""
    job = own(name, JobName.parse, current_principal())
    if str(job) != name:
        raise InvalidArgument(f"a job's name is written out, {job}, got {name}")
    return job


async def _batches(
    first: training_records_pb2.PutTrainingCurveRequest, others: _Puts
) -> AsyncIterator[tuple[Metric, ...]]:
    if first.metrics:
        yield tuple(codec.metric_from_pb(metric) for metric in first.metrics)
    async for message in others:
        yield tuple(codec.metric_from_pb(metric) for metric in message.metrics)
