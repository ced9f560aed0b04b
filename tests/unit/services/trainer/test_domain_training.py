"""Training on the rows of a domain: those that a processor answers with, and no others."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from services.processor.engine import Engine
from services.processor.options import EngineOptions
from services.trainer.standins import StandIn, StandIns
from services.trainer.training.lowering import late_lowering, lowering
from services.trainer.training.precision import Precision
from services.trainer.worker.provenance import RunSpec
from smile.errors import FailedPrecondition, SmileError, Unavailable
from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.initial import initial_tensors
from smile.model.loaded import LoadedModule
from smile.model.ngram_rows import RowDtype
from smile.model.skip import artifact
from smile.model.skip.policy import MissPolicy
from smile.model.skip.rows import EncoderRows
from smile.model.sources import BackboneSource
from smile.model.specs import ModuleSpec, Task
from smile.model.toy import write_toy_backbone
from smile.representations import domains as opening
from smile.representations.build import Kinds, TableWish, build
from smile.representations.domains import EffectiveRows
from smile.representations.manifest import MANIFEST_FILE
from smile.representations.places import TABLE
from smile.representations.snapshot import Table
from smile.resources import ColumnMapping, HyperParameters, TrainingStates
from smile.standins import StandInPlace
from tests.contract.materialized_world import Encoder, Over
from tests.unit.services.trainer.test_loop import PFEIFFER, QUICK, digest, spec, texts
from tests.unit.services.trainer.test_loop import given as exactly

NEWS = ["the movie was good and the story was sad", "the movie was good", "a slow train"]
SPORT = ["a slow train and a cold river", "a cold river"]
LAW = ["the story was sad and the river was cold", "the story was sad"]
ASKED = [*NEWS, *SPORT, *LAW, "a good train was sad and the movie cold"]
NAMES = ("", "news", "sport", "law")
OTHER = (TrainingStates.MATERIALIZED, TrainingStates.MIXED)


@dataclass(frozen=True)
class World:
    """A local encoder, and a folder of `news`, `sport` under it, and `law`."""

    source: BackboneSource
    general: Encoder
    news: Encoder
    folder: Path
    tables: Mapping[str, Table]

    @property
    def backbone(self) -> Backbone:
        return self.general.backbone

    @property
    def place(self) -> StandInPlace:
        return StandInPlace(self.general.path, None, self.folder)

    def spec(self, domain: str) -> ModuleSpec:
        of = spec(self.backbone, PFEIFFER, Task.SEQUENCE_CLASSIFICATION)
        return replace(of, domain=domain)

    def stand_in(self, domain: str, place: StandInPlace | None = None) -> StandIn:
        return StandIns({"toy": place or self.place}).of(self.spec(domain))

    def remake(self, folder: Path) -> Table:
        """In that folder `news` of other texts."""
        shutil.rmtree(folder / "news")
        over = Over("general", EffectiveRows(self.general.stand_in))
        return self.news.domain(folder, "news", ["a good match"], over, 0.9)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("domains")
    toy = write_toy_backbone(place)
    backbone = Backbone.load(toy, "toy")
    general, news, sport, law = (
        Encoder.make(backbone, place / f"{seed}.safetensors", seed) for seed in range(4)
    )
    folder = place / "all"
    root = Over("general", EffectiveRows(general.stand_in))
    of_news = news.domain(folder, "news", NEWS, root, 0.6)
    under = Over("news", EffectiveRows(general.stand_in, (of_news,)))
    of_sport = sport.domain(folder, "sport", SPORT, under, 0.6)
    of_law = law.domain(folder, "law", LAW, root, 0.6)
    tables = {"news": of_news, "sport": of_sport, "law": of_law}
    return World(BackboneSource.parse(f"toy=dir:{toy}"), general, news, folder, tables)


def trained_on(world: World, domain: str, place: StandInPlace, asked: Sequence[str]) -> Tensor:
    """States at the boundary, as a worker makes them."""
    made = lowering(world.stand_in(domain, place), world.backbone, Precision.FLOAT32)()
    mixed, serving = batch(world, domain, asked), BatchedEngine.of(world.backbone).serving
    return made.states(mixed.different.packed, serving).clone()


def served(world: World, domain: str, place: StandInPlace, asked: Sequence[str]) -> Tensor:
    """The same as a processor does."""
    engine = Engine(EngineOptions((world.source,), threads=1, stand_ins={"toy": place}))
    engine.load()
    mixed, serving = batch(world, domain, asked), BatchedEngine.of(world.backbone).serving
    found = engine._stand_in("toy").look_up(mixed)
    return found.lower.states(mixed.different.packed, serving).clone()


def batch(world: World, domain: str, asked: Sequence[str]) -> MixedBatch:
    of = world.spec(domain)
    tensors = initial_tensors(of, world.backbone.shape, 0)
    module = LoadedModule.load(of, tensors, world.backbone)
    items = [(module, text) for text in world.backbone.tokenizer.encode(asked)]
    return MixedBatch.build(items, marks=(domain,) * len(items))


def test_states_are_those_that_a_processor_answers_with(world: World, tmp_path: Path) -> None:
    """Of every domain, with a table of general rows, of either format, and without."""
    tables = [None, *(world.general.table(tmp_path / one, ASKED[2:5], one) for one in RowDtype)]
    for table in tables:
        place, states = replace(world.place, table=table), []
        for domain in NAMES:
            found = trained_on(world, domain, place, ASKED)
            expected = served(world, domain, place, ASKED)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
            states.append(found)
        for number, one in enumerate(states):
            for other in states[number + 1 :]:
                assert (one - other).abs().max() > 1e-3, "every domain has states of its own"


def test_an_encoder_for_shorter_ngrams_is_used_as_a_processor_does(
    world: World, tmp_path: Path
) -> None:
    """What no table has is computed, whatever the encoder was distilled for."""
    file = artifact.read(world.general.path)
    facts = replace(file.facts, policy=MissPolicy.SHORTER)
    tensors = {name: tensor.astype(np.float32) for name, tensor in file.tensors.items()}
    path = tmp_path / "shorter"
    path.write_bytes(artifact.encode(facts, tensors))
    shorter = replace(world.general, path=path)
    assert artifact.read(path).facts.policy is MissPolicy.SHORTER
    table = tmp_path / "table"
    fallback(shorter, table, ASKED[:3])
    computed = trained_on(world, "", StandInPlace(path), ASKED)
    for place in (StandInPlace(path), StandInPlace(path, table)):
        found = trained_on(world, "", place, ASKED)
        assert torch.equal(found, computed), "no shorter n-gram has served"
        expected = served(world, "", place, ASKED)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_look_at_the_end_of_an_exact_job_sees_the_same_states(
    world: World, tmp_path: Path
) -> None:
    """It computes rows that a table has, and of a domain's reads those asked alone."""
    for dtype, domain in itertools.product(RowDtype, NAMES):
        table = tmp_path / dtype
        if not table.exists():
            world.general.table(table, ASKED[2:5], dtype)
        place, of = replace(world.place, table=table), world.spec(domain)
        found_late = partial(StandIns({"toy": place}).glance, of)
        looked = late_lowering(found_late, world.backbone, Precision.FLOAT32)()
        mixed, serving = batch(world, domain, ASKED), BatchedEngine.of(world.backbone).serving
        found = looked.states(mixed.different.packed, serving).clone()
        assert torch.equal(found, trained_on(world, domain, place, ASKED))


