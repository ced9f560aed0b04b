"""The engine, measured: every kind it can, and what was measured is read at the next start."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from services.processor.engine import Engine, Prepared
from services.processor.materialize.options import StandInPlace
from services.processor.options import EngineOptions
from services.processor.requests import Track
from services.processor.scheduling.latency import Latencies
from services.processor.scheduling.probe import Probe, learn, subject_of, tables
from smile.model.backbone import Backbone
from smile.model.sources import BackboneSource, SourceKind
from smile.model.specs import PetKind
from smile.model.toy import write_toy_backbone
from tests.contract.materialized_world import Encoder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_toy_backbone(tmp_path_factory.mktemp("toy"))
    engine = Engine(EngineOptions((BackboneSource("toy", SourceKind.DIR, str(folder)),), threads=1))
    engine.load()
    return engine


def test_every_kind_is_measured(engine: Engine) -> None:
    probe = Probe(engine, Track("toy"))
    assert all(probe(40, 3, kind) > 0 for kind in probe.kinds)
    assert probe(2_048, 1, probe.kinds[0]) > 0  # in as many texts as the backbone needs


@pytest.mark.parametrize(("tokens", "texts"), [(256, 64), (2_048, 128), (40, 1)])
def test_no_text_is_computed_for_two(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tokens: int, texts: int
) -> None:
    """Equal texts would share all layers below their PET modules, and look cheap."""
    computed: list[Prepared] = []

    def seconds(_: Probe, prepared: Prepared) -> float:
        computed.append(prepared)
        return 0.1

    monkeypatch.setattr(Probe, "_seconds", seconds)
    Probe(engine, Track("toy"))(tokens, texts, PetKind.NONE)
    (prepared,) = computed
    assert prepared.mixed.different.tokens is None, "all are different"
    assert prepared.mixed.packed.tokens == pytest.approx(tokens, abs=texts)


def test_tables_are_measured_once(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "_seconds", lambda *_: 0.001)  # a calm machine
    first = tables(engine, Track("toy"), tmp_path, budget_s=1.0)
    assert first.alpha.tokens[0] == 16
    (file,) = tmp_path.iterdir()
    assert file.name == subject_of(engine, Track("toy")).file_name
    monkeypatch.setattr(Probe, "_seconds", lambda *_: 0.002)
    assert tables(engine, Track("toy"), tmp_path, budget_s=1.0) == first


def test_a_busy_machine_is_measured_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = itertools.cycle([0.001, 0.002, 0.003, 0.002])
    monkeypatch.setattr(Probe, "_seconds", lambda *_: next(runs))
    tables(engine, Track("toy"), tmp_path, budget_s=1.0)
    assert not list(tmp_path.iterdir())


def test_materialised_batches_are_measured_apart(tmp_path: Path) -> None:
    folder = write_toy_backbone(tmp_path / "toy")
    encoder = Encoder.make(Backbone.load(folder, "toy"), tmp_path / "encoder.safetensors")
    source = BackboneSource("toy", SourceKind.DIR, str(folder))
    stand_ins = {"toy": StandInPlace(encoder.path)}
    engine = Engine(EngineOptions((source,), threads=1, stand_ins=stand_ins))
    engine.load()
    exact, materialised = engine.tracks
    assert subject_of(engine, exact) != subject_of(engine, materialised)
    probe = Probe(engine, materialised)
    assert all(probe(40, 3, kind) > 0 for kind in probe.kinds), "modules begin at the boundary"
    latencies = Latencies()
    learn(engine, latencies, tmp_path / "kept", 0.2)
    assert latencies.of(exact) is not None and latencies.of(materialised) is not None
    assert engine.level().ngrams == 0, "what was measured was not asked for"
