"""Whole jobs of a worker that has a local encoder and domains: what they read, and record."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from services.trainer.standins import StandIns
from services.trainer.training.loop_events import LoopEvent, Planned, StepDone
from services.trainer.worker import attempt
from services.trainer.worker.report import Report
from smile.model.backbone import Backbone
from smile.names import JobName
from smile.representations.domains import EffectiveRows
from smile.resources import HyperParameters, JobState, TrainingJob, TrainingStates, TrainingSummary
from smile.standins import StandInPlace
from smile.store.redis import Redis
from tests.contract.materialized_world import Encoder, Over
from tests.unit.services.trainer.fakes import Crash, FakeStorage
from tests.unit.services.trainer.test_runner import LEASE_S, QUICK, VPLM, Stage, storage, toy, until

__all__ = ["storage", "toy"]  # fixtures

pytestmark = pytest.mark.asyncio
MATERIALIZED = replace(QUICK, states=TrainingStates.MATERIALIZED)


@pytest.fixture(scope="module")
def encoder(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    place = tmp_path_factory.mktemp("skip") / "encoder"
    return Encoder.make(Backbone.load(toy, "toy"), place)


def domain(encoder: Encoder, folder: Path, texts: list[str]) -> str:
    """`sport` in a folder, made anew; its digest."""
    shutil.rmtree(folder / "sport", ignore_errors=True)
    over = Over("general", EffectiveRows(encoder.stand_in))
    other = Encoder.make(encoder.backbone, folder.parent / "sport-encoder", 7)
    return other.domain(folder, "sport", texts, over, 0.9).digest


@pytest.fixture
def stage(
    storage: FakeStorage,
    redis: Redis,
    toy: Path,
    encoder: Encoder,
    tmp_path: Path,
) -> Stage:
    """Its vPLM is of the domain `sport`, whose folder is still to come."""
    vplm = storage.vplms[VPLM]
    storage.vplms[VPLM] = replace(vplm, spec=replace(vplm.spec, domain="sport"))
    made = Stage(storage, redis, toy)
    place = StandInPlace(encoder.path, None, tmp_path / "domains")
    made.shop = replace(made.shop, stand_ins=StandIns({"toy": place}))
    made.runner = made.runner_of(made.shop)
    return made


def told(job: TrainingJob) -> TrainingSummary:
    assert job.state is JobState.SUCCEEDED, job.error
    assert job.summary is not None
    return job.summary


async def test_a_version_says_which_domain_and_which_rows(
    stage: Stage, encoder: Encoder, tmp_path: Path
) -> None:
    digests = [domain(encoder, tmp_path / "domains", ["game play win"])]
    first = told(await stage.run(hyper_parameters=MATERIALIZED))
    digests.append(domain(encoder, tmp_path / "domains", ["market price bank"]))
    second = told(await stage.run(job="j2", hyper_parameters=MATERIALIZED))
    assert digests == [first.domain_digest, second.domain_digest]
    assert len(set(digests)) == 2 and first.spec_digest != second.spec_digest
    for summary in (first, second):
        assert summary.domain == "sport"
        assert summary.encoder_digest == encoder.stand_in.digest
    kept = [version for version, _, _ in stage.storage.stored[VPLM]]
    assert [version.training for version in kept] == [first, second]
    assert kept[0].digest != kept[1].digest


async def test_exact_states_need_nothing_of_what_stands_in(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("an exact job asks for a stand-in")

    monkeypatch.setattr(StandIns, "of", read)
    monkeypatch.setattr(attempt, "lowering", read)
    job = await stage.run()
    summary = told(job)
    assert summary.states is TrainingStates.EXACT
    assert (summary.encoder_digest, summary.domain, summary.domain_digest) == ("", "", "")
    assert "validation_accuracy" in job.metrics
    assert not any(name.endswith("_materialized") for name in job.metrics)


async def test_a_worker_waits_for_domains_and_not_for_one_that_they_lack(
    stage: Stage, encoder: Encoder, tmp_path: Path
) -> None:
    name = await stage.submit(hyper_parameters=MATERIALIZED)
    working = asyncio.create_task(stage.runner.work(await stage.claim()))
    await until(lambda: "vplm" in stage.storage.calls)
    domain(encoder, tmp_path / "domains", ["game play win"])
    async with asyncio.timeout(60):
        await working
    assert told(stage.storage.kept[str(name)].job).domain == "sport"
    (tmp_path / "domains" / "sport").rename(tmp_path / "domains" / "tennis")
    values: HyperParameters = replace(MATERIALIZED, states=TrainingStates.MIXED)
    job = await stage.run(job="j2", hyper_parameters=values)
    assert job.state is JobState.FAILED and job.error is not None
    assert job.error.reason == "DOMAIN_NOT_SERVED"
    assert "there is no domain 'sport'" in job.error.message


async def test_a_job_goes_on_over_the_same_rows_and_begins_again_over_others(
    stage: Stage, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = replace(MATERIALIZED, epochs=12)
    stage.shop = replace(stage.shop, checkpoint_s=0.0)
    stage.runner = stage.runner_of(stage.shop)
    hear = Report.hear

    async def broken_off(job: str) -> JobName:
        name = await stage.submit(job, hyper_parameters=values)

        def dies(report: Report, event: LoopEvent) -> None:
            hear(report, event)
            if isinstance(event, StepDone) and event.step >= 7:
                time.sleep(0.05)  # the loop may store what was taken
                if str(name) in stage.storage.checkpoints:
                    raise Crash("amid an epoch")

        monkeypatch.setattr(Report, "hear", dies)
        with pytest.raises(Crash):
            await stage.runner.work(await stage.claim())
        monkeypatch.setattr(Report, "hear", hear)
        await asyncio.sleep(LEASE_S * 1.2)
        return name

    def digest(job: TrainingJob) -> str:
        kept = [version for version, _, _ in stage.storage.stored[VPLM]]
        return next(version.digest for version in kept if version.name == job.version)

    folder, found = tmp_path / "domains", list[str]()
    domain(encoder, folder, ["game play win"])
    for texts in (["game play win"], ["market price bank"]):
        name = await broken_off(f"broken{len(found)}")
        rows = domain(encoder, folder, texts)
        began: list[int] = []

        def notes(report: Report, event: LoopEvent, began: list[int] = began) -> None:
            began += [event.step] if isinstance(event, Planned) else []
            hear(report, event)

        monkeypatch.setattr(Report, "hear", notes)
        job = await stage.repaired(name)
        monkeypatch.setattr(Report, "hear", hear)
        assert told(job).domain_digest == rows
        assert (began[0] > 0) is (not found), "only the first has rows that it began on"
        whole = await stage.run(job=f"whole{len(found)}", hyper_parameters=values)
        assert digest(job) == digest(whole)
        found.append(digest(job))
    assert found[0] != found[1]
