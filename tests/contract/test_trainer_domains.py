"""A vPLM of a domain, trained on the domain's rows and answered on them: through the SDK, by a real
trainer and worker, everything from storage's catalogue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2
from torch import Tensor

import smile
from services.processor.engine import Engine
from services.processor.serving import Processor
from services.trainer.standins import StandIns
from services.trainer.storage_client import StorageClient
from services.trainer.training.lowering import lowering
from services.trainer.training.precision import Precision
from services.trainer.training.states import EntryStates, StatesRoom
from smile.client.client import AsyncClient
from smile.errors import FailedPrecondition
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine, Lower
from smile.model.reference import VplmModule
from smile.model.specs import ModuleSpec
from smile.names import VersionName
from smile.representations.domains import EffectiveRows
from smile.representations.manifest import GENERAL
from smile.representations.snapshot import Table
from smile.resources import Classification, Exactness, JobState, TrainingStates, VplmVersion
from smile.standins import parse_stand_ins
from tests.contract.materialized_world import Encoder, Over
from tests.contract.platform_world import Platform, platform_world
from tests.contract.test_artifacts_served import DOMAINS, SKIP, processor, to_storage, until
from tests.contract.test_trainer_process import (
    LABELS,
    ROWS,
    free_port,
    health,
    running,
    worker,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]
TEXTS = ["a goal and a cold river", "the bank was sad", "a goal", "the movie was good"]


@dataclass(frozen=True)
class Scene:
    """A trainer, its worker and a processor with the domains `news` and, under it, `sport`.

    Attributes:
        cache: Where trainer and worker keep what they fetched.
    """

    platform: Platform
    client: AsyncClient
    processor: Processor
    encoder: Encoder
    sport: Table
    cache: Path


@asynccontextmanager
async def scene(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    cache, skip, port = folder / "cache", f"toy={SKIP}", free_port()
    monkeypatch.setenv("SMILE_ARTIFACTS_FOLDER", str(cache))
    monkeypatch.setenv("SMILE_TRAINER_DOMAINS", f"toy={DOMAINS}")
    async with platform_world("acme") as platform:
        encoder = Encoder.make(Backbone.load(platform.backbone, "toy"), folder / "encoder")
        sport = made_domains(encoder, folder)
        async with platform.operator() as operator:
            await operator.push_artifact("skip", encoder.path)
            await operator.push_artifact("domains", folder / "domains")
        async with (
            running(platform, "-m", "services.trainer", port=port, skip=skip),
            worker(platform, skip),
            processor(platform, folder / "processor", f"domains=toy={DOMAINS}") as (made, _, at),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            AsyncClient(
                platform.keys["acme"],
                endpoints=f"creator={platform.addresses['creator']},"
                f"storage={platform.addresses['storage']},trainer=127.0.0.1:{port},processor={at}",
            ) as client,
        ):
            async with asyncio.timeout(60):
                while await health(channel, "") != health_pb2.HealthCheckResponse.SERVING:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            await until(lambda: (cache / "skip").exists() and (cache / "domains").exists())
            await until(lambda: bool(made.engine.live_rows()))
            await until(lambda: "sport" in made.engine.live_rows()["toy"].domains.tree)
            yield Scene(platform, client, made, encoder, sport, cache)


def made_domains(general: Encoder, folder: Path) -> Table:
    """In `domains`: that of sport."""
    news, sport = (
        Encoder.make(general.backbone, folder / f"encoder-{seed}", seed) for seed in (6, 7)
    )
    over = Over(GENERAL, EffectiveRows(general.stand_in))
    parent = news.domain(folder / "domains", "news", ["the bank was sad"], over, 0.9)
    over = Over("news", EffectiveRows(general.stand_in, (parent,)))
    return sport.domain(folder / "domains", "sport", ["a goal", "a bank"], over, 0.9)


async def trained(client: AsyncClient, vplm: str, states: str) -> VplmVersion:
    job = await client.train(vplm, "news", states=states, epochs=4, learning_rate=0.01)
    ended = await client.wait(job, timeout=180)
    assert ended.state is JobState.SUCCEEDED, ended.error
    return await client.version(vplm)


def mixed_of(engine: Engine, spec: ModuleSpec, data: bytes, backbone: Backbone) -> MixedBatch:
    """All texts, asked of one module."""
    module = engine.load_module(spec, data)
    texts = backbone.tokenizer.encode(TEXTS)
    return MixedBatch.build([(module, text) for text in texts], marks=(spec.domain,) * len(texts))


def at_boundary(lower: Lower, mixed: MixedBatch, backbone: Backbone) -> Tensor:
    """States of a batch's different texts."""
    return lower.states(mixed.different.packed, BatchedEngine.of(backbone).serving).clone()


