"""Every RPC of the platform, read from its contracts: how to call it, and with what of whose.

A new RPC that takes a string nobody has classified, or that has no valid request in `REQUESTS`,
fails `test_isolation.py`.
"""

from __future__ import annotations

import hashlib
import importlib
import pathlib
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf import field_mask_pb2, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

import smile
from smile import codec
from smile.client.client import AsyncClient
from smile.errors import SmileError
from smile.rpc.access import declared_access
from smile.rpc.principal import Role
from smile.rpc.status import code_of, from_rpc_error, from_status
from smile.v1 import (
    creator_pb2,
    datasets_pb2,
    identity_pb2,
    processor_pb2,
    resources_pb2,
    storage_pb2,
    trainer_pb2,
)
from tests.contract.platform_world import Platform

MODULES = ("creator", "datasets", "identity", "processor", "storage", "trainer", "training_records")
HOMES = {"CreatorService": "creator", "TrainerService": "trainer", "ProcessorService": "processor"}
TIMEOUT_S = 10.0
LABELS = ("good", "bad")
ROWS = b"text,label\n" + b"".join(
    f"{word} day {n},{label}\n".encode()
    for n in range(6)
    for word, label in (("happy", "good"), ("sad", "bad"))
)

Path: TypeAlias = tuple[str, ...]


def _methods() -> Iterator[MethodDescriptor]:
    for name in MODULES:
        module = importlib.import_module(f"smile.v1.{name}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def label(method: MethodDescriptor) -> str:
    """`CreatorService.GetVplm`: how tests call an RPC."""
    return f"{method.containing_service.name}.{method.name}"


METHODS: dict[str, MethodDescriptor] = {label(method): method for method in _methods()}
_ACCESS = declared_access({method.containing_service.full_name for method in METHODS.values()})


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def roles(method: MethodDescriptor) -> frozenset[Role]:
    """Who may call it."""
    return _ACCESS[path_of(method)].roles


TENANT_METHODS = {name: m for name, m in METHODS.items() if Role.TENANT in roles(m)}
UNARY_METHODS = {
    name: m for name, m in METHODS.items() if not m.client_streaming and not m.server_streaming
}


@dataclass(frozen=True)
class Outcome:
    """What came of a call. `error` is None where it went well."""

    code: grpc.StatusCode
    responses: tuple[Message, ...] = ()
    error: SmileError | None = None

    @property
    def reason(self) -> str:
        return self.error.reason if self.error else ""

    @property
    def message(self) -> str:
        return self.error.message if self.error else ""

    def without(self, name: str) -> tuple[object, ...]:
        """All that a caller can see of a refusal, but for the name asked for."""
        assert self.error is not None, self.responses
        return (
            self.code,
            self.reason,
            self.message.replace(name, "NAME"),
            sorted((k, v.replace(name, "NAME")) for k, v in self.error.metadata.items()),
            self.error.retry_after,
            [(f, d.replace(name, "NAME")) for f, d in self.error.violations],
        )


class Wire:
    """Raw calls: nothing is added that a test did not ask for."""

    def __init__(self, platform: Platform, channels: dict[str, grpc.aio.Channel]) -> None:
        self._platform = platform
        self._channels = channels

    async def call(
        self,
        name: str,
        request: Message | bytes | Sequence[Message] | AsyncIterator[Message],
        *,
        key: str | None = None,
        tenant: str | None = None,
        timeout_s: float | None = TIMEOUT_S,
    ) -> Outcome:
        """Call an RPC by its label. `tenant` is sent as `smile-tenant`."""
        metadata = [("authorization", f"Bearer {key}")] if key else []
        metadata += [("smile-tenant", tenant)] if tenant is not None else []
        while True:
            outcome = await self._outcome(METHODS[name], request, tuple(metadata), timeout_s)
            if outcome.reason != "ANSWER_LOST" or not isinstance(request, list):
                return outcome  # else see smile.rpc.status: it is asked again

    async def _outcome(
        self, method: MethodDescriptor, request: Any, metadata: Any, timeout_s: float | None
    ) -> Outcome:
        call = self._start(method, request, metadata, timeout_s)
        parse = message_factory.GetMessageClass(method.output_type).FromString
        try:
            if method.server_streaming:
                found = [parse(data) async for data in call]
            else:
                found = [parse(await call)]
        except grpc.aio.AioRpcError as error:
            return Outcome(error.code(), error=from_rpc_error(error))
        for entry in getattr(found[0], "entries", ()) if found else ():
            if entry.HasField("error"):  # a fan-out refuses its targets one by one
                refused = from_status(entry.error)
                return Outcome(code_of(refused), tuple(found), refused)
        return Outcome(grpc.StatusCode.OK, tuple(found))

    def _start(
        self, method: MethodDescriptor, request: Any, metadata: Any, timeout_s: float | None
    ) -> Any:
        channel = self._channels[HOMES.get(method.containing_service.name, "storage")]
        first = "stream" if method.client_streaming else "unary"
        second = "stream" if method.server_streaming else "unary"
        make = getattr(channel, f"{first}_{second}")
        multi = make(path_of(method), request_serializer=_serialized)
        if method.client_streaming and isinstance(request, Message | bytes):
            request = [request]
        return multi(request, metadata=metadata, timeout=timeout_s)


def _serialized(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


@asynccontextmanager
async def wire(platform: Platform) -> AsyncIterator[Wire]:
    """Raw connections to all services."""
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)])
            )
            for name, address in platform.addresses.items()
        }
        yield Wire(platform, channels)


