"""A processor whose local encoder, table and domains are names in storage's catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr

import smile
from services.processor.config import ProcessorSettings
from services.processor.materialize.fetching import ARTIFACTS_CHECK
from services.processor.servicer import FULL_NAME, ProcessorServicer
from services.processor.serving import BACKBONES_CHECK, Processor
from smile.client.artifact_cache import ArtifactCache
from smile.client.client import AsyncClient
from smile.client.version_reader import VersionReader
from smile.errors import DataCorrupted, FailedPrecondition, NotFound
from smile.model.backbone import Backbone
from smile.names import ArtifactName
from smile.representations.domains import EffectiveRows
from smile.representations.manifest import GENERAL
from smile.resources import Exactness
from smile.rpc.auth import RemoteAuthenticator
from smile.rpc.channel import ServiceCredential, build_channel
from smile.rpc.health import Readiness
from smile.testing import Service, serving
from smile.v1 import processor_pb2_grpc
from tests.contract.materialized_world import Encoder, Over
from tests.contract.platform_world import Platform, platform_world

pytestmark = pytest.mark.asyncio
TEXT = "a slow train and a cold river"
SKIP, ROWS, DOMAINS = ArtifactName("skip"), ArtifactName("rows"), ArtifactName("domains")


@asynccontextmanager
async def to_storage(platform: Platform) -> AsyncIterator[grpc.aio.Channel]:
    credentials = ServiceCredential(platform.service_key)
    async with build_channel(platform.addresses["storage"], credentials=credentials) as channel:
        yield channel


@asynccontextmanager
async def processor(
    platform: Platform, folder: Path, beside: str = f"tables=toy={ROWS}"
) -> AsyncIterator[tuple[Processor, Readiness, str]]:
    """One that takes an encoder, and `beside` it something else, from the catalogue."""
    setting, _, place = beside.partition("=")
    more: dict[str, Any] = {"skip": f"toy={SKIP}", setting: place}
    settings = ProcessorSettings(
        port=0,
        service_key=SecretStr(platform.service_key),
        backbones=f"toy=dir:{platform.backbone}",
        threads=1,
        calibration_s=0.0,
        learn_s=0.05,
        artifacts_folder=folder,
        **more,
    )
    async with to_storage(platform) as channel:
        made = Processor.build(
            settings, VersionReader(channel), cache=ArtifactCache(channel, settings.artifacts)
        )
        readiness = Readiness(BACKBONES_CHECK)
        add = processor_pb2_grpc.add_ProcessorServiceServicer_to_server
        service = Service(ProcessorServicer(made.pipeline, made.renting), add, FULL_NAME)
        authenticator = RemoteAuthenticator(channel, platform.service_key)
        async with (
            made.running(readiness),
            serving([service], authenticator=authenticator, readiness=readiness) as server,
        ):
            await until(lambda: readiness.ready)
            yield made, readiness, server.address


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def client_of(platform: Platform, address: str) -> AsyncClient:
    others = [one for one in platform.endpoints.split(",") if not one.startswith("processor=")]
    return AsyncClient(platform.keys["acme"], endpoints=",".join([*others, f"processor={address}"]))


async def test_a_name_in_storage_serves_as_a_folder_does(tmp_path: Path) -> None:
    async with platform_world("acme") as platform, platform.operator() as operator:
        encoder = Encoder.make(Backbone.load(platform.backbone, "toy"), tmp_path / "encoder")
        table = encoder.table(tmp_path / "table", [TEXT])
        async with platform.client("acme") as client:
            pet = smile.Pfeiffer(rank=4, first_layer=2)
            await client.create_vplm("topics", backbone="toy", pet=pet, labels=["a", "b"])
        cache = tmp_path / "cache"
        async with (
            processor(platform, cache) as (made, readiness, address),
            client_of(platform, address) as client,
        ):
            assert (await client.infer("topics", TEXT)).exactness is Exactness.EXACT
            with pytest.raises(FailedPrecondition) as caught:
                await client.infer("topics", TEXT, exactness="materialized")
            assert caught.value.reason == "NOT_MATERIALIZED"
            assert "does not exist" in (readiness.amiss(ARTIFACTS_CHECK) or "")
            await operator.push_artifact("skip", encoder.path)
            await operator.push_artifact("rows", table)
            await until(lambda: readiness.amiss(ARTIFACTS_CHECK) == "")
            await until(lambda: bool(made.engine.live_rows()))
            await until(lambda: made.engine.live_rows()["toy"].table is not None)
            answer = await client.infer("topics", TEXT, exactness="materialized")
            told = answer.materialization
            assert told is not None and told.encoder_digest == encoder.stand_in.digest
            assert told.found == told.ngrams
        platform.store.break_down()  # storage has nothing to give at this start
        async with processor(platform, cache) as (made, readiness, _):
            assert made.engine.live_rows()["toy"].table is not None
            assert readiness.ready and readiness.amiss(ARTIFACTS_CHECK)
        platform.store.recover()


async def test_domains_are_taken_in_when_they_come(tmp_path: Path) -> None:
    async with platform_world("acme") as platform, platform.operator() as operator:
        encoder = Encoder.make(Backbone.load(platform.backbone, "toy"), tmp_path / "encoder")
        over = Over(GENERAL, EffectiveRows(encoder.stand_in))
        news = encoder.domain(tmp_path / "domains", "news", [TEXT], over, 1.0)
        await operator.push_artifact("skip", encoder.path)
        async with platform.client("acme") as client:
            pet = smile.Pfeiffer(rank=4, first_layer=2)
            await client.create_vplm(
                "topics", backbone="toy", pet=pet, labels=["a", "b"], domain="news"
            )
        async with (
            processor(platform, tmp_path / "cache", f"domains=toy={DOMAINS}") as (made, _, address),
            client_of(platform, address) as client,
        ):
            await until(lambda: bool(made.engine.live_rows()))
            with pytest.raises(FailedPrecondition) as caught:
                await client.infer("topics", TEXT, exactness="materialized")
            assert caught.value.reason == "DOMAIN_NOT_SERVED"
            await operator.push_artifact("domains", tmp_path / "domains")
            await until(lambda: "news" in made.engine.live_rows()["toy"].domains.tree)
            answer = await client.infer("topics", TEXT, exactness="materialized")
            told = answer.materialization
            assert told is not None and told.domain_digest == news.digest


async def test_a_table_of_another_encoder_is_refused(tmp_path: Path) -> None:
    async with platform_world("acme") as platform, platform.operator() as operator:
        backbone = Backbone.load(platform.backbone, "toy")
        encoder = Encoder.make(backbone, tmp_path / "encoder")
        other = Encoder.make(backbone, tmp_path / "other", seed=6)
        await operator.push_artifact("skip", encoder.path)
        await operator.push_artifact("rows", other.table(tmp_path / "table", [TEXT]))
        async with processor(platform, tmp_path / "cache") as (made, readiness, _):
            await until(lambda: readiness.amiss(ARTIFACTS_CHECK) == "")
            rows = made.engine.live_rows()["toy"]
            with pytest.raises(FailedPrecondition) as caught:
                rows.open(tmp_path / "cache" / "rows")
            assert caught.value.reason == "ENCODER_MISMATCH"
            assert rows.table is None


async def test_a_cache_has_what_storage_has_or_keeps_what_it_had(tmp_path: Path) -> None:
    async with platform_world() as platform, platform.operator() as operator:
        encoder = Encoder.make(Backbone.load(platform.backbone, "toy"), tmp_path / "encoder")
        async with to_storage(platform) as channel:
            one, two = (ArtifactCache(channel, tmp_path / "cache") for _ in range(2))
            with pytest.raises(NotFound):
                await one.fetch(ROWS)
            made = await operator.push_artifact("rows", encoder.table(tmp_path / "t1", [TEXT]))
            await asyncio.gather(one.fetch(ROWS), two.fetch(ROWS))
            assert not await one.fetch(ROWS), "it is there"
            await operator.delete_artifact("rows")
            again = await operator.push_artifact(
                "rows", encoder.table(tmp_path / "t2", [TEXT, "another film"])
            )
            assert made.digest != again.digest
            place = platform.store.inner
            rows = next(file for file in again.files if file.name == "rows.bin")
            await place.delete(f"artifactBlobs/{rows.digest}")
            before = (tmp_path / "cache" / "rows" / "rows.bin").read_bytes()
            with pytest.raises(DataCorrupted):
                await two.fetch(ROWS)
            assert (tmp_path / "cache" / "rows" / "rows.bin").read_bytes() == before
            assert await place.put_if_absent(
                f"artifactBlobs/{rows.digest}", (tmp_path / "t2" / "rows.bin").read_bytes()
            )
            assert await two.fetch(ROWS)
            assert (tmp_path / "cache" / "rows" / "rows.bin").read_bytes() != before
            left = [path.name for path in (tmp_path / "cache").iterdir()]
            assert left == ["rows"], "nothing half done stays"
