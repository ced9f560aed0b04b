"""A real processor over a toy backbone, and a storage that can be away, slow or lying."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import SecretStr

from services.processor.config import ProcessorSettings
from services.processor.servicer import FULL_NAME, ProcessorServicer
from services.processor.serving import BACKBONES_CHECK, Processor
from services.storage.feed.hub import Hub
from services.storage.servicer.changes import FULL_NAME as FEED_NAME
from services.storage.servicer.changes import ChangeFeedServicer
from smile import codec
from smile.client.client import AsyncClient
from smile.client.version_reader import VersionReader
from smile.errors import Unavailable
from smile.model import layout, toy_modules, weights
from smile.model.backbone import Backbone
from smile.model.initial import NUMPY_DTYPES, StoredArray
from smile.model.packing import pack
from smile.model.reference import VplmModule
from smile.model.specs import (
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Pooling,
    Projection,
    Task,
)
from smile.resources import (
    Canary,
    FanoutResult,
    InferResult,
    ProcessorStats,
    VersionOrigin,
    VplmVersion,
)
from smile.rpc.auth import current_principal, not_found
from smile.rpc.changes import ChangeFeed
from smile.rpc.channel import ApiKey, ServiceCredential, build_channel, calling
from smile.rpc.freshness import Freshness
from smile.rpc.health import Readiness
from smile.testing import FakeAuthenticator, FakeKeys, Service, serving
from smile.v1 import (
    changes_pb2_grpc,
    processor_pb2,
    processor_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
)

FEED_BEAT_S = 0.02
STORAGE_NAME = storage_pb2.DESCRIPTOR.services_by_name["StorageService"].full_name
PETS = {
    "pfeiffer": PetSpec(PetKind.PFEIFFER, 2, rank=6),
    "houlsby": PetSpec(PetKind.HOULSBY, 1, rank=4),
    "lora": PetSpec(PetKind.LORA, 0, rank=3, alpha=6.0, targets=tuple(Projection)[:3]),
    "bitfit": PetSpec(PetKind.BITFIT, 2),
    "diff-pruning": PetSpec(PetKind.DIFF_PRUNING, 1, density=0.03),
    "mask-bert": PetSpec(PetKind.MASK_BERT, 2, density=0.05),
    "none": PetSpec(PetKind.NONE, 2),
}
HEADS = {
    "topic": HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("sport", "money", "film", "home", "war")),
    "yes": HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("no", "yes"), Pooling.CLS),
    "words": HeadSpec(Task.TOKEN_CLASSIFICATION, ("other", "name", "place")),
    "near": HeadSpec(Task.EMBEDDING),
}


def module_spec(backbone: Backbone, pet: str = "pfeiffer", head: str = "topic") -> ModuleSpec:
    return ModuleSpec(backbone.name, backbone.digest, PETS[pet], HEADS[head], DType.FLOAT32)


def random_tensors(spec: ModuleSpec, backbone: Backbone, seed: int) -> dict[str, StoredArray]:
    """Weights that change every answer."""
    random = np.random.default_rng(seed)
    found = toy_modules.random_tensors(spec, backbone.shape, seed=seed)
    for name, tensor in layout.tensors(spec, backbone.shape).items():
        if isinstance(tensor.dtype, DType):
            values = 0.2 * random.standard_normal(tensor.shape)
            found[name] = values.astype(NUMPY_DTYPES[tensor.dtype])
    return found


class StorageFake(storage_pb2_grpc.StorageServiceServicer):
    """Versions in a dict, and ways to fail."""

    def __init__(self) -> None:
        self.versions: dict[str, VplmVersion] = {}
        self.data: dict[str, bytes] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.canaries: dict[tuple[str, str], Canary] = {}
        self.away = False
        self.hangs = False
        self.brings = False  # bytes along with an alias
        self.gate: asyncio.Event | None = None  # downloads wait for it
        self.pause_s: Callable[[], float] | None = None  # on the way here, and on the way back
        self.hub: Hub | None = None  # who is told of changes, if anybody
        self.asked: Counter[str] = Counter()

    def put(
        self,
        vplm: str,
        spec: ModuleSpec,
        data: bytes,
        *,
        origin: VersionOrigin = VersionOrigin.TRAINING,
        serve: bool = True,
    ) -> VplmVersion:
        """One more version of `tenants/t/vplms/v`; `serving` points to it."""
        number = 1 + sum(name.startswith(f"{vplm}/versions/") for name in self.versions)
        name = f"{vplm}/versions/{number}"
        digest = hashlib.sha256(data).hexdigest()
        self.versions[name] = VplmVersion(name, digest, len(data), spec, origin)
        self.data[name] = data
        if serve:
            self.aliases[vplm, "serving"] = number
        return self.versions[name]

    def lie(self, name: str, data: bytes, *, digest: bool) -> None:
        """Send other bytes for a version; with `digest`, its manifest lies along."""
        self.data[name] = data
        if digest:
            told = hashlib.sha256(data).hexdigest()
            self.versions[name] = replace(self.versions[name], digest=told, size_bytes=len(data))

    def delete(self, vplm: str) -> None:
        self.versions = {n: v for n, v in self.versions.items() if not n.startswith(vplm + "/")}
        self.aliases = {key: n for key, n in self.aliases.items() if key[0] != vplm}
        self.canaries = {key: one for key, one in self.canaries.items() if key[0] != vplm}

    async def _travel(self) -> None:
        if self.pause_s is not None:
            await asyncio.sleep(self.pause_s())

    def _found(self, name: str) -> VplmVersion:
        assert name.split("/")[1] == current_principal().tenant, "asked for the tenant asking"
        if self.away:
            raise Unavailable("storage is away")
        if name not in self.versions:
            raise not_found(name.rpartition("/versions/")[0])
        return self.versions[name]

    async def ResolveAlias(self, request: Any, context: Any) -> Any:
        self.asked["resolve"] += 1
        await self._travel()
        if self.hangs:
            await asyncio.sleep(60)
        if self.away:
            raise Unavailable("storage is away")
        number = self.aliases.get((request.name, request.alias or "serving"))
        if number is None:
            raise not_found(request.name)
        found = self._found(f"{request.name}/versions/{number}")
        if canary := self.canaries.get((request.name, request.alias or "serving")):
            second = self._found(f"{request.name}/versions/{canary.version}")
            found = replace(found, canary=second, canary_weight=canary.weight)
        await self._travel()
        return codec.version_to_pb(found)

    async def FetchAlias(self, request: Any, context: Any) -> Any:
        version = await self.ResolveAlias(request, context)
        content = self.data[version.name] if self.brings and version.name in self.data else b""
        return storage_pb2.FetchAliasResponse(version=version, content=content)

    async def GetVersion(self, request: Any, context: Any) -> Any:
        self.asked["get"] += 1
        await self._travel()
        found = self._found(request.name)
        await self._travel()
        return codec.version_to_pb(found)

    async def DownloadVersion(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.asked["download"] += 1
        await self._travel()
        version, data = self._found(request.name), self.data[request.name]
        if self.gate is not None:
            await self.gate.wait()
        yield storage_pb2.DownloadVersionResponse(version=codec.version_to_pb(version))
        for start in range(0, len(data), 4_000):
            await self._travel()
            yield storage_pb2.DownloadVersionResponse(chunk=data[start : start + 4_000])


@dataclass
class World:
    """Everything a test talks to."""

    backbone: Backbone
    keys: FakeKeys
    storage: StorageFake
    processor: Processor
    readiness: Readiness
    address: str
    modules: dict[str, VplmModule] = field(default_factory=dict)

    def add(
        self, tenant: str, vplm: str, *, pet: str = "pfeiffer", head: str = "topic", seed: int = 0
    ) -> VplmVersion:
        """A vPLM of its own with random weights, and the reference that knows its answers."""
        spec = module_spec(self.backbone, pet, head)
        return self.put(f"tenants/{tenant}/vplms/{vplm}", spec, seed)

    def put(self, name: str, spec: ModuleSpec, seed: int) -> VplmVersion:
        """The same of a spec."""
        tensors = random_tensors(spec, self.backbone, seed)
        version = self.storage.put(name, spec, weights.encode(tensors, spec))
        self.modules[version.name] = VplmModule(self.backbone, spec, tensors)
        return version

    @torch.no_grad()
    def expected(self, version: str, text: str) -> np.ndarray[Any, Any]:
        """What the reference says: probabilities of all labels, or the embedding."""
        module = self.modules[version]
        (tokens,) = self.backbone.tokenizer.encode([text], truncate=True)
        output = module(pack([tokens.ids]))
        if module.spec.head.task is not Task.EMBEDDING:
            output = torch.softmax(output, dim=-1)
        values: np.ndarray[Any, Any] = output.numpy()
        return values

    async def infer(
        self, tenant: str, name: str, texts: list[str], *, timeout_s: float = 20.0, **asked: Any
    ) -> InferResult:
        credential = ApiKey(self.keys.tenant(tenant))
        request = processor_pb2.InferRequest(name=name, texts=texts, **asked)
        async with build_channel(self.address, credentials=credential) as channel:
            stub = processor_pb2_grpc.ProcessorServiceStub(channel)
            with calling():
                return codec.infer_from_pb(await stub.Infer(request, timeout=timeout_s))

    async def infer_fanout(
        self, tenant: str, text: str, names: list[str], *, timeout_s: float = 20.0, **asked: Any
    ) -> FanoutResult:
        credential = ApiKey(self.keys.tenant(tenant))
        targets = []
        for name in names:
            vplm, _, alias = name.partition("@")
            targets.append(processor_pb2.FanoutTarget(name=vplm, alias=alias))
        request = processor_pb2.InferFanoutRequest(targets=targets, text=text, **asked)
        async with build_channel(self.address, credentials=credential) as channel:
            stub = processor_pb2_grpc.ProcessorServiceStub(channel)
            with calling():
                return codec.fanout_from_pb(await stub.InferFanout(request, timeout=timeout_s))

    @asynccontextmanager
    async def client(self, tenant: str) -> AsyncIterator[AsyncClient]:
        """The SDK with a tenant's key; services other than the processor are not there."""
        endpoints = f"processor={self.address}"
        async with AsyncClient(self.keys.tenant(tenant), endpoints=endpoints) as client:
            yield client

    @property
    def stats(self) -> ProcessorStats:
        return self.processor.pipeline.stats()

    async def ready(self) -> None:
        async with asyncio.timeout(30):
            while BACKBONES_CHECK in self.readiness.unready:
                await self.readiness.changed.wait()