@dataclass
class Belongings:
    """What a tenant has: two of all that is listed, and of all that can be destroyed one more."""

    tenant: str
    key: str
    jobs: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    spec: resources_pb2.ModuleSpec = field(default_factory=resources_pb2.ModuleSpec)

    @property
    def parent(self) -> str:
        return f"tenants/{self.tenant}"

    def vplm(self, name: str = "topic") -> str:
        return f"{self.parent}/vplms/{name}"

    def processor(self, name: str = "topic") -> str:
        return f"{self.parent}/processors/{name}"

    def dataset(self, name: str = "rows") -> str:
        return f"{self.parent}/datasets/{name}"


async def furnish(platform: Platform, tenant: str) -> Belongings:
    """Make a tenant's belongings, through the SDK."""
    own = Belongings(tenant, platform.keys.get(tenant) or await platform.add_tenant(tenant))
    async with platform.client(tenant) as client:
        for seed, name in enumerate(("topic", "second", "doomed")):
            made = await client.create_vplm(
                name, backbone="toy", pet=smile.Pfeiffer(rank=4), labels=LABELS, seed=seed
            )
        own.spec.CopyFrom(codec.spec_to_pb(made.spec))
        await _second_version(client)
        for name in ("rows", "more", "doomed"):
            await client.upload_dataset(name, _rows())
        own.jobs = [(await client.train("topic", "rows", epochs=1)).name for _ in range(3)]
        await client.cancel(own.jobs[2])
        own.keys = [(await client.create_key(f"key {n}")).api_key.name for n in range(2)]
        await client.infer("topic", "a good day")
        for name in ("topic", "second", "doomed"):
            await client.rent(name, wait=True)
    return own


def _rows() -> list[dict[str, str]]:
    lines = ROWS.decode().splitlines()[1:]
    return [dict(zip(("text", "label"), line.split(","), strict=True)) for line in lines]


async def _second_version(client: AsyncClient) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "w.safetensors"
        await client.download_version("topic", path)
        await client.upload_version("topic", path)


def new_id() -> str:
    return str(uuid.uuid4())


def upload(parent: str, data: bytes, *, name: str | None = None, **header: Any) -> list[Message]:
    """The messages of an upload."""
    own: dict[str, Any] = {
        "parent": parent,
        "dataset_id": name or f"d{uuid.uuid4().hex[:12]}",
        "format": resources_pb2.DATASET_FORMAT_CSV,
    }
    made = datasets_pb2.UploadDatasetHeader(**(own | declared(data) | header))
    return _stream(datasets_pb2.UploadDatasetRequest, made, data)