def test_a_look_is_refused_where_a_domain_cannot_be_used(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "domains"
    stand_ins = StandIns({"toy": replace(world.place, domains=folder)})
    with pytest.raises(Unavailable):
        stand_ins.glance(world.spec("law"))
    shutil.copytree(world.folder, folder)
    assert stand_ins.glance(world.spec("law")).domain is not None
    (folder / "law" / TABLE / "keys.bin").write_bytes(b"cut off")
    for domain in ("law", "poetry"):
        with pytest.raises(SmileError):
            stand_ins.glance(world.spec(domain))


def fallback(encoder: Encoder, folder: Path, seen: Sequence[str]) -> None:
    """A table with rows of bigrams and unigrams, too."""
    backbone = encoder.backbone
    rows = EncoderRows.of(artifact.read(encoder.path), backbone)

    def ids(some: Sequence[str]) -> list[list[int]]:
        return [text.ids for text in backbone.tokenizer.encode(some, truncate=True)]

    wish = TableWish(rows.format, 1 << 30, backbone.info.vocab, kinds=Kinds.FALLBACK)
    build(folder, seen, ids, rows, rows.outside, wish)


def run_of(world: World, domain: str, table: Path | None = None) -> str:
    """The digest of the weights that a training on the domain's rows ends with."""
    values = replace(QUICK, states=TrainingStates.MATERIALIZED, epochs=2)
    run = exactly(world.backbone, texts(60), values)
    stand_in = world.stand_in(domain, replace(world.place, table=table))
    made = lowering(stand_in, world.backbone, Precision.FLOAT32)
    return digest(replace(run, lower=made))


def test_a_general_table_changes_no_bit_of_a_domains_training(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "domains"
    shutil.copytree(world.folder, folder)
    seen = [example.text for example in texts(60)]
    over = Over("general", EffectiveRows(world.general.stand_in))
    other = Encoder.make(world.backbone, tmp_path / "other", 9)
    other.domain(folder, "money", seen, over, 0.5)
    here = replace(world, folder=folder)
    table = world.general.table(tmp_path / "table", seen)
    assert run_of(here, "money") == run_of(here, "money", table)
    assert run_of(here, "money") != run_of(here, "")


def refusal(world: World, place: StandInPlace, domain: str = "sport") -> FailedPrecondition:
    """What the service says, and workers, too."""
    for states in OTHER:
        with pytest.raises(FailedPrecondition) as caught:
            StandIns({"toy": place}).check(world.spec(domain), states)
    with pytest.raises(FailedPrecondition) as again:
        world.stand_in(domain, place)
    assert again.value.message == caught.value.message
    assert again.value.reason == caught.value.reason == "DOMAIN_NOT_SERVED"
    assert caught.value.metadata["domain"] == domain
    StandIns({"toy": place}).check(world.spec(domain), TrainingStates.EXACT)
    return caught.value


def test_a_domain_that_is_not_here_is_refused_at_once(world: World, tmp_path: Path) -> None:
    for states in OTHER:
        for domain in ("", "general", "news", "sport"):
            StandIns({"toy": world.place}).check(world.spec(domain), states)
    alone = StandInPlace(world.general.path)
    assert "no domains of its backbone" in refusal(world, alone).message
    told = refusal(world, world.place, "poetry").message
    assert "there are general, law, news, sport" in told and "SMILE_TRAINER_DOMAINS" in told
    folder = tmp_path / "domains"
    shutil.copytree(world.folder, folder)
    here = replace(world.place, domains=folder)
    world.remake(folder)
    assert "create it again" in refusal(world, here).message
    shutil.rmtree(folder / "news")
    assert "the parent of 'sport'" in refusal(world, here).message
    (folder / "law").rename(folder / "sue")
    assert "has domain 'law', not 'sue'" in refusal(world, here, "sue").message
    (folder / "sue" / TABLE / MANIFEST_FILE).write_bytes(b"{}")
    assert "no table's manifest" in refusal(world, here, "sue").message


def test_domains_of_other_rows_are_refused(world: World, tmp_path: Path) -> None:
    other = Encoder.make(world.backbone, tmp_path / "other", 8)
    place = replace(world.place, encoder=other.path)
    assert "local encoder" in refusal(world, place, "law").message


def test_damaged_rows_of_a_domain_are_trained_on_by_nobody(world: World, tmp_path: Path) -> None:
    """The service, which reads manifests alone, does not see it."""
    folder = tmp_path / "domains"
    shutil.copytree(world.folder, folder)
    rows = folder / "news" / TABLE / "rows.bin"
    data = bytearray(rows.read_bytes())
    data[len(data) // 2] ^= 1
    rows.write_bytes(data)
    place = replace(world.place, domains=folder)
    for domain in ("news", "sport"):
        StandIns({"toy": place}).check(world.spec(domain), TrainingStates.MIXED)
        with pytest.raises(FailedPrecondition, match="must have SHA-256") as caught:
            world.stand_in(domain, place)
        assert caught.value.reason == "DOMAIN_NOT_SERVED"
    assert world.stand_in("law", place).domain is not None


def test_domains_that_are_not_there_yet_are_waited_for(world: World, tmp_path: Path) -> None:
    place = replace(world.place, domains=tmp_path / "domains")
    stand_ins = StandIns({"toy": place})
    with pytest.raises(Unavailable, match="are not at") as caught:
        stand_ins.check(world.spec("law"), TrainingStates.MIXED)
    assert caught.value.reason == "DOMAINS_MISSING"
    with pytest.raises(Unavailable):
        stand_ins.of(world.spec("law"))
    shutil.copytree(world.folder, tmp_path / "domains")
    found = stand_ins.of(world.spec("law")).domain
    assert found is not None and found.digest == world.tables["law"].digest


def test_a_domain_replaced_while_it_is_read_is_read_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "domains"
    shutil.copytree(world.folder, folder)
    place = replace(world.place, domains=folder)
    stand_ins, open_domain = StandIns({"toy": place}), opening.open_domain

    def replaced(name: str, at: Path) -> Table:
        monkeypatch.undo()
        if name == "sport":
            table = open_domain(name, at)
        world.remake(folder)
        return table if name == "sport" else open_domain(name, at)

    monkeypatch.setattr(opening, "open_domain", replaced)
    found = stand_ins.of(world.spec("news")).domain
    assert found is not None, "all of it is new"
    assert found.digest == Table.open(folder / "news" / TABLE).digest != world.tables["news"].digest
    shutil.rmtree(folder)
    shutil.copytree(world.folder, folder)
    monkeypatch.setattr(opening, "open_domain", replaced)
    with pytest.raises(FailedPrecondition, match="create it again"):
        stand_ins.of(world.spec("sport"))  # as it lies there now
    shutil.rmtree(folder)
    shutil.copytree(world.folder, folder)

    def gone(name: str, at: Path) -> Table:
        monkeypatch.undo()
        world.remake(folder)
        raise FileNotFoundError(at / "rows.bin")

    monkeypatch.setattr(opening, "open_domain", gone)
    with pytest.raises(Unavailable, match="was replaced while it was read") as caught:
        stand_ins.of(world.spec("news"))
    assert caught.value.reason == "DOMAINS_MISSING"
    assert stand_ins.of(world.spec("news")).domain is not None


def test_the_domains_rows_are_part_of_what_decides_weights(world: World) -> None:
    of = world.spec("sport")

    def told(states: TrainingStates, of: ModuleSpec = of, domain: str = "") -> str:
        values = HyperParameters(states=states)
        return RunSpec(of, ColumnMapping(), values, "d", encoder="e", domain=domain).digest

    digests = {told(states, domain=one) for states in OTHER for one in ("", "a", "b")}
    assert len(digests) == 6
    renamed = replace(of, domain="other")
    assert told(OTHER[0], renamed, "a") == told(OTHER[0], of, "a"), "rows decide, not their name"
    exact = TrainingStates.EXACT
    assert told(exact, of) == told(exact, renamed, "a") == told(exact, replace(of, domain=""))
    plain = asdict(RunSpec(of, ColumnMapping(), HyperParameters(states=OTHER[0]), "d", encoder="e"))
    del plain["domain"], plain["module"]["backbone"], plain["module"]["domain"]
    body = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    before = hashlib.sha256(body.encode()).hexdigest()
    assert told(OTHER[0]) == before, "those without a domain are as before there were any here"
