"""Calibration: within its time, right where it measured, and kept only for the same machine."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from services.processor.scheduling.calibrate import (
    Calibration,
    Subject,
    calibrate,
    load,
    plausible,
    save,
)
from services.processor.scheduling.latency import LatencyModel, LatencyTables
from smile.model.specs import PetKind

SUBJECT = Subject("digest", "", "cpu x", "float32", "auto", 2, "code")
KINDS = (PetKind.NONE, PetKind.LORA)


@dataclass
class Machine:
    """One whose seconds are known, and pass on its own clock."""

    slower: float = 1.0
    now: float = 0.0
    calls: list[tuple[int, int, PetKind]] = field(default_factory=list)

    def measure(self, tokens: int, texts: int, kind: PetKind) -> float:
        self.calls.append((tokens, texts, kind))
        beta = 2e-6 * tokens if kind is PetKind.LORA else 0.0
        spike = 5.0 if len(self.calls) % 3 == 0 else 1.0  # one run of three is disturbed
        seconds = self.slower * (0.001 + 1e-5 * tokens + 1e-4 * texts + beta)
        self.now += seconds * spike
        return seconds * spike

    def tables(self, budget_s: float = 10.0) -> LatencyTables:
        return self.calibration(budget_s).tables

    def calibration(self, budget_s: float = 10.0) -> Calibration:
        return calibrate(
            self.measure, KINDS, tokens_max=2_048, budget_s=budget_s, clock=lambda: self.now
        )


def test_the_tables_tell_what_the_machine_does() -> None:
    tables = Machine().tables()
    assert tables.alpha.tokens == (16, 32, 64, 128, 256, 512, 1_024, 2_048)
    assert tables.text_s == pytest.approx(1e-4)
    model = LatencyModel(tables)
    for tokens, texts in [(32, 1), (256, 4), (1_024, 50)]:
        assert model.seconds(tokens, texts) == pytest.approx(0.001 + 1e-5 * tokens + 1e-4 * texts)
    more = model.seconds(256, 4, PetKind.LORA) - model.seconds(256, 4)
    assert more == pytest.approx(2e-6 * 256)


@pytest.mark.parametrize("slower", [1.0, 10.0, 100.0, 10_000.0])
def test_a_slow_machine_measures_less_and_keeps_to_its_time(slower: float) -> None:
    machine = Machine(slower)
    tables = machine.tables(budget_s=2.0)
    least = slower * 6 * 5 * 0.0013  # the smallest size, which is always measured
    assert machine.now <= max(2.0, least) * 1.5
    assert LatencyModel(tables).seconds(2_048, 64) >= 0.5 * slower * 0.001


def test_what_a_busy_machine_says_is_not_worth_keeping() -> None:
    assert Machine().calibration().calm
    assert not Machine(slower=1_000.0).calibration().calm
    busy = Machine()
    runs = itertools.cycle([1.0, 2.0, 3.0])

    def measure(tokens: int, texts: int, kind: PetKind) -> float:
        return next(runs) * busy.measure(tokens, texts, kind)

    found = calibrate(measure, KINDS, tokens_max=2_048, budget_s=10.0, clock=lambda: busy.now)
    assert not found.calm


def test_a_disturbed_size_is_not_believed() -> None:
    """As measured beside other work: 32 and 256 tokens took as long as twice as many."""
    measured = {16: 0.004, 32: 0.022, 64: 0.0125, 128: 0.024, 256: 0.086, 512: 0.094}
    found = plausible(measured)
    assert found == {16: 0.004, 32: 0.008, 64: 0.0125, 128: 0.024, 256: 0.048, 512: 0.094}
    assert plausible({16: 0.018, 32: 0.008}) == {16: 0.008, 32: 0.008}


def test_tables_are_kept_for_the_next_start(tmp_path: Path) -> None:
    tables = Machine().tables()
    assert load(tmp_path, SUBJECT) is None
    save(tmp_path, SUBJECT, tables)
    assert load(tmp_path, SUBJECT) == tables
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "other",
    [
        replace(SUBJECT, backbone_digest="other"),
        replace(SUBJECT, device="cpu y"),
        replace(SUBJECT, precision="bfloat16"),
        replace(SUBJECT, kernels="eager"),
        replace(SUBJECT, threads=1),
        replace(SUBJECT, code="newer"),
    ],
)
def test_another_machine_has_tables_of_its_own(tmp_path: Path, other: Subject) -> None:
    save(tmp_path, SUBJECT, Machine().tables())
    assert load(tmp_path, other) is None
    (tmp_path / SUBJECT.file_name).rename(tmp_path / other.file_name)
    assert load(tmp_path, other) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", "\udc80", '{"format": 1}', "[" * 100_000])
def test_damaged_tables_are_not_used(tmp_path: Path, damage: str) -> None:
    path = tmp_path / SUBJECT.file_name
    path.write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert load(tmp_path, SUBJECT) is None


def test_a_changed_number_that_is_no_curve_is_not_used(tmp_path: Path) -> None:
    save(tmp_path, SUBJECT, Machine().tables())
    path = tmp_path / SUBJECT.file_name
    content = json.loads(path.read_text())
    content["tables"]["alpha"]["seconds"][0] = 1e9
    path.write_text(json.dumps(content))
    assert load(tmp_path, SUBJECT) is None


def test_a_folder_that_cannot_be_written_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    save(tmp_path / "file" / "below", SUBJECT, Machine().tables())
    assert load(tmp_path / "file" / "below", SUBJECT) is None
