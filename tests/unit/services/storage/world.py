"""Storage's domain over a memory store whose faults can be ordered, and toy modules."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import numpy as np

from services.storage.adapters import Adapters, AdapterTexts, NewAdapter
from services.storage.blobs import ByteBudget, Declared
from services.storage.catalog import Catalog, NewVplm
from services.storage.datasets import Datasets, NewDataset
from services.storage.grace import Grace
from services.storage.identity import Identity, KeySecret, NewTenant
from services.storage.quota import Ledger
from services.storage.training_records import TrainingRecords
from services.storage.trash import Trash, VplmDeletion
from services.storage.usage import UsageReports
from services.storage.version_trash import VersionTrash
from services.storage.versions import NewVersion, Versions
from smile.limits import MIB
from smile.model import weights
from smile.model.initial import initial_tensors
from smile.model.specs import (
    BackboneShape,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Task,
)
from smile.names import AdapterName, DatasetName, TenantId, VplmName
from smile.resources import Backbone, DatasetFormat, Derivation, VersionOrigin, Vplm
from smile.store.objects import (
    Object,
    ObjectInfo,
    ObjectStore,
    Reading,
    open_store,
    read_one_by_one,
)

T = TypeVar("T")
ACME = TenantId("acme")
OTHER = TenantId("other")
SHAPE = BackboneShape(
    layers=2, hidden=8, intermediate=16, heads=2, tokens_max=32, parameters=1000, bytes=4000
)
DIGEST = "ab" * 32
BACKBONE = Backbone("backbones/toy", "bert", DIGEST, SHAPE)
SPEC = ModuleSpec(
    "toy",
    DIGEST,
    PetSpec(PetKind.PFEIFFER, first_layer=1, rank=2),
    HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("no", "yes")),
)


def new_id() -> str:
    return str(uuid.uuid4())


def module(seed: int = 0, spec: ModuleSpec = SPEC) -> bytes:
    return weights.encode(initial_tensors(spec, SHAPE, seed), spec)


def bad_module() -> bytes:
    """The right tensors, one of them with a NaN."""
    data = bytearray(module())
    data[-2:] = np.array([np.nan], dtype=np.float16).tobytes()
    return bytes(data)


def declared(data: bytes) -> Declared:
    return Declared(len(data), hashlib.sha256(data).hexdigest())


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


class InjectedCrash(BaseException):
    """The process ends here: nothing that catches errors may catch this."""


@dataclass
class FaultyStore:
    """A store that raises `error` at operation number `fail_at`, before or after its effect."""

    inner: ObjectStore = field(default_factory=lambda: open_store("memory://"))
    fail_at: int = -1
    after_effect: bool = False
    error: BaseException = field(default_factory=InjectedCrash)
    operations: int = 0
    fired: bool = False

    def arm(self, fail_at: int, *, after_effect: bool, error: BaseException) -> None:
        self.fail_at, self.after_effect, self.error = fail_at, after_effect, error
        self.operations, self.fired = 0, False

    def disarm(self) -> None:
        self.fail_at = -1

    def _before(self) -> bool:
        """Whether the fault comes after the effect of this operation."""
        number, self.operations = self.operations, self.operations + 1
        if number != self.fail_at:
            return False
        self.fired = True
        if self.after_effect:
            return True
        raise self.error

    def _after(self, due: bool) -> None:
        if due:
            raise self.error

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        due = self._before()
        result = await self.inner.put_if_absent(key, data)
        self._after(due)
        return result

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        due = self._before()
        result = await self.inner.compare_and_swap(key, data, etag)
        self._after(due)
        return result

    async def get(self, key: str) -> Object | None:
        self._after(self._before())
        return await self.inner.get(key)

    async def read(self, reading: Reading[T]) -> T:
        return await read_one_by_one(self.get, reading)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        due = self._before()
        await self.inner.put_stream(key, chunks)
        self._after(due)

    async def get_stream(self, key: str, chunk_bytes: int = MIB) -> AsyncIterator[bytes]:
        due = self._before()
        async for chunk in self.inner.get_stream(key, chunk_bytes):
            yield chunk
            self._after(due)

    async def list_objects(
        self, prefix: str, *, after: str | None = None, limit: int = 1000
    ) -> list[ObjectInfo]:
        self._after(self._before())
        return await self.inner.list_objects(prefix, after=after, limit=limit)

    async def list_folders(self, prefix: str) -> list[str]:
        self._after(self._before())
        return await self.inner.list_folders(prefix)

    async def delete(self, key: str) -> None:
        due = self._before()
        await self.inner.delete(key)
        self._after(due)

    async def probe(self) -> None:
        await self.inner.probe()


class World:
    """All of storage's domain over one store."""

    def __init__(
        self,
        store: ObjectStore | None = None,
        dataset_bytes_max: int = MIB,
        grace: timedelta = timedelta(0),
    ) -> None:
        self.store = store or open_store("memory://")
        self.identity = Identity(self.store)
        self.ledger = Ledger(self.store)
        budget = ByteBudget(64 * MIB)
        self.catalog = Catalog(self.store, self.identity, self.ledger, budget)
        self.versions = Versions(self.store, self.catalog, self.identity, self.ledger, budget)
        self.trash = Trash(self.store, self.catalog, self.ledger, Grace(self.store, grace))
        self.version_trash = VersionTrash(self.store, self.trash, self.ledger)
        self.adapters = Adapters(self.store, self.catalog, self.versions, budget)
        self.datasets = Datasets(self.store, self.identity, self.ledger, dataset_bytes_max)
        self.usage = UsageReports(self.store, self.identity)
        self.records = TrainingRecords(self.store, self.identity)

    async def tenant(self, tenant: TenantId = ACME, quota_bytes: int = 0) -> None:
        new = NewTenant(tenant, "", quota_bytes, new_id())
        await self.identity.create_tenant(new, KeySecret("k" + "a" * 15, "0" * 64))

    async def delete(self, name: VplmName, etag: str = "", request_id: str = "") -> Vplm:
        wanted = VplmDeletion(name, request_id or new_id(), etag)
        return await self.trash.delete(wanted)

    async def keys(self) -> list[str]:
        return [info.key for info in await self.store.list_objects("")]


