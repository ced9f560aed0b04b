"""Domains over an encoder that knows nothing of them: who learned from what, what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import domains, plots
from benchmarks.details import details
from benchmarks.harness import domain, left_out
from benchmarks.harness.command import Run
from benchmarks.harness.encoders import FOLDER_VARIABLE
from benchmarks.harness.json_types import Json
from demo.news import Document, News
from smile.errors import FailedPrecondition
from smile.model.backbone import Backbone
from smile.model.packing import pack
from smile.model.skip import artifact
from smile.model.skip.rows import EncoderRows
from smile.model.toy import WORDS, write_toy_backbone
from smile.representations.domains import EffectiveRows
from tests.contract.materialized_world import BOUNDARY, Encoder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(write_toy_backbone(tmp_path_factory.mktemp("toy")), "toy")


@pytest.fixture
def toy(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    for module in (domain, left_out):
        monkeypatch.setattr(module, "backbone", lambda: backbone)
    monkeypatch.setattr(left_out, "BOUNDARY", BOUNDARY)
    monkeypatch.setattr(left_out, "body_of", lambda document: document.text)
    return backbone


def _news() -> News:
    words = [word for word in WORDS if not word.startswith("#")]
    texts = [" ".join(words[at : at + 9]).capitalize() + "." for at in range(12)]
    documents = [
        Document(f"{at}", "sport" if at % 3 == 0 else "tech" if at % 3 == 1 else "politics", text)
        for at, text in enumerate(texts)
    ]
    return News(tuple(documents[:9]), tuple(documents[9:]), 12, 0)


@pytest.mark.usefixtures("toy")
def test_an_encoder_is_made_once_and_only_of_the_other_topics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    run = Run()
    made = left_out.without(run, _news(), "sport", tmp_path)
    assert made == tmp_path / "without-sport.safetensors"
    assert artifact.read(made).facts.texts == 6
    before = made.read_bytes()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    assert left_out.without(run, _news(), "sport", elsewhere) == made
    assert made.read_bytes() == before and not elsewhere.exists()
    made.rename(tmp_path / "without-tech.safetensors")
    with pytest.raises(FailedPrecondition, match="the 6 training documents of the other topics"):
        left_out.without(run, _news(), "tech", tmp_path)


@torch.no_grad()
def test_states_are_those_of_the_rows_that_are_served(toy: Backbone, tmp_path: Path) -> None:
    made = Encoder.make(toy, tmp_path / "general.safetensors")
    rows = EffectiveRows(EncoderRows.of(artifact.read(made.path), toy))
    texts = [one.text for one in _news().train]
    packed = pack([text.ids for text in toy.tokenizer.encode(texts, truncate=True)])
    found = domain.Served(made.local, rows)(packed)
    torch.testing.assert_close(found, made.local(packed), rtol=0, atol=2e-3)


def _measured(general: float, own: float) -> domains.Measured:
    kinds = ("general", "delta_30", "delta_50", "full")
    return domains.Measured(
        {
            f"{what}_{kind}": general if kind == "general" else own
            for what in ("accuracy", "error")
            for kind in kinds
        },
        {"0.3": {"rows": 10, "error": own, "agreement": 0.9, "accuracy": own}},
        {"q50": 0.3},
    )


def test_figures_are_means_over_domains_and_those_of_each() -> None:
    found = domains.figures({"sport": _measured(0.5, 0.6), "tech": _measured(0.7, 0.6)})
    assert found["accuracy_general"] == pytest.approx(0.6)
    assert found["gain_points_full"] == pytest.approx(0.0)
    assert domains.figures({"sport": _measured(0.5, 0.6)})["gain_points_full"] == pytest.approx(10)
    assert domains.figures({"sport": _measured(0.5, 0.4)})["error_less_full"] == pytest.approx(0.1)
    assert found["error_by_difference_min"] == {"sport": {"0.3": 0.6}, "tech": {"0.3": 0.6}}
    assert "| `domains` | sport | tech |" in details(found)
    assert "| `differences` | q50 |" in details(found)


def test_figures_are_drawn(tmp_path: Path) -> None:
    kinds = ("included", "general", "delta_30", "delta_50", "full")
    figures: dict[str, Json] = {
        f"{what}_{kind}": 0.1 * (1 + place)
        for what in ("agreement", "error", "bytes")
        for place, kind in enumerate(kinds)
    }
    swept: dict[str, Json] = {
        least: {"rows": rows, "bytes": 2_000.0 * rows, "error": 0.2, "agreement": 0.9}
        for least, rows in (("0", 20), ("0.3", 10), ("0.5", 0))
    }
    plots.domains(figures, tmp_path / "without.svg")
    plots.domains({**figures, "by_difference_min": swept}, tmp_path / "with.svg")
    sizes = [(tmp_path / f"{name}.svg").stat().st_size for name in ("without", "with")]
    assert 1_000 < sizes[0] < sizes[1]