def put_version(parent: str, data: bytes, **header: Any) -> list[Message]:
    """The messages of an import."""
    own: dict[str, Any] = {"parent": parent, "origin": resources_pb2.VERSION_ORIGIN_IMPORT}
    made = storage_pb2.PutVersionHeader(**(own | declared(data) | header))
    return _stream(storage_pb2.PutVersionRequest, made, data)


def import_vplm(owner: Belongings, data: bytes, **header: Any) -> list[Message]:
    """The messages of a new vPLM with weights from elsewhere: those of the owner's vPLM."""
    own: dict[str, Any] = {
        "parent": owner.parent,
        "vplm_id": f"v{uuid.uuid4().hex[:12]}",
        "spec": owner.spec,
    }
    made = creator_pb2.ImportVplmHeader(**(own | declared(data) | header))
    return _stream(creator_pb2.ImportVplmRequest, made, data)


def declared(data: bytes) -> dict[str, Any]:
    """What every upload says of its bytes."""
    digest = hashlib.sha256(data).hexdigest()
    return {"size_bytes": len(data), "digest": digest, "request_id": new_id()}


def _stream(make: Any, header: Message, data: bytes, size: int = 1000) -> list[Message]:
    parts = range(0, len(data), size)
    return [make(header=header), *(make(chunk=data[start : start + size]) for start in parts)]


def create_vplm(own: Belongings, **changes: Any) -> creator_pb2.CreateVplmRequest:
    fields: dict[str, Any] = {
        "parent": own.parent,
        "vplm_id": f"v{uuid.uuid4().hex[:12]}",
        "backbone": "backbones/toy",
        "pet": resources_pb2.PetSpec(kind=resources_pb2.PET_KIND_PFEIFFER, rank=4),
        "head": resources_pb2.HeadSpec(
            task=resources_pb2.TASK_SEQUENCE_CLASSIFICATION, labels=LABELS
        ),
        "request_id": new_id(),
        **changes,
    }
    return creator_pb2.CreateVplmRequest(**fields)


def create_job(own: Belongings, **changes: Any) -> trainer_pb2.CreateTrainingJobRequest:
    fields: dict[str, Any] = {
        "vplm": own.vplm(),
        "dataset": own.dataset(),
        "validation_dataset": own.dataset("more"),
        "hyper_parameters": trainer_pb2.HyperParameters(epochs=1),
        **changes,
    }
    return trainer_pb2.CreateTrainingJobRequest(
        parent=own.parent,
        training_job=trainer_pb2.TrainingJob(**fields),
        validate_only=True,
        request_id=new_id(),
    )


Requests: TypeAlias = "Message | list[Message]"

