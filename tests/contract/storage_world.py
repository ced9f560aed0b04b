"""A real storage server over a memory store, and raw calls to it with any key."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import descriptor, descriptor_pool, message_factory
from google.protobuf.message import Message

from services.storage.servicer.assembly import StorageOptions, assemble
from smile import codec
from smile.errors import SmileError
from smile.rpc.keys import KeyKind, KeyParts, new_key
from smile.rpc.status import from_rpc_error
from smile.store.objects import ObjectStore, open_store
from smile.testing import serving
from smile.v1 import datasets_pb2, identity_pb2, resources_pb2, storage_pb2, trainer_pb2
from smile.v1 import training_records_pb2 as records_pb2
from tests.unit.services.storage import world as domain

SERVICES = (
    "smile.v1.AccountingService",
    "smile.v1.StorageService",
    "smile.v1.DatasetService",
    "smile.v1.IdentityService",
    "smile.v1.TrainingRecordService",
)
TIMEOUT_S = 10.0


def methods() -> list[descriptor.MethodDescriptor]:
    """Every RPC that storage serves, from the contracts."""
    pool = descriptor_pool.Default()
    return [method for name in SERVICES for method in pool.FindServiceByName(name).methods]


def new_id() -> str:
    return str(uuid.uuid4())


class StorageWorld:
    """Calls with keys of the operator, of services and of two tenants, `acme` and `other`."""

    def __init__(self, address: str, store: ObjectStore, operator: str, service: str) -> None:
        self.address = address
        self.store = store
        self.operator = operator
        self.service = service
        self.keys: dict[str, str] = {}
        # its own connections: shared ones would hand on what another found of a server that died
        self._channel = grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    async def close(self) -> None:
        await self._channel.close()

    async def call(
        self,
        rpc: str,
        request: Message | Iterable[Message],
        key: str,
        tenant: str | None = None,
    ) -> list[Any]:
        """All responses of `Service.Method`, or the SMILE error it ends with."""
        service, _, name = rpc.partition(".")
        method = descriptor_pool.Default().FindServiceByName(f"smile.v1.{service}")
        found = method.methods_by_name[name]
        shape = f"{_arity(found.client_streaming)}_{_arity(found.server_streaming)}"
        reply = message_factory.GetMessageClass(found.output_type)
        stub = getattr(self._channel, shape)(
            f"/smile.v1.{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        metadata = [("authorization", f"Bearer {key}")] if key else []
        if tenant is not None:
            metadata.append(("smile-tenant", tenant))
        messages = list(request) if isinstance(request, Iterable) else request
        while True:
            call = stub(messages, timeout=TIMEOUT_S, metadata=metadata)
            try:
                if found.server_streaming:
                    return [response async for response in call]
                return [await call]
            except grpc.aio.AioRpcError as error:
                told = from_rpc_error(error)
                if told.reason != "ANSWER_LOST":  # see smile.rpc.status: then it is asked again
                    raise told from error

    async def error(self, *args: Any, **kwargs: Any) -> SmileError:
        """The error that a call ends with."""
        try:
            await self.call(*args, **kwargs)
        except SmileError as error:
            return error
        raise AssertionError(f"{args[0]} did not fail")

    async def create_tenant(self, tenant: str, quota_bytes: int = 0) -> str:
        request = identity_pb2.CreateTenantRequest(
            tenant_id=tenant,
            tenant=identity_pb2.Tenant(quota_bytes=quota_bytes),
            request_id=new_id(),
        )
        (made,) = await self.call("IdentityService.CreateTenant", request, self.operator)
        self.keys[tenant] = made.key
        return str(made.key)

    async def commit(self, vplm: str = "topics", tenant: str = "acme") -> resources_pb2.Vplm:
        parts = commit_parts(f"tenants/{tenant}/vplms/{vplm}", domain.module())
        (made,) = await self.call("StorageService.CommitVplm", parts, self.service, tenant)
        assert isinstance(made, resources_pb2.Vplm)
        return made

    async def upload(self, dataset: str = "news", tenant: str = "acme") -> None:
        parts = upload_parts(f"tenants/{tenant}", dataset, b"text,label\n")
        await self.call("DatasetService.UploadDataset", parts, self.keys[tenant])

    async def job(self, job: str = "j1", tenant: str = "acme") -> None:
        request = records_pb2.CreateTrainingRecordRequest(training_job=job_pb(job, tenant))
        await self.call("TrainingRecordService.CreateTrainingRecord", request, self.service, tenant)


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


@asynccontextmanager
async def storage_world(store: ObjectStore | None = None) -> AsyncIterator[StorageWorld]:
    """A server with the tenants `acme` and `other`."""
    operator, service = new_key(KeyKind.OPERATOR).text, new_key(KeyKind.SERVICE).text
    kept = store or open_store("memory://")
    hashed = KeyParts.parse(operator).secret_sha256
    services, authenticator = assemble(kept, StorageOptions(service, hashed))
    async with serving(services, authenticator=authenticator) as server:
        world = StorageWorld(server.address, kept, operator, service)
        try:
            await world.create_tenant("acme")
            await world.create_tenant("other")
            yield world
        finally:
            await world.close()


def commit_parts(name: str, data: bytes, **header: Any) -> Sequence[storage_pb2.CommitVplmRequest]:
    vplm = resources_pb2.Vplm(name=name, spec=codec.spec_to_pb(domain.SPEC))
    fields = {
        "vplm": vplm,
        "size_bytes": len(data),
        "digest": domain.declared(data).digest,
        "request_id": new_id(),
        "backbone": codec.backbone_to_pb(domain.BACKBONE),
        **header,
    }
    first = storage_pb2.CommitVplmRequest(header=storage_pb2.CommitVplmHeader(**fields))
    return [first, *(storage_pb2.CommitVplmRequest(chunk=c) for c in _pieces(data))]


def put_parts(parent: str, data: bytes, **header: Any) -> Sequence[storage_pb2.PutVersionRequest]:
    fields = {
        "parent": parent,
        "size_bytes": len(data),
        "digest": domain.declared(data).digest,
        "origin": resources_pb2.VERSION_ORIGIN_IMPORT,
        "request_id": new_id(),
        **header,
    }
    first = storage_pb2.PutVersionRequest(header=storage_pb2.PutVersionHeader(**fields))
    return [first, *(storage_pb2.PutVersionRequest(chunk=c) for c in _pieces(data))]


def upload_parts(
    parent: str, dataset: str, data: bytes, **header: Any
) -> Sequence[datasets_pb2.UploadDatasetRequest]:
    fields = {
        "parent": parent,
        "dataset_id": dataset,
        "format": resources_pb2.DATASET_FORMAT_CSV,
        "size_bytes": len(data),
        "digest": domain.declared(data).digest,
        "request_id": new_id(),
        **header,
    }
    first = datasets_pb2.UploadDatasetRequest(header=datasets_pb2.UploadDatasetHeader(**fields))
    return [first, *(datasets_pb2.UploadDatasetRequest(chunk=c) for c in _pieces(data))]


def job_pb(job: str, tenant: str) -> trainer_pb2.TrainingJob:
    return trainer_pb2.TrainingJob(
        name=f"tenants/{tenant}/trainingJobs/{job}",
        vplm=f"tenants/{tenant}/vplms/topics",
        dataset=f"tenants/{tenant}/datasets/news",
    )


def _pieces(data: bytes, size: int = 300) -> Iterable[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))