@asynccontextmanager
async def _feeding(storage: StorageFake, doubt_s: float) -> AsyncIterator[None]:
    """A change feed of this one storage, which beats until left."""
    hub = storage.hub = Hub(time.monotonic, doubt_s)
    hub.listen()

    async def beat() -> None:
        while True:
            hub.beat(time.monotonic())
            await asyncio.sleep(FEED_BEAT_S)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        hub.close()


@asynccontextmanager
async def processor_world(
    backbone: Path, *, feed_doubt_s: float | None = None, **changes: Any
) -> AsyncIterator[World]:
    """A processor and its storage, each behind a real server; with `feed_doubt_s`, storage has a
    change feed.
    """
    keys = FakeKeys()
    storage = StorageFake()  # type: ignore[abstract]
    settings = ProcessorSettings(
        port=0,
        service_key=SecretStr(keys.service),
        **{
            "backbones": f"toy=dir:{backbone}",
            "threads": 1,
            "resolve_ttl_s": 0.3,
            "module_failed_s": 0.3,
            **changes,
        },
    )
    readiness = Readiness(BACKBONES_CHECK)
    add_storage = storage_pb2_grpc.add_StorageServiceServicer_to_server
    add_processor = processor_pb2_grpc.add_ProcessorServiceServicer_to_server
    authenticator = FakeAuthenticator(keys)
    add_feed = changes_pb2_grpc.add_ChangeFeedServiceServicer_to_server
    async with AsyncExitStack() as stack:
        if feed_doubt_s is not None:
            await stack.enter_async_context(_feeding(storage, feed_doubt_s))
        services = [
            Service(storage, add_storage, STORAGE_NAME),
            Service(ChangeFeedServicer(storage.hub), add_feed, FEED_NAME),
        ]
        stored = await stack.enter_async_context(serving(services, authenticator=authenticator))
        credentials = ServiceCredential(keys.service)
        channel = await stack.enter_async_context(
            build_channel(stored.address, credentials=credentials)
        )
        reader = VersionReader(channel, resolve_timeout_s=1.0)
        freshness = Freshness()
        processor = Processor.build(settings, reader, freshness)
        if feed_doubt_s is not None:
            following = asyncio.create_task(ChangeFeed(channel, freshness).run())
            stack.callback(following.cancel)
        await stack.enter_async_context(processor.running(readiness))
        servicer = ProcessorServicer(processor.pipeline, processor.renting)
        server = await stack.enter_async_context(
            serving(
                [Service(servicer, add_processor, FULL_NAME)],
                authenticator=authenticator,
                server_settings=settings,
                readiness=readiness,
            )
        )
        world = World(
            Backbone.load(backbone, "toy"), keys, storage, processor, readiness, server.address
        )
        await world.ready()
        yield world
