"""Jobs on materialised states, by real processes: refused, done, killed, recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

import smile
from smile.client.client import AsyncClient
from smile.errors import FailedPrecondition
from smile.model.backbone import Backbone
from smile.resources import JobState, TrainingStates
from tests.contract.materialized_world import Encoder
from tests.contract.platform_world import Platform, platform_world
from tests.contract.test_trainer_process import (
    LABELS,
    ROWS,
    checkpoints,
    free_port,
    health,
    running,
    worker,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]


@dataclass(frozen=True)
class Scene:
    """A trainer that has a local encoder, and a client who has a vPLM above its boundary."""

    platform: Platform
    client: AsyncClient
    encoder: Encoder
    skip: str


@asynccontextmanager
async def scene(folder: Path, *, stored: bool = False) -> AsyncIterator[Scene]:
    """With `stored`, the encoder is in storage's catalogue."""
    async with platform_world("acme") as platform:
        backbone = Backbone.load(platform.backbone, "toy")
        encoder = Encoder.make(backbone, folder / "encoder")
        skip, port = f"toy={encoder.path}", free_port()
        if stored:
            skip = "toy=artifacts/skip"
            async with platform.operator() as operator:
                await operator.push_artifact("skip", encoder.path)
        endpoints = ",".join(
            [*(p for p in platform.endpoints.split(",") if not p.startswith("trainer=")),
             f"trainer=127.0.0.1:{port}"]
        )  # fmt: skip
        async with (
            running(platform, "-m", "services.trainer", port=port, skip=skip),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            AsyncClient(platform.keys["acme"], endpoints=endpoints) as client,
        ):
            async with asyncio.timeout(60):
                while await health(channel, "") != health_pb2.HealthCheckResponse.SERVING:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            pet = smile.Pfeiffer(rank=4, first_layer=2)
            await client.create_vplm("topics", backbone="toy", pet=pet, labels=LABELS)
            await client.upload_dataset("news", ROWS)
            yield Scene(platform, client, encoder, skip)


async def test_states_are_recorded_and_what_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        client = here.client
        low = smile.Pfeiffer(rank=4, first_layer=0)
        await client.create_vplm("low", backbone="toy", pet=low, labels=LABELS)
        with pytest.raises(FailedPrecondition) as caught:
            await client.train("low", "news", states="mixed", validate_only=True)
        assert caught.value.reason == "MODULE_BELOW_BOUNDARY"
        async with here.platform.client("acme") as elsewhere:  # a trainer without an encoder
            with pytest.raises(FailedPrecondition) as caught:
                await elsewhere.train("topics", "news", states="materialized")
            assert caught.value.reason == "NOT_MATERIALIZED"
            trials = [{"states": "exact"}, {"states": "mixed"}]
            with pytest.raises(FailedPrecondition):
                await elsewhere.sweep("topics", "news", trials)
        async with worker(here.platform, here.skip):
            for states in TrainingStates:
                job = await client.train("topics", "news", states=states, epochs=2)
                ended = await client.wait(job, timeout=120)
                assert ended.state is JobState.SUCCEEDED, ended.error
                version = await client.version("topics")
                assert version.training is not None
                assert version.training.states is states
                exact = states is TrainingStates.EXACT
                digest = "" if exact else here.encoder.stand_in.digest
                assert version.training.encoder_digest == digest
                told = {n for n in version.metrics if n.startswith("validation_accuracy_")}
                other = states is not TrainingStates.MATERIALIZED
                kinds = {"exact": not exact, "materialized": other}
                assert told == {f"validation_accuracy_{kind}" for kind in kinds if kinds[kind]}


async def test_a_mixed_job_killed_mid_epoch_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as here:
        client, wanted = here.client, {"states": "mixed", "epochs": 120, "batch_size": 16}
        async with worker(here.platform, here.skip) as process:
            job = await client.train("topics", "news", **wanted)  # type: ignore[arg-type]
            async with asyncio.timeout(120):
                while not await checkpoints(here.platform):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            process.kill()
        async with worker(here.platform, here.skip):
            ended = await client.wait(job, timeout=120)
            assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
            whole = await client.train("topics", "news", **wanted)  # type: ignore[arg-type]
            await client.wait(whole, timeout=120)
        digests = [(await client.version("topics", number)).digest for number in (2, 3)]
        assert digests[0] == digests[1]


async def test_an_encoder_may_be_a_name_in_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMILE_ARTIFACTS_FOLDER", str(tmp_path / "cache"))
    async with scene(tmp_path, stored=True) as here, worker(here.platform, here.skip):
        async with asyncio.timeout(60):
            while not (tmp_path / "cache" / "skip").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        job = await here.client.train("topics", "news", states="materialized", epochs=1)
        ended = await here.client.wait(job, timeout=120)
        assert ended.state is JobState.SUCCEEDED, ended.error
        assert ended.summary is not None
        assert ended.summary.encoder_digest == here.encoder.stand_in.digest
