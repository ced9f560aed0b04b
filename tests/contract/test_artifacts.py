"""Local encoders, tables and domains in storage's catalogue: in and out, never changed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from services.storage import keys
from services.storage.maintenance.collect import Collector
from services.storage.maintenance.verify import Verifier
from smile.artifacts import ArtifactKind
from smile.errors import (
    AlreadyExists,
    DataCorrupted,
    InvalidArgument,
    InvalidName,
    NotFound,
    PermissionDenied,
)
from smile.maintenance import Finding, FindingKind
from smile.model.backbone import Backbone
from smile.model.toy import write_toy_backbone
from smile.representations import places
from smile.representations.domains import EffectiveRows
from smile.representations.manifest import GENERAL
from smile.representations.snapshot import Table
from tests.contract.materialized_world import Encoder, Over
from tests.contract.platform_world import platform_world

pytestmark = pytest.mark.asyncio
SEEN = ["the movie was good and the story was sad", "a slow train and a cold river"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("toy")
    return Encoder.make(Backbone.load(write_toy_backbone(folder), "toy"), folder / "encoder")


@pytest.fixture(scope="module")
def table(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.table(tmp_path_factory.mktemp("tables") / "general", SEEN)


async def test_what_is_pulled_is_what_was_pushed(
    encoder: Encoder, table: Path, tmp_path: Path
) -> None:
    async with platform_world("acme") as platform, platform.operator() as operator:
        first = await operator.push_artifact("skip", encoder.path, note="a first one")
        heard: list[tuple[int, int]] = []
        rows = await operator.push_artifact(
            "rows", table, on_progress=lambda *told: heard.append(told)
        )
        assert heard[-1] == (rows.size_bytes, rows.size_bytes)
        assert (first.kind, rows.kind) == (ArtifactKind.ENCODER, ArtifactKind.TABLE)
        assert first.encoder_digest == rows.encoder_digest == encoder.stand_in.digest
        assert first.backbone_digest == rows.backbone_digest == encoder.backbone.digest
        assert rows.rows == len(Table.open(table).keys) and first.boundary == 2
        found = [artifact async for artifact in operator.artifacts(page_size=1)]
        assert found == [rows, first] and (await operator.artifact("skip")) == first
        pulled = tmp_path / "deep" / "encoder"
        assert await operator.pull_artifact("skip", pulled) == first
        assert pulled.read_bytes() == encoder.path.read_bytes()
        await operator.pull_artifact("artifacts/rows", tmp_path / "table")
        opened = Table.open(tmp_path / "table", encoder.stand_in.origin, verify=True)
        assert opened.digest == Table.open(table).digest
        with pytest.raises(AlreadyExists):
            await operator.pull_artifact("rows", tmp_path / "table")
        findings = [
            event async for event in Verifier(platform.store).verify() if isinstance(event, Finding)
        ]
        assert not findings


async def test_domains_come_and_go_together(encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "domains"
    news = encoder.domain(folder, "news", SEEN, Over(GENERAL, EffectiveRows(encoder.stand_in)), 1.0)
    over = Over("news", EffectiveRows(encoder.stand_in, (news,)))
    sport = encoder.domain(folder, "sport", SEEN[:1], over, 1.0)
    (folder / "sport" / places.ENCODER).write_bytes(encoder.path.read_bytes())
    async with platform_world() as platform, platform.operator() as operator:
        made = await operator.push_artifact("domains", folder)
        assert made.kind is ArtifactKind.DOMAINS
        assert made.rows == len(news.keys) + len(sport.keys)
        assert made.backbone_digest == encoder.backbone.digest
        assert made.encoder_digest == encoder.stand_in.digest and made.boundary == 2
        assert f"sport/{places.ENCODER}" in {file.name for file in made.files}
        await operator.pull_artifact("domains", tmp_path / "pulled")
        for name, place in places.domains_in(tmp_path / "pulled"):
            opened = Table.open(place / places.TABLE, verify=True)
            assert opened.digest == {"news": news, "sport": sport}[name].digest
        assert (tmp_path / "pulled/sport" / places.ENCODER).is_file()
        (folder / "news").rename(tmp_path / "news")
        with pytest.raises(InvalidArgument, match="'sport' needs its parent 'news'"):
            await operator.push_artifact("orphans", folder)
        (folder / "sport").rename(folder / "politics")
        with pytest.raises(DataCorrupted, match="not 'politics'"):
            await operator.push_artifact("misnamed", folder)


async def test_only_operators_have_them(table: Path, encoder: Encoder, tmp_path: Path) -> None:
    async with platform_world("acme") as platform:
        async with platform.operator() as operator:
            await operator.push_artifact("skip", encoder.path)
        async with platform.client("acme") as client:
            with pytest.raises(PermissionDenied):
                await client.push_artifact("mine", encoder.path)
            with pytest.raises(PermissionDenied):
                await client.pull_artifact("skip", tmp_path / "encoder")
            with pytest.raises(PermissionDenied):
                _ = [artifact async for artifact in client.artifacts()]
            with pytest.raises(PermissionDenied):
                await client.delete_artifact("skip")
        assert not (tmp_path / "encoder").exists()


async def test_names_never_change_what_they_mean(
    encoder: Encoder, table: Path, tmp_path: Path
) -> None:
    async with platform_world() as platform, platform.operator() as operator:
        request = "6f0f2f0e-45a1-4d5c-9a34-0b0c1d2e3f40"
        made = await operator.push_artifact("rows", table, request_id=request)
        assert await operator.push_artifact("rows", table, request_id=request) == made
        with pytest.raises(AlreadyExists):
            await operator.push_artifact("rows", encoder.path)
        with pytest.raises(InvalidName):
            await operator.push_artifact("No Name", table)
        await operator.delete_artifact("rows")
        for gone in (operator.artifact("rows"), operator.pull_artifact("rows", tmp_path / "x")):
            with pytest.raises(NotFound):
                await gone
        with pytest.raises(NotFound):
            await operator.delete_artifact("rows")
        with pytest.raises(AlreadyExists) as caught:
            await operator.push_artifact("rows", table, request_id=request)
        assert caught.value.reason == "REQUEST_ID_USED"
        again = await operator.push_artifact("rows", encoder.path)
        assert again.kind is ArtifactKind.ENCODER


async def test_what_is_damaged_is_neither_stored_nor_given_out(
    encoder: Encoder, table: Path, tmp_path: Path
) -> None:
    async with platform_world() as platform, platform.operator() as operator:
        broken = tmp_path / "broken"
        broken.write_bytes(encoder.path.read_bytes()[:-3])
        with pytest.raises(DataCorrupted):
            await operator.push_artifact("broken", broken)
        with pytest.raises(InvalidArgument):
            await operator.push_artifact("nothing", tmp_path / "nothing")
        assert not await platform.store.inner.list_objects(keys.ARTIFACT_BLOBS)
        made = await operator.push_artifact("rows", table)
        rows = next(file for file in made.files if file.name == "rows.bin")
        place = keys.artifact_blob(rows.digest)
        await platform.store.inner.delete(place)
        assert await platform.store.inner.put_if_absent(place, b"x" * rows.size_bytes)
        with pytest.raises(DataCorrupted):
            await operator.pull_artifact("rows", tmp_path / "rows")
        assert not (tmp_path / "rows").exists()
        found = [e async for e in Verifier(platform.store).verify() if isinstance(e, Finding)]
        assert [one.kind for one in found] == [FindingKind.DIGEST_MISMATCH]


async def test_files_are_shared_and_collected_once_nobody_names_them(
    encoder: Encoder, table: Path
) -> None:
    async with platform_world() as platform, platform.operator() as operator:
        one = await operator.push_artifact("one", table)
        two = await operator.push_artifact("two", table)
        assert one.digest == two.digest
        store = platform.store.inner
        assert len(await store.list_objects(keys.ARTIFACT_BLOBS)) == len(one.files)

        async def collected() -> int:
            collector = Collector(platform.store, timedelta(0))
            _ = [event async for event in collector.collect()]
            return len(await store.list_objects(keys.ARTIFACT_BLOBS))

        await operator.delete_artifact("one")
        assert await collected() == len(one.files), "the other names them still"
        await operator.delete_artifact("two")
        assert await collected() == 0
        back = await operator.push_artifact("one", table)
        assert back.digest == one.digest
        assert await collected() == len(one.files)
