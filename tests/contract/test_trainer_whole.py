"""Whole models over the wire: trained, stored, exported, and never served."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import smile
from smile.cli.app import build
from smile.errors import FailedPrecondition, InvalidArgument, InvalidSpec, QuotaExceeded
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.full import FullModule
from smile.model.packing import pack
from smile.resources import JobState
from tests.contract.platform_world import platform_world
from tests.contract.test_trainer import QUICK, ready

pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("ignore")]  # of transformers
FULL = {**QUICK, "method": "full", "learning_rate": 1e-3}
TEXT = "the team will win the game"


async def test_it_is_stored_exported_and_not_served(tmp_path: Path) -> None:
    async with ready() as (platform, client):
        before = await client.infer("topics", [TEXT])
        job = await client.wait(await client.train("topics", "news", **FULL), timeout=120)
        assert (job.state, job.method, job.promote_alias) == (
            JobState.SUCCEEDED, smile.Method.FULL, "",
        )  # fmt: skip
        version = await client.version("topics", 2)
        assert version.name == job.version and version.spec.pet.kind is smile.PetKind.FULL
        assert (await client.vplm("topics")).aliases == {"serving": 1}
        for refused in (
            client.set_alias("topics", "serving", 2),
            client.set_alias("topics", "best", 2),
            client.infer("topics", [TEXT], version=2),
        ):
            with pytest.raises(FailedPrecondition, match="is a whole model") as told:
                await refused
            assert told.value.reason == "FULL_MODEL_NOT_SERVED"
            assert "smile vplms export topics" in told.value.message
        after = await client.infer("topics", [TEXT])
        assert after.predictions == before.predictions, "what serves goes on serving"
        folder = tmp_path / "model"
        done = await client.export_vplm("topics", folder, number=2, backbone_path=platform.backbone)
        assert done.format is smile.ExportFormat.HUGGINGFACE
        await client.download_version("topics", tmp_path / "module", number=2)
        data = (tmp_path / "module").read_bytes()
        await asyncio.to_thread(_same_answers, platform.backbone, version, data, folder)
        usage = await client.usage()
        assert usage.vplms[0].size_bytes > version.size_bytes
        diff = await client.diff_versions("topics", 1, 2)
        assert any(change.field == "pet.kind" for change in diff.spec)


def _same_answers(
    backbone_path: Path, version: smile.VplmVersion, data: bytes, folder: Path
) -> None:
    from transformers import AutoModelForTokenClassification

    backbone = Backbone.load(backbone_path, "toy")
    ids = list(backbone.tokenizer.encode([TEXT])[0].ids)
    tensors = weights.decode(data, version.spec, backbone.shape)
    theirs = AutoModelForTokenClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        mine = FullModule(backbone, version.spec, tensors)(pack([ids]))[0]
        found = theirs(input_ids=torch.tensor([ids])).logits[0].mean(0)  # pooled as its card says
    assert torch.allclose(mine, found, atol=1e-5)


async def test_what_may_not_be_asked(tmp_path: Path) -> None:
    async with ready(worker=False) as (_, client):
        with pytest.raises(InvalidArgument, match="promote_alias must be '-', got 'serving'"):
            await client.train("topics", "news", **{**FULL, "promote_alias": "serving"})
        with pytest.raises(InvalidSpec, match="method must be one of pet, full, got 'half'"):
            await client.train("topics", "news", **{**FULL, "method": "half"})
        with pytest.raises(InvalidArgument, match="what a training job of method full makes"):
            await client.create_vplm(
                "whole", backbone="toy", pet=smile.PetSpec(smile.PetKind.FULL), labels=["a", "b"]
            )
        first = await client.train("topics", "news", **FULL)
        with pytest.raises(QuotaExceeded) as told:
            await client.train("topics", "news", **FULL)
        assert told.value.reason == "FULL_JOBS_MAX"
        await client.cancel(first)
        await client.train("topics", "news", **FULL)


async def test_a_tenant_without_room_is_told_before_it_trains() -> None:
    async with platform_world() as platform:
        await platform.add_tenant("small", quota_bytes=300_000)
        async with platform.client("small") as client:
            await client.create_vplm(
                "topics", backbone="toy", pet=smile.Pfeiffer(rank=4), labels=["sport", "money"]
            )
            await client.upload_dataset("news", [{"text": "a goal", "label": "sport"}] * 8)
            with pytest.raises(QuotaExceeded, match="may store 300000 bytes") as told:
                await client.train("topics", "news", **FULL)
            assert told.value.metadata["limit"] == "300000"
            assert [job async for job in client.jobs()] == []


async def test_the_command_line_trains_one() -> None:
    async with ready(worker=False) as (platform, client):
        environment = {
            "SMILE_API_KEY": platform.keys["acme"],
            "SMILE_ENDPOINTS": platform.endpoints,
        }
        command = ["train", "topics", "--dataset", "news", "--method", "full", "--detach"]
        command += ["--output", "json"]
        result = await asyncio.to_thread(CliRunner().invoke, build(), command, env=environment)
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert (told["method"], told["promote_alias"]) == ("full", "")
        assert told["hyper_parameters"]["learning_rate"] == 5e-5
        async with platform.worker():
            job = await client.wait(told["name"].split("/")[-1], timeout=120)
        assert job.version.endswith("/versions/2")
        command = ["watch", job.name]
        shown = await asyncio.to_thread(CliRunner().invoke, build(), command, env=environment)
        assert shown.exit_code == 0, shown.output
        assert "the whole model" in shown.output
        assert "smile vplms export topics FOLDER --version 2" in shown.output
