"""What storage is asked to do while it is struck: every kind of change, each repeatable."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from smile.errors import DeadlineExceeded, Unavailable
from smile.limits import MIB
from smile.v1 import datasets_pb2, identity_pb2, resources_pb2, storage_pb2, trainer_pb2
from smile.v1 import training_records_pb2 as records_pb2
from tests.contract.storage_world import (
    StorageWorld,
    commit_parts,
    job_pb,
    new_id,
    put_parts,
    upload_parts,
)
from tests.unit.services.storage import world as domain

TENANT = "acme"
ROWS = b"text,label\n" + b"a good day,good\n" * 400
TRIES = 4
LARGE_BYTES = 17 * MIB
Request = Message | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Change:
    """One request, which may be sent again. `key` '' means the service's; `right` says whether the
    first answer is as it should be."""

    rpc: str
    request: Request
    key: str = ""
    right: Callable[[Sequence[Any]], bool] = bool

    async def send(self, world: StorageWorld) -> Sequence[Message]:
        """Its answers. Raises `SmileError`."""
        key, tenant = (self.key, None) if self.key else (world.service, TENANT)
        return await world.call(self.rpc, self.request, key, tenant)

    async def done(self, world: StorageWorld) -> None:
        """Sent while nothing is wrong, but perhaps slow. Raises `SmileError`."""
        for _ in range(TRIES):
            with contextlib.suppress(Unavailable, DeadlineExceeded):
                await self.send(world)
                return
        await self.send(world)


Prepare = Callable[[StorageWorld, str], Awaitable[Change]]


async def create(world: StorageWorld, name: str) -> Change:
    return Change("StorageService.CommitVplm", commit_parts(_vplm(name), domain.module()))


async def create_over_deleted(world: StorageWorld, name: str) -> Change:
    await (await create(world, name)).done(world)
    await (await _deletion(world, name)).done(world)
    return await create(world, name)


async def upload_version(world: StorageWorld, name: str) -> Change:
    await (await create(world, name)).done(world)
    return _version(name, 1)


async def move_alias(world: StorageWorld, name: str) -> Change:
    await (await upload_version(world, name)).done(world)
    request = storage_pb2.SetAliasRequest(
        name=_vplm(name), alias="serving", version=2, request_id=new_id()
    )
    return Change("StorageService.SetAlias", request)


async def update(world: StorageWorld, name: str) -> Change:
    await (await create(world, name)).done(world)
    request = storage_pb2.UpdateVplmRecordRequest(
        vplm=resources_pb2.Vplm(name=_vplm(name), display_name="new"),
        update_mask=FieldMask(paths=["display_name"]),
        request_id=new_id(),
    )
    return Change("StorageService.UpdateVplm", request)


async def delete(world: StorageWorld, name: str) -> Change:
    await (await upload_version(world, name)).done(world)
    return await _deletion(world, name)


async def upload_dataset(world: StorageWorld, name: str) -> Change:
    parts = upload_parts(_parent(), name, ROWS)
    return Change("DatasetService.UploadDataset", parts, world.keys[TENANT])


async def delete_dataset(world: StorageWorld, name: str) -> Change:
    await (await upload_dataset(world, name)).done(world)
    request = datasets_pb2.DeleteDatasetRequest(
        name=f"{_parent()}/datasets/{name}", request_id=new_id()
    )
    return Change("DatasetService.DeleteDataset", request, world.keys[TENANT])


async def create_tenant(world: StorageWorld, name: str) -> Change:
    request = identity_pb2.CreateTenantRequest(
        tenant_id=name, tenant=identity_pb2.Tenant(), request_id=new_id()
    )
    return Change("IdentityService.CreateTenant", request, world.operator, _shows_key)


async def create_key(world: StorageWorld, name: str) -> Change:
    await (await create_tenant(world, name)).done(world)
    request = identity_pb2.CreateApiKeyRequest(parent=f"tenants/{name}", request_id=new_id())
    return Change("IdentityService.CreateApiKey", request, world.operator, _shows_key)


async def create_job(world: StorageWorld, name: str) -> Change:
    request = records_pb2.CreateTrainingRecordRequest(training_job=job_pb(name, TENANT))
    return Change("TrainingRecordService.CreateTrainingRecord", request)


async def checkpoint(world: StorageWorld, name: str) -> Change:
    await (await create_job(world, name)).done(world)
    header = records_pb2.PutTrainingCheckpointHeader(
        name=_job(name), fence=3, size_bytes=len(ROWS), digest=domain.declared(ROWS).digest
    )
    parts = [
        records_pb2.PutTrainingCheckpointRequest(header=header),
        records_pb2.PutTrainingCheckpointRequest(chunk=ROWS),
    ]
    return Change("TrainingRecordService.PutTrainingCheckpoint", parts)


async def keep_curve(world: StorageWorld, name: str) -> Change:
    await (await create_job(world, name)).done(world)
    metrics = [trainer_pb2.TrainingMetric(name="loss", value=1.5, step=n) for n in range(1, 50)]
    parts = [
        records_pb2.PutTrainingCurveRequest(name=_job(name)),
        records_pb2.PutTrainingCurveRequest(metrics=metrics),
    ]
    return Change("TrainingRecordService.PutTrainingCurve", parts)


async def end_job(world: StorageWorld, name: str) -> Change:
    await (await checkpoint(world, name)).done(world)
    job = job_pb(name, TENANT)
    job.state = trainer_pb2.TrainingJob.STATE_CANCELLED
    record = records_pb2.TrainingRecord(training_job=job, fence=3)
    request = records_pb2.UpdateTrainingRecordRequest(record=record)
    return Change("TrainingRecordService.UpdateTrainingRecord", request)


async def download_version(world: StorageWorld, name: str) -> Change:
    await (await create(world, name)).done(world)
    request = storage_pb2.DownloadVersionRequest(name=f"{_vplm(name)}/versions/1")
    right = domain.module()
    return Change("StorageService.DownloadVersion", request, right=lambda a: _bytes(a) == right)


async def download_dataset(world: StorageWorld, name: str) -> Change:
    await (await upload_dataset(world, name)).done(world)
    request = datasets_pb2.DownloadDatasetRequest(name=f"{_parent()}/datasets/{name}")
    key = world.keys[TENANT]
    return Change("DatasetService.DownloadDataset", request, key, lambda a: _bytes(a) == ROWS)


async def upload_large(world: StorageWorld, name: str) -> Change:
    """Of several parts, as object stores take large things."""
    data = ROWS * (LARGE_BYTES // len(ROWS))
    header = datasets_pb2.UploadDatasetHeader(
        parent=_parent(),
        dataset_id=name,
        format=resources_pb2.DATASET_FORMAT_CSV,
        size_bytes=len(data),
        digest=domain.declared(data).digest,
        request_id=new_id(),
    )
    pieces = (data[start : start + MIB] for start in range(0, len(data), MIB))
    parts = [
        datasets_pb2.UploadDatasetRequest(header=header),
        *(datasets_pb2.UploadDatasetRequest(chunk=piece) for piece in pieces),
    ]
    return Change("DatasetService.UploadDataset", parts, world.keys[TENANT])


OPERATIONS: dict[str, Prepare] = {
    "create a vPLM": create,
    "create over a deleted one": create_over_deleted,
    "upload a version": upload_version,
    "move an alias": move_alias,
    "update a vPLM": update,
    "delete a vPLM": delete,
    "upload a dataset": upload_dataset,
    "delete a dataset": delete_dataset,
    "create a tenant": create_tenant,
    "create a key": create_key,
    "record a job": create_job,
    "keep a checkpoint": checkpoint,
    "keep a curve": keep_curve,
    "record a job's end": end_job,
}
READS: dict[str, Prepare] = {
    "download a version": download_version,
    "download a dataset": download_dataset,
}
LARGE: dict[str, Prepare] = {"upload a large dataset": upload_large}
ALL = {**OPERATIONS, **READS, **LARGE}


def _shows_key(answers: Sequence[Any]) -> bool:
    """Whoever is told that a key was made, and was not told before, is told the key."""
    return bool(answers[0].key)


def _bytes(answers: Sequence[Any]) -> bytes:
    return b"".join(answer.chunk for answer in answers)


def _parent() -> str:
    return f"tenants/{TENANT}"


def _vplm(name: str) -> str:
    return f"{_parent()}/vplms/{name}"


def _job(name: str) -> str:
    return f"{_parent()}/trainingJobs/{name}"


def _version(name: str, seed: int, **header: Any) -> Change:
    return Change(
        "StorageService.PutVersion", put_parts(_vplm(name), domain.module(seed), **header)
    )


async def _deletion(world: StorageWorld, name: str) -> Change:
    request = storage_pb2.DeleteVplmRecordRequest(name=_vplm(name), request_id=new_id())
    return Change("StorageService.DeleteVplm", request)