# A request that succeeds, for every RPC that tenants may call. `weights` are a version's bytes.
REQUESTS: dict[str, Callable[[Belongings, bytes], Requests]] = {
    "CreatorService.ListBackbones": lambda own, _: creator_pb2.ListBackbonesRequest(),
    "CreatorService.GetBackbone": lambda own, _: creator_pb2.GetBackboneRequest(
        name="backbones/toy"
    ),
    "CreatorService.CreateVplm": lambda own, _: create_vplm(own),
    "CreatorService.ImportVplm": import_vplm,
    "CreatorService.GetVplm": lambda own, _: creator_pb2.GetVplmRequest(name=own.vplm()),
    "CreatorService.ListVplms": lambda own, _: creator_pb2.ListVplmsRequest(parent=own.parent),
    "CreatorService.UpdateVplm": lambda own, _: creator_pb2.UpdateVplmRequest(
        vplm=resources_pb2.Vplm(name=own.vplm(), display_name="Topics"),
        update_mask=field_mask_pb2.FieldMask(paths=["display_name"]),
        request_id=new_id(),
    ),
    "CreatorService.DeleteVplm": lambda own, _: creator_pb2.DeleteVplmRequest(
        name=own.vplm("doomed"), request_id=new_id()
    ),
    "DatasetService.UploadDataset": lambda own, _: upload(own.parent, ROWS),
    "DatasetService.GetDataset": lambda own, _: datasets_pb2.GetDatasetRequest(name=own.dataset()),
    "DatasetService.ListDatasets": lambda own, _: datasets_pb2.ListDatasetsRequest(
        parent=own.parent
    ),
    "DatasetService.DownloadDataset": lambda own, _: datasets_pb2.DownloadDatasetRequest(
        name=own.dataset()
    ),
    "DatasetService.DeleteDataset": lambda own, _: datasets_pb2.DeleteDatasetRequest(
        name=own.dataset("doomed"), request_id=new_id()
    ),
    "IdentityService.CreateApiKey": lambda own, _: identity_pb2.CreateApiKeyRequest(
        parent=own.parent, request_id=new_id()
    ),
    "IdentityService.ListApiKeys": lambda own, _: identity_pb2.ListApiKeysRequest(
        parent=own.parent
    ),
    "IdentityService.RevokeApiKey": lambda own, _: identity_pb2.RevokeApiKeyRequest(
        name=own.keys[1], request_id=new_id()
    ),
    "ProcessorService.Infer": lambda own, _: processor_pb2.InferRequest(
        name=own.vplm(), texts=["a good day"]
    ),
    "ProcessorService.InferFanout": lambda own, _: processor_pb2.InferFanoutRequest(
        targets=[processor_pb2.FanoutTarget(name=own.vplm())], text="a good day"
    ),
    "ProcessorService.RentProcessor": lambda own, _: processor_pb2.RentProcessorRequest(
        vplm=own.vplm(), terms=processor_pb2.ProcessorTerms(weight=2)
    ),
    "ProcessorService.ReleaseProcessor": lambda own, _: processor_pb2.ReleaseProcessorRequest(
        name=own.processor("doomed")
    ),
    "ProcessorService.GetProcessor": lambda own, _: processor_pb2.GetProcessorRequest(
        name=own.processor()
    ),
    "ProcessorService.ListProcessors": lambda own, _: processor_pb2.ListProcessorsRequest(
        parent=own.parent
    ),
    "ProcessorService.GetStats": lambda own, _: processor_pb2.GetStatsRequest(),
    "StorageService.PutVersion": lambda own, weights: put_version(own.vplm(), weights),
    "StorageService.GetVersion": lambda own, _: storage_pb2.GetVersionRequest(
        name=f"{own.vplm()}/versions/2"
    ),
    "StorageService.ResolveAlias": lambda own, _: storage_pb2.ResolveAliasRequest(name=own.vplm()),
    "StorageService.ListVersions": lambda own, _: storage_pb2.ListVersionsRequest(
        parent=own.vplm()
    ),
    "StorageService.DownloadVersion": lambda own, _: storage_pb2.DownloadVersionRequest(
        name=f"{own.vplm()}/versions/1"
    ),
    "StorageService.SetAlias": lambda own, _: storage_pb2.SetAliasRequest(
        name=own.vplm(), alias="next", version=1, request_id=new_id()
    ),
    "StorageService.GetUsage": lambda own, _: storage_pb2.GetUsageRequest(name=own.parent),
    "TrainerService.CreateTrainingJob": lambda own, _: create_job(own),
    "TrainerService.GetTrainingJob": lambda own, _: trainer_pb2.GetTrainingJobRequest(
        name=own.jobs[0]
    ),
    "TrainerService.ListTrainingJobs": lambda own, _: trainer_pb2.ListTrainingJobsRequest(
        parent=own.parent
    ),
    "TrainerService.CancelTrainingJob": lambda own, _: trainer_pb2.CancelTrainingJobRequest(
        name=own.jobs[1], request_id=new_id()
    ),
    "TrainerService.WatchTrainingJob": lambda own, _: trainer_pb2.WatchTrainingJobRequest(
        name=own.jobs[2]
    ),
    "TrainerService.ValidateDataset": lambda own, _: trainer_pb2.ValidateDatasetRequest(
        dataset=own.dataset(), vplm=own.vplm()
    ),
}

