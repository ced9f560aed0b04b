from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import all as every
from benchmarks import cliff, plots, report
from benchmarks.harness.json_types import Figures
from benchmarks.harness.latency import Latencies
from benchmarks.harness.machine import Machine
from benchmarks.harness.result import Result, read_result
from benchmarks.harness.targets import TARGETS
from benchmarks.peers import __main__ as peers

PEERS = {
    "hf_one_model": [100.0, 120.0, 110.0],
    "hf_sorted": [150.0, 150.0, 150.0],
    "peft_mixed": [90.0, 90.0, 90.0],
    "polylora": [130.0, 130.0, 130.0],
    "smile_float32": [300.0, 300.0, 330.0],
    "products_float32": [400.0, 400.0, 400.0],
    "smile_float32_one_vplm": [310.0, 310.0, 310.0],
}


def _recorded(folder: Path, name: str, figures: Figures) -> None:
    made = Result.of(name, figures, Machine.describe(), quick=True)
    made.record(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "story").mkdir()
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "STORY", tmp_path / "story")
    monkeypatch.setattr(report, "REPORT", tmp_path / "REPORT.md")
    monkeypatch.setattr(report, "read_result", lambda name: read_result(name, tmp_path))
    return tmp_path


def test_every_benchmark_has_a_chapter_and_every_target_a_benchmark() -> None:
    names = {entry.name for entry in every.ENTRIES}
    assert names == set(report.CHAPTERS) == set(TARGETS)
    assert set(plots.PLOTS) <= names


def test_the_report_tells_targets_story_and_what_was_missed(folder: Path) -> None:
    _recorded(folder, "peers", peers.figures(PEERS))
    (folder / "story" / "peers.md").write_text("What we learned.")
    report.main()
    text = (folder / "REPORT.md").read_text()
    assert "| [peers](#peers) | `speedup_vs_hf` | >= 2 | 3 | met |" in text
    assert "| `speedup_bfloat16_vs_hf` | >= 4 | - | not measured |" in text
    assert "What we learned." in text
    assert "![peers](results/peers.svg)" in text
    assert (folder / "peers.svg").stat().st_size > 1_000


def test_a_plot_of_the_same_figures_has_the_same_bytes(folder: Path) -> None:
    figures = peers.figures(PEERS)
    plots.peers(figures, folder / "peers.svg")
    first = (folder / "peers.svg").read_bytes()
    plots.peers(figures, folder / "peers.svg")
    assert (folder / "peers.svg").read_bytes() == first


def test_peers_compare_within_a_repetition_and_say_what_was_not_measured() -> None:
    found = peers.figures(PEERS)
    assert found["speedup_vs_hf"] == 3.0  # medians of 3.0, 2.5, 3.0
    assert found["best_peer"] == "polylora"
    assert found["speedup_vs_best_peer"] == pytest.approx(300 / 130)
    assert found["roofline_float32"] == 0.75
    assert found["peft_switch"] is None
    assert found["smile_bfloat16"] is None
    assert found["speedup_bfloat16_vs_hf"] is None
    assert found["roofline_bfloat16"] is None


def test_the_cliff_reports_the_worst_of_tiers_and_distributions() -> None:
    def at(p95_ms: float) -> list[Latencies]:
        values = np.full(100, p95_ms)
        return [Latencies(values, np.zeros(100), Counter(), 1.0)]

    flat = {f"{kind}_{factor}x": at(10.0) for kind in ("uniform", "zipf") for factor in (1, 2, 8)}
    steep = {**flat, "uniform_8x": at(70.0), "zipf_2x": at(20.0)}
    without = {"uniform_1x": at(10.0), "uniform_8x": at(90.0)}
    found = cliff._figures({"host": steep, "device": flat, "host_without_disk": without})
    assert found["p95_ratio_2x"] == 2.0
    assert found["p95_ratio_8x"] == 7.0
    assert found["p95_ratio_8x_without_disk"] == 9.0
    assert found["p95_ms_host_uniform_8x"] == 70.0


def test_the_table_at_the_end_tells_failed_met_and_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(width=120)
    found = {"rpc": {"efficiency": 0.9}, "cliff": {"p95_ratio_8x": 2.0}, "pipeline": None}
    every.show(console, found)
    shown = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    assert "yes" in lines["rpc"]
    assert "NO" in lines["cliff"]
    assert "failed" in lines["pipeline"]
