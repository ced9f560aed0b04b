"""Whole jobs of a worker that has a local encoder and domains: what they read, and record."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.trainer.standins import StandIn, StandIns
from services.trainer.training.loop_events import EpochDone, LoopEvent, Planned
from services.trainer.worker.report import Report
from smile.model.backbone import Backbone
from smile.model.specs import ModuleSpec
from smile.names import JobName
from smile.representations.domains import EffectiveRows
from smile.resources import (
    HyperParameters,
    JobState,
    Method,
    TrainingJob,
    TrainingStates,
    TrainingSummary,
)
from smile.standins import StandInPlace
from smile.store.redis import Redis
from tests.contract.materialized_world import Encoder, Over
from tests.unit.services.trainer.fakes import FakeStorage
from tests.unit.services.trainer.test_runner import QUICK, VPLM, Stage, storage, toy, until

__all__ = ["storage", "toy"]  # fixtures

pytestmark = pytest.mark.asyncio
MATERIALIZED = replace(QUICK, states=TrainingStates.MATERIALIZED)
FEW = replace(QUICK, validation_ratio=0.1)
LEFT_OUT = "metrics on the other kind of states are left out"


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


def materialized(job: TrainingJob) -> set[str]:
    """The metrics that an exact job has of what it was not trained on."""
    summary = told(job)
    assert summary.states is TrainingStates.EXACT
    assert (summary.encoder_digest, summary.domain, summary.domain_digest) == ("", "", "")
    assert "validation_accuracy" in job.metrics
    return {name for name in job.metrics if name.endswith("_materialized")}


async def test_exact_jobs_look_at_what_stands_in_once_they_are_trained(
    stage: Stage, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    hear, glance = Report.hear, StandIns.glance

    def heard(report: Report, event: LoopEvent) -> None:
        order.append("epoch" if isinstance(event, EpochDone) else "")
        hear(report, event)

    def glanced(stand_ins: StandIns, spec: ModuleSpec) -> StandIn:
        order.append(spec.domain)
        return glance(stand_ins, spec)

    monkeypatch.setattr(StandIns, "of", None)
    monkeypatch.setattr(Report, "hear", heard)
    monkeypatch.setattr(StandIns, "glance", glanced)
    domain(encoder, tmp_path / "domains", ["game play win goal", "market price bank sell"])
    with capture_logs() as logs:
        of_sport = await stage.run(hyper_parameters=FEW)
    found = materialized(of_sport)
    own = {name for name in of_sport.metrics if name.startswith("validation_")} - found
    assert found == {f"{name}_materialized" for name in own - {"validation_rows"}}
    assert [step for step in order if step] == ["epoch"] * FEW.epochs + ["sport"]
    assert not [line for line in logs if line["event"] == LEFT_OUT]
    vplm = stage.storage.vplms[VPLM]
    stage.storage.vplms[VPLM] = replace(vplm, spec=replace(vplm.spec, domain=""))
    general = await stage.run(job="j2", hyper_parameters=FEW)
    assert general.metrics["validation_loss"] == of_sport.metrics["validation_loss"]
    name = "validation_loss_materialized"
    assert general.metrics[name] != of_sport.metrics[name], "rows are the domain's"


async def test_exact_jobs_do_without_what_cannot_stand_in(
    stage: Stage, encoder: Encoder, tmp_path: Path
) -> None:
    """No folder of domains, no such domain, a module below the boundary, no encoder for the
    backbone, a damaged encoder, none at its place."""
    vplm = stage.storage.vplms[VPLM]
    low = replace(vplm.spec, domain="", pet=replace(vplm.spec.pet, first_layer=0))
    general, folder = replace(vplm.spec, domain=""), tmp_path / "domains"
    broken, gone = tmp_path / "broken", tmp_path / "gone"
    broken.write_bytes(encoder.path.read_bytes()[:-1])
    here = StandInPlace(encoder.path, None, folder)
    cases = [
        (vplm.spec, {"toy": here}, "warning", "are not at"),
        (vplm.spec, {"toy": here}, "info", "no domain 'sport'"),
        (low, {"toy": here}, "info", "first layer"),
        (general, {"other": here}, "", ""),
        (general, {"toy": StandInPlace(broken)}, "warning", "cannot be read"),
        (general, {"toy": StandInPlace(gone)}, "warning", "is not at"),
    ]
    for number, (spec, places, level, why) in enumerate(cases):
        stage.storage.vplms[VPLM] = replace(stage.storage.vplms[VPLM], spec=spec)
        stage.runner = stage.runner_of(replace(stage.shop, stand_ins=StandIns(places)))
        with capture_logs() as logs:
            job = await stage.run(job=f"j{number}", hyper_parameters=FEW)
        assert materialized(job) == set()
        said = [line for line in logs if line["event"] == LEFT_OUT]
        assert len(said) == bool(level), said
        for line in said:
            assert (line["log_level"], line["job"]) == (level, job.name) and why in line["why"]
        folder.mkdir(exist_ok=True)


async def test_whole_models_are_not_looked_at(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIns, "glance", None)
    job = await stage.run(method=Method.FULL, hyper_parameters=replace(FEW, epochs=1))
    assert materialized(job) == set()


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
        await stage.crash_past(name, 7)
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