# Fields that name a resource of a tenant, by where they stand in the contracts.
NAMES = frozenset(
    f"smile.v1.{name}"
    for name in (
        *("CreateVplmRequest.parent", "GetVplmRequest.name", "ListVplmsRequest.parent"),
        "ImportVplmHeader.parent",
        *("Vplm.name", "DeleteVplmRequest.name", "UploadDatasetHeader.parent"),
        *("GetDatasetRequest.name", "ListDatasetsRequest.parent", "DownloadDatasetRequest.name"),
        *("DeleteDatasetRequest.name", "CreateApiKeyRequest.parent", "ListApiKeysRequest.parent"),
        *("RevokeApiKeyRequest.name", "InferRequest.name", "PutVersionHeader.parent"),
        *("FanoutTarget.name", "RentProcessorRequest.vplm", "ReleaseProcessorRequest.name"),
        *("GetProcessorRequest.name", "ListProcessorsRequest.parent"),
        *("GetVersionRequest.name", "ResolveAliasRequest.name", "ListVersionsRequest.parent"),
        *("DownloadVersionRequest.name", "SetAliasRequest.name", "GetUsageRequest.name"),
        *("CreateTrainingJobRequest.parent", "TrainingJob.vplm", "TrainingJob.dataset"),
        *("TrainingJob.validation_dataset", "GetTrainingJobRequest.name"),
        *("ListTrainingJobsRequest.parent", "CancelTrainingJobRequest.name"),
        *("WatchTrainingJobRequest.name", "ValidateDatasetRequest.dataset"),
        "ValidateDatasetRequest.vplm",
    )
)
# Fields that name something all tenants share.
SHARED = frozenset(
    f"smile.v1.{name}"
    for name in ("GetBackboneRequest.name", "CreateVplmRequest.backbone", "ModuleSpec.backbone")
)
# Fields of resources that servers set and never read.
OUTPUT = frozenset(
    f"smile.v1.{name}"
    for name in ("ApiKey.name", "TrainingJob.name", "TrainingJob.version", "TrainingProgress.phase")
) | {"smile.v1.JobError", "smile.v1.Vplm.uid", "smile.v1.TrainingJob.metrics"}
# Only for origin `training`, which tenants may not claim.
UNUSABLE = frozenset({"smile.v1.PutVersionHeader.training_job"})
# Strings that name no resource, whatever message they are in.
FREE = frozenset(
    {
        *("page_token", "resume_token", "request_id", "etag", "digest", "backbone_digest"),
        *("display_name", "note", "labels", "texts", "paths", "text", "label", "pair"),
        *("vplm_id", "dataset_id", "alias", "promote_alias", "aliases", "metrics"),
        *("routing_key", "canaries", "spec_digest", "environment", "class_weights"),
    }
)


def string_fields(message: Descriptor, at: Path = ()) -> Iterator[tuple[Path, FieldDescriptor]]:
    """Every string a request can hold, and how to get there."""
    for entry in message.fields:
        where = (*at, entry.name)
        if entry.type == FieldDescriptor.TYPE_STRING:
            yield where, entry
        elif entry.message_type is not None and entry.message_type.full_name not in OUTPUT:
            if entry.message_type.GetOptions().map_entry:
                yield where, entry
            else:
                yield from string_fields(entry.message_type, where)


def name_paths(method: MethodDescriptor) -> list[Path]:
    """Where requests of a method name resources of tenants."""
    return [where for where, entry in string_fields(method.input_type) if entry.full_name in NAMES]


def value_at(request: Requests, where: Path) -> str:
    found: Any = _first(request)
    for part in where:
        found = _one(getattr(found, part))
    assert isinstance(found, str)
    return found


def with_value(request: Requests, where: Path, value: str) -> Requests:
    """A copy with another string; of streams, in the first message. Lists without an element get
    one on the way."""
    head = type(first := _first(request))()
    head.CopyFrom(first)
    target: Any = head
    for part in where[:-1]:
        found = getattr(target, part)
        target = _one(found) if isinstance(found, Message) or found else found.add()
    setattr(target, where[-1], value)
    return [head, *request[1:]] if isinstance(request, list) else head


def _one(value: Any) -> Any:
    """The first where there are several."""
    return value if isinstance(value, str | Message) else value[0]


def _first(request: Requests) -> Message:
    return request[0] if isinstance(request, list) else request