async def test_what_is_trained_on_is_what_is_answered_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        client, pet = here.client, smile.Pfeiffer(rank=4, first_layer=2)
        vplm = await client.create_vplm(
            "scores", backbone="toy", pet=pet, labels=LABELS, domain="sport"
        )
        await client.upload_dataset("news", ROWS)
        version = await trained(client, "scores", "materialized")
        told = version.training
        assert told is not None and told.states is TrainingStates.MATERIALIZED
        assert told.encoder_digest == here.encoder.stand_in.digest
        assert (told.domain, told.domain_digest) == ("sport", here.sport.digest)

        await client.rent("scores", exactness="materialized")
        result = await client.infer("scores", TEXTS)
        assert result.exactness is Exactness.MATERIALIZED and result.version == version.name
        rows = result.materialization
        assert rows is not None
        assert (rows.domain, rows.domain_digest) == (told.domain, told.domain_digest)
        assert rows.encoder_digest == told.encoder_digest

        async with to_storage(here.platform) as channel:
            name = VersionName.parse(version.name)
            _, data = await StorageClient(channel).download_version(name)
        backbone, engine = here.encoder.backbone, here.processor.engine
        places = parse_stand_ins(f"toy={SKIP}", "", here.cache, f"toy={DOMAINS}")
        stand_ins = StandIns(places)
        make, general = (
            lowering(stand_ins.of(replace(vplm.spec, domain=one)), backbone, Precision.FLOAT32)
            for one in ("sport", "")
        )
        mixed = mixed_of(engine, vplm.spec, data, backbone)
        found = at_boundary(make(), mixed, backbone)
        served = at_boundary(engine._stand_in("toy").look_up(mixed).lower, mixed, backbone)
        torch.testing.assert_close(found, served, rtol=0, atol=1e-6)
        assert (found - at_boundary(general(), mixed, backbone)).abs().max() > 1e-3

        module = VplmModule(backbone, vplm.spec, weights.decode(data, vplm.spec, backbone.shape))
        ids = [tuple(text.ids) for text in backbone.tokenizer.encode(TEXTS)]
        states = EntryStates(module, ids, StatesRoom(), lower=make)
        for number, prediction in enumerate(result.predictions):
            assert isinstance(prediction.result, Classification)
            score_of = {row.label: row.score for row in prediction.result.scores}
            with torch.no_grad():
                output = module.forward_entered(*states.of([number])).softmax(dim=-1)
            answered = [score_of[label] for label in LABELS]
            np.testing.assert_allclose(answered, output.numpy().reshape(-1), rtol=0, atol=1e-5)


async def test_a_domain_that_the_trainer_lacks_is_refused_and_exact_states_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as here:
        client, pet = here.client, smile.Pfeiffer(rank=4, first_layer=2)
        await client.upload_dataset("news", ROWS)
        for name, domain in (("verses", "poetry"), ("plain", "")):
            await client.create_vplm(name, backbone="toy", pet=pet, labels=LABELS, domain=domain)
        for states in ("materialized", "mixed"):
            with pytest.raises(FailedPrecondition, match="no domain 'poetry'") as caught:
                await client.train("verses", "news", states=states)
            assert caught.value.reason == "DOMAIN_NOT_SERVED"
            assert caught.value.metadata["domain"] == "poetry"
        with pytest.raises(FailedPrecondition) as caught:
            await client.infer("verses", TEXTS[0], exactness="materialized")
        assert caught.value.reason == "DOMAIN_NOT_SERVED", "the processor says the same"
        for name, states in (("verses", "exact"), ("plain", "mixed")):
            told = (await trained(client, name, states)).training
            assert told is not None and told.states is TrainingStates(states)
            assert (told.domain, told.domain_digest) == ("", "")
            assert bool(told.encoder_digest) is (states != "exact")
