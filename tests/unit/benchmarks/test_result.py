from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path
from statistics import median

import pytest

from benchmarks.harness import command
from benchmarks.harness.command import Run
from benchmarks.harness.json_types import Figures, rounded
from benchmarks.harness.machine import Machine
from benchmarks.harness.repeat import interleaved, paired_ratio, turns
from benchmarks.harness.result import Result, figures_of, read_result
from benchmarks.harness.targets import TARGETS, at_least, at_most, judged
from smile.errors import FailedPrecondition


def _result(*, quick: bool, **figures: float | None) -> Result:
    return Result.of("rpc", figures, Machine.describe(), quick=quick)


def test_a_recorded_result_reads_back_and_full_wins_over_quick(tmp_path: Path) -> None:
    _result(quick=True, efficiency=0.5).record(tmp_path)
    found = read_result("rpc", tmp_path)
    assert found is not None and found["efficiency"] == 0.5
    _result(quick=False, efficiency=0.912345678).record(tmp_path)
    found = read_result("rpc", tmp_path)
    assert found is not None and found["efficiency"] == 0.9123
    assert figures_of(found) == {"efficiency": 0.9123}
    assert read_result("density", tmp_path) is None


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(run: Run) -> Figures:
        run.say("not for standard output")
        return {"efficiency": 0.9}

    assert command.main("rpc", measure, ["--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    printed = json.loads(lines[0])
    assert printed["efficiency"] == 0.9
    assert printed["quick"] is True
    assert printed["machine"]["cores"] >= 1
    (target,) = printed["targets"]
    assert target["met"] is True


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (KeyboardInterrupt(), command.EXIT_INTERRUPTED),
        (FailedPrecondition("too slow"), command.EXIT_FAILED),
    ],
)
def test_what_was_kept_is_told_where_a_run_breaks_off(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: BaseException,
    code: int,
) -> None:
    monkeypatch.setattr(Result, "record", partialmethod(Result.record, tmp_path))
    _result(quick=False, efficiency=0.9).record()

    def measure(run: Run) -> Figures:
        run.keep({"efficiency": 0.1})
        run.keep({"texts": [1, 2]})
        raise ends

    assert command.main("rpc", measure, ["--record"]) == code
    told = capsys.readouterr()
    printed = json.loads(told.out)
    assert printed["partial"] is True
    assert (printed["efficiency"], printed["texts"]) == (0.1, [1, 2])
    assert "rpc.partial.json" in told.err
    kept = json.loads((tmp_path / "rpc.partial.json").read_text())
    assert kept == printed
    found = read_result("rpc", tmp_path)
    assert found is not None and figures_of(found) == {"efficiency": 0.9}, "it is no result"
    _result(quick=False, efficiency=0.8).record()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rpc.json"]


def test_a_run_that_kept_nothing_tells_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Result, "record", partialmethod(Result.record, tmp_path))

    def measure(run: Run) -> Figures:
        raise KeyboardInterrupt

    assert command.main("rpc", measure, ["--record"]) == command.EXIT_INTERRUPTED
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_targets_bound_from_either_side_and_what_is_absent_is_not_met() -> None:
    assert at_least("k", 2.0).met(2.0) is True
    assert at_least("k", 2.0).met(1.99) is False
    assert at_most("k", 2.0).met(2.01) is False
    assert at_most("k", 2.0).met(None) is None
    assert [row["met"] for row in judged("rpc", {})] == [None]  # type: ignore[index,call-overload]
    assert {"density", "peers", "cliff", "pipeline", "smile_demo", "fairness", "rpc"} < set(TARGETS)


def test_rounding_keeps_whole_numbers_and_structure() -> None:
    assert rounded({"a": 123456, "b": [0.123456, True], "c": {"d": 98765.4321}}) == {
        "a": 123456,
        "b": [0.1235, True],
        "c": {"d": 98770.0},
    }


def test_turns_rotate_and_everyone_has_as_many() -> None:
    order = [name for _, name in turns(("a", "b", "c"), 3)]
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    steps: list[None] = []
    found = interleaved({"a": lambda: 1, "b": lambda: 2}, 3, lambda: steps.append(None))
    assert found == {"a": [1, 1, 1], "b": [2, 2, 2]}
    assert len(steps) == 6


def test_a_paired_ratio_is_of_the_same_repetition() -> None:
    above, below = [2.0, 30.0, 400.0], [1.0, 10.0, 100.0]
    assert paired_ratio(above, below) == 3.0
    assert median(above) / median(below) == 3.0
    assert paired_ratio([1.0, 10.0, 100.0], [1.0, 20.0, 50.0]) == 1.0