def vplm(vplm: str = "topics", tenant: TenantId = ACME) -> VplmName:
    return VplmName(tenant, vplm)


def new_vplm(
    name: VplmName | None = None, data: bytes | None = None, request_id: str = ""
) -> NewVplm:
    return NewVplm(
        name=name or vplm(),
        spec=SPEC,
        backbone=BACKBONE,
        declared=declared(module() if data is None else data),
        request_id=request_id or new_id(),
        display_name="Topics",
        labels={"team": "news"},
    )


def new_adapter(adapter: str = "news", data: bytes | None = None) -> NewAdapter:
    return NewAdapter(
        name=AdapterName(adapter),
        spec=SPEC,
        backbone=BACKBONE,
        declared=declared(module() if data is None else data),
        request_id=new_id(),
        texts=AdapterTexts(display_name="News", license="MIT", tags={"domain": "news"}),
    )


def derived_vplm(new: NewAdapter, name: VplmName | None = None) -> NewVplm:
    """A vPLM that is an adapter as it was."""
    return NewVplm(
        name=name or vplm(),
        spec=new.spec,
        backbone=new.backbone,
        declared=new.declared,
        request_id=new_id(),
        origin=VersionOrigin.ADAPTER,
        derived_from=Derivation(str(new.name), new.declared.digest),
        by_reference=True,
    )


def new_version(data: bytes, name: VplmName | None = None, request_id: str = "") -> NewVersion:
    return NewVersion(
        vplm=name or vplm(),
        declared=declared(data),
        origin=VersionOrigin.IMPORT,
        request_id=request_id or new_id(),
    )


def new_dataset(data: bytes, dataset: str = "news", request_id: str = "") -> NewDataset:
    return NewDataset(
        DatasetName(ACME, dataset), DatasetFormat.CSV, declared(data), request_id or new_id()
    )


async def commit(world: World, name: VplmName | None = None, seed: int = 0) -> None:
    data = module(seed)
    await world.catalog.commit(new_vplm(name, data), chunks(data))


async def joined(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])
