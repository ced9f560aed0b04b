"""Import and export through real servers: what comes back is what left, and nothing unchecked."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

import smile
from smile import codec
from smile.cli.app import build
from smile.client.chunks import pieces
from smile.errors import SmileError
from smile.model.toy import write_toy_backbone
from smile.rpc.channel import ApiKey, build_channel
from smile.rpc.status import calling
from smile.v1 import creator_pb2, creator_pb2_grpc
from tests.contract.sdk_world import World, new_uuid, world, world_in_thread

LORA = smile.LoRA(rank=3, targets=["query", "output"])
KINDS = [
    smile.NoPet(),
    smile.Pfeiffer(rank=4),
    smile.Houlsby(rank=3, first_layer=0),
    LORA,
    smile.BitFit(),
    smile.DiffPruning(first_layer=1),
    smile.MaskBert(0.02),
]


@pytest_asyncio.fixture
async def platform() -> AsyncIterator[World]:
    async with world("acme", "rival") as made:
        yield made


@pytest.mark.asyncio
@pytest.mark.parametrize("pet", KINDS, ids=lambda pet: str(pet.kind))
async def test_our_own_format_brings_back_every_kind_to_the_bit(
    platform: World, pet: smile.PetSpec, tmp_path: Path
) -> None:
    async with platform.client("acme") as client:
        made = await client.create_vplm("topic", backbone="toy", pet=pet, labels=["a", "b"], seed=5)
        done = await client.export_vplm("topic", tmp_path / "out", format="smile")
        assert done.version.name == f"{made.name}/versions/1"
        back = await client.import_vplm("again", tmp_path / "out", backbone="toy")
        assert back.source is smile.ExportFormat.SMILE and back.remarks == ()
        assert back.vplm.spec == made.spec
        assert back.digest == done.version.digest
        version = await client.version("again")
        assert (version.number, version.digest) == (1, back.digest)
        assert version.origin is smile.VersionOrigin.IMPORT
        assert version.note == "imported from a smile folder"


@pytest.mark.asyncio
async def test_lora_goes_to_peft_and_comes_back(platform: World, tmp_path: Path) -> None:
    async with platform.client("acme") as client:
        made = await client.create_vplm("topic", backbone="toy", pet=LORA, labels=["a", "b"])
        done = await client.export_vplm("topic", tmp_path / "out")
        assert done.format is smile.ExportFormat.PEFT
        told: list[tuple[int, int]] = []
        back = await client.import_vplm(
            "again",
            tmp_path / "out",
            backbone="toy",
            labels=["yes", "no"],
            display_name="Again",
            tags={"from": "peft"},
            domain="sport",
            note="mine",
            on_progress=lambda sent, total: told.append((sent, total)),
        )
        assert back.source is smile.ExportFormat.PEFT
        assert back.vplm.spec.pet == made.spec.pet
        assert back.vplm.spec.head.labels == ("yes", "no")
        assert back.vplm.spec.domain == "sport"
        assert (back.vplm.display_name, back.vplm.labels) == ("Again", {"from": "peft"})
        assert back.vplm.aliases == {"serving": 1}
        assert back.digest == done.version.digest
        assert told[-1] == (back.size_bytes, back.size_bytes)
        assert (await client.version("again")).note == "mine"


NATURAL = {
    "none": smile.ExportFormat.HUGGINGFACE,
    "pfeiffer": smile.ExportFormat.ADAPTERHUB,
    "houlsby": smile.ExportFormat.ADAPTERHUB,
    "lora": smile.ExportFormat.PEFT,
    "bitfit": smile.ExportFormat.HUGGINGFACE,
    "diff-pruning": smile.ExportFormat.HUGGINGFACE,
    "mask-bert": smile.ExportFormat.HUGGINGFACE,
}


@pytest.mark.asyncio
@pytest.mark.parametrize("pet", KINDS, ids=lambda pet: str(pet.kind))
async def test_every_kind_goes_to_its_own_ecosystem_and_comes_back(
    platform: World, pet: smile.PetSpec, tmp_path: Path
) -> None:
    files = write_toy_backbone(tmp_path / "toy")
    async with platform.client("acme") as client:
        made = await client.create_vplm(
            "topic", backbone="toy", pet=pet, labels=["a", "b"], pooling="pooler", seed=5
        )
        done = await client.export_vplm("topic", tmp_path / "out", backbone_path=files)
        assert done.format is NATURAL[pet.kind]
        assert "tenants/acme/vplms/topic" in (tmp_path / "out" / "README.md").read_text()
        back = await client.import_vplm(
            "again", tmp_path / "out", backbone="toy", backbone_path=f"dir:{files}"
        )
        assert back.vplm.spec.head == made.spec.head
        if done.format is not smile.ExportFormat.HUGGINGFACE:
            assert back.vplm.spec == made.spec and back.digest == done.version.digest


@pytest.mark.asyncio
async def test_what_a_format_cannot_express_is_refused(platform: World, tmp_path: Path) -> None:
    async with platform.client("acme") as client:
        await client.create_vplm("topic", backbone="toy", pet=smile.Houlsby(), labels=["a", "b"])
        for format, why in (("peft", "its format is adapterhub"), ("huggingface", "be merged")):
            with pytest.raises(smile.InvalidArgument, match=why) as raised:
                await client.export_vplm("topic", tmp_path / "out", format=format)
            assert raised.value.reason == "EXPORT_UNSUPPORTED"
        with pytest.raises(smile.InvalidSpec, match="format must be one of peft, adapterhub"):
            await client.export_vplm("topic", tmp_path / "out", format="gguf")
        await client.create_vplm("biases", backbone="toy", pet=smile.BitFit(), labels=["a", "b"])
        with pytest.raises(smile.FailedPrecondition, match="backbone_path") as missing:
            await client.export_vplm("biases", tmp_path / "out")
        assert missing.value.reason == "BACKBONE_FILES_MISSING"
        assert os.listdir(tmp_path) == []


@pytest.mark.asyncio
async def test_an_import_happens_once(platform: World, tmp_path: Path) -> None:
    async with platform.client("acme") as client:
        await client.create_vplm("topic", backbone="toy", pet=LORA, labels=["a", "b"])
        await client.export_vplm("topic", tmp_path / "out")
        request = new_uuid()
        first, again = [
            await client.import_vplm("new", tmp_path / "out", backbone="toy", request_id=request)
            for _ in range(2)
        ]
        assert first.vplm.uid == again.vplm.uid
        with pytest.raises(smile.AlreadyExists):
            await client.import_vplm("new", tmp_path / "out", backbone="toy")


@pytest.mark.asyncio
async def test_what_the_backbone_is_must_agree(platform: World, tmp_path: Path) -> None:
    other = write_toy_backbone(tmp_path / "other", seed=9)
    async with platform.client("acme") as client:
        await client.create_vplm("topic", backbone="toy", pet=LORA, labels=["a", "b"])
        await client.export_vplm("topic", tmp_path / "out")
        with pytest.raises(smile.InvalidArgument, match="another model") as raised:
            await client.import_vplm("new", tmp_path / "out", backbone="toy", backbone_path=other)
        assert raised.value.reason == "BACKBONE_MISMATCH"
        with pytest.raises(smile.FailedPrecondition, match="no directory"):
            await client.import_vplm(
                "new", tmp_path / "out", backbone="toy", backbone_path=tmp_path / "gone"
            )
        note = tmp_path / "out" / "smile.json"
        note.write_text(json.dumps(json.loads(note.read_text()) | {"backbone_digest": "0" * 64}))
        with pytest.raises(smile.InvalidArgument, match="exported from a vPLM") as raised:
            await client.import_vplm("new", tmp_path / "out", backbone="toy")
        assert raised.value.reason == "BACKBONE_MISMATCH"


@pytest.mark.asyncio
async def test_another_tenants_vplm_cannot_be_exported(platform: World, tmp_path: Path) -> None:
    async with platform.client("acme") as mine, platform.client("rival") as theirs:
        made = await mine.create_vplm("topic", backbone="toy", pet=LORA, labels=["a", "b"])
        with pytest.raises(smile.NotFound):
            await theirs.export_vplm(made.name, tmp_path / "out")
        assert not (tmp_path / "out").exists()


Change = Callable[[creator_pb2.ImportVplmHeader, bytes], bytes]


def _flipped(header: creator_pb2.ImportVplmHeader, data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _not_finite(header: creator_pb2.ImportVplmHeader, data: bytes) -> bytes:
    broken = data[:-2] + b"\x00\x7e"
    header.digest = hashlib.sha256(broken).hexdigest()
    return broken


def _other_rank(header: creator_pb2.ImportVplmHeader, data: bytes) -> bytes:
    header.spec.pet.rank = 2
    return data


def _other_digest(header: creator_pb2.ImportVplmHeader, data: bytes) -> bytes:
    header.spec.backbone_digest = "1" * 64
    return data


def _no_backbone(header: creator_pb2.ImportVplmHeader, data: bytes) -> bytes:
    header.spec.backbone = "backbones/gone"
    return data


def _too_large(header: creator_pb2.ImportVplmHeader, data: bytes) -> bytes:
    header.size_bytes = 64 * 1024 * 1024 + 1
    return data


def _foreign(header: creator_pb2.ImportVplmHeader, data: bytes) -> bytes:
    header.parent = "tenants/rival"
    return data


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_flipped, "DIGEST_MISMATCH"),
        (lambda _, data: data[:-1], "STREAM_TRUNCATED"),
        (lambda _, data: data + b"x", "STREAM_TOO_LONG"),
        (_not_finite, "MODULE_INVALID"),
        (_other_rank, "MODULE_INVALID"),
        (_other_digest, "BACKBONE_MISMATCH"),
        (_no_backbone, "NOT_FOUND"),
        (_too_large, "REQUEST_INVALID"),
        (_foreign, "NOT_FOUND"),
    ],
)
async def test_the_platform_checks_for_itself(
    platform: World, tmp_path: Path, change: Change, reason: str
) -> None:
    async with platform.client("acme") as client:
        made = await client.create_vplm("topic", backbone="toy", pet=LORA, labels=["a", "b"])
        await client.download_version("topic", tmp_path / "topic.safetensors")
        data = (tmp_path / "topic.safetensors").read_bytes()
        header = _header("new", made, data)
        sent = change(header, data)
        with pytest.raises(SmileError) as raised:
            await _import(platform, header, sent)
        assert raised.value.reason == reason
        assert [vplm.name async for vplm in client.vplms()] == [made.name]


@pytest.mark.asyncio
async def test_an_import_that_is_refused_while_bytes_are_on_their_way_tells_why(
    platform: World, tmp_path: Path
) -> None:
    async with platform.client("acme") as client:
        made = await client.create_vplm("topic", backbone="toy", pet=LORA, labels=["a", "b"])
        await client.download_version("topic", tmp_path / "topic.safetensors")
    data = (tmp_path / "topic.safetensors").read_bytes()
    header = _header("topic", made, data)
    answered = asyncio.Event()

    async def messages() -> AsyncIterator[creator_pb2.ImportVplmRequest]:
        yield creator_pb2.ImportVplmRequest(header=header)
        yield creator_pb2.ImportVplmRequest(chunk=data[:1000])
        await answered.wait()

    with pytest.raises(smile.AlreadyExists):
        await _send(platform, messages())
    answered.set()


def _header(vplm: str, like: smile.Vplm, data: bytes) -> creator_pb2.ImportVplmHeader:
    """Of an import by acme that nothing is wrong with."""
    return creator_pb2.ImportVplmHeader(
        parent="tenants/acme",
        vplm_id=vplm,
        spec=codec.spec_to_pb(like.spec),
        size_bytes=len(data),
        digest=hashlib.sha256(data).hexdigest(),
        request_id=new_uuid(),
    )


async def _import(platform: World, header: creator_pb2.ImportVplmHeader, data: bytes) -> None:
    async def messages() -> AsyncIterator[creator_pb2.ImportVplmRequest]:
        yield creator_pb2.ImportVplmRequest(header=header)
        for piece in pieces(data, 1000):
            yield creator_pb2.ImportVplmRequest(chunk=piece)

    await _send(platform, messages())


async def _send(platform: World, messages: AsyncIterator[creator_pb2.ImportVplmRequest]) -> None:
    address = dict(part.split("=") for part in platform.endpoints.split(","))["creator"]
    async with build_channel(address, credentials=ApiKey(platform.keys["acme"])) as channel:
        with calling():
            await creator_pb2_grpc.CreatorServiceStub(channel).ImportVplm(messages, timeout=20)


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    with world_in_thread("acme") as made:
        monkeypatch.setenv("SMILE_API_KEY", made.keys["acme"])
        monkeypatch.setenv("SMILE_ENDPOINTS", made.endpoints)
        app = build()
        yield lambda *arguments: CliRunner().invoke(app, list(arguments))


def _document(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_command_line_exports_and_imports(cli: Cli, tmp_path: Path) -> None:
    create = ("create", "topic", "--backbone", "toy", "--pet", "lora", "--labels", "a,b")
    assert cli(*create).exit_code == 0
    out = str(tmp_path / "out")
    done = _document(cli("vplms", "export", "topic", out, "--format", "peft", "-o", "json"))
    assert (done["format"], done["path"]) == ("peft", out)
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    made = _document(
        cli("vplms", "import", "again", out, "--backbone", "toy", "--labels", "x,y", "-o", "json")
    )
    assert made["vplm"]["spec"]["head"]["labels"] == ["x", "y"] and made["source"] == "peft"
    told = cli("vplms", "import", "third", out, "--backbone", "toy")
    assert "imported tenants/acme/vplms/third from a peft folder: lora r8" in told.stderr


def test_the_command_line_refuses_in_words(cli: Cli, tmp_path: Path) -> None:
    assert cli("create", "topic", "--backbone", "toy", "--pet", "lora", "--labels", "a,b")
    out = str(tmp_path / "out")
    assert cli("vplms", "export", "topic", out).exit_code == 0
    again = cli("vplms", "export", "topic", out)
    assert again.exit_code == 6 and "nothing is overwritten" in again.stderr
    (tmp_path / "none").mkdir()
    empty = cli("vplms", "import", "new", str(tmp_path / "none"), "--backbone", "toy")
    assert empty.exit_code == 3 and "has neither adapter_config.json" in empty.stderr
    other = cli("vplms", "export", "topic", str(tmp_path / "x"), "--format", "gguf")
    assert other.exit_code == 2 and "gguf" in other.stderr
