"""The figures of trainings, and what is held out."""

from __future__ import annotations

import pytest

from benchmarks import training
from benchmarks.harness.command import Run
from benchmarks.harness.json_types import Json
from benchmarks.harness.targets import TARGETS
from benchmarks.trainers.protocol import Clock
from benchmarks.training import Trained, figures, texts_of
from smile.errors import FailedPrecondition


def told(*epochs: tuple[float, float], peak: int, **more: Json) -> dict[str, Json]:
    return {"epochs": epochs, "peak_bytes": peak, "peak_bytes_absolute": 10 * peak, **more}


def test_the_first_of_the_best_epochs_counts() -> None:
    found = Trained.of(told((1.0, 0.7), (2.0, 0.9), (3.0, 0.9), (4.0, 0.8), peak=5))
    assert (found.seconds, found.accuracy, found.peak_bytes) == (2.0, 0.9, 5)


def test_stored_weights_are_what_is_told_of() -> None:
    found = Trained.of(told((1.0, 0.7), peak=5, stored_accuracy=0.69))
    assert found.accuracy == 0.69


def test_contenders_are_compared_within_a_repetition() -> None:
    trained = {
        "full": [Trained.of(told((s, 0.9), peak=1000)) for s in (60.0, 90.0)],
        "peft": [Trained.of(told((s, 0.8), peak=500)) for s in (30.0, 40.0)],
        "smile": [Trained.of(told((s, 0.89), peak=100)) for s in (10.0, 30.0)],
    }
    found = figures(trained)
    assert found["speedup_vs_full"] == pytest.approx(4.5)
    assert found["speedup_vs_peft"] == pytest.approx((3 + 4 / 3) / 2)
    assert found["memory_saving"] == pytest.approx(0.9)
    assert found["accuracy_loss"] == pytest.approx(0.01)
    assert (found["full_seconds"], found["smile_seconds"]) == (75.0, 20.0)
    assert (found["full_peak_bytes"], found["smile_peak_bytes"]) == (1000, 100)
    keys = {target.key.removesuffix("_documents") for target in TARGETS["training"]}
    assert keys <= found.keys()


def test_nothing_held_out_is_trained_on() -> None:
    for texts in texts_of(Run()):
        training_texts = {text for text, _ in texts.training}
        assert not training_texts & {text for text, _ in texts.held_out}
        assert len(training_texts) == len(texts.training)
        assert {label for _, label in texts.held_out} == set(range(5))


def test_a_trainer_that_fails_says_why(tmp_path: object) -> None:
    broken = training.Contender("smile", training.OURS, "no_such_program", (), 1, 1e-3)
    quick = Run(quick=True)
    lesson = training.lesson_of(broken, texts_of(quick)[0], quick)
    with pytest.raises(FailedPrecondition, match="no_such_program"):
        training.train(broken, lesson, tmp_path)  # type: ignore[arg-type]


def test_what_was_trained_is_kept_where_a_later_training_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = 0

    def train(one: training.Contender, *_: object) -> Trained:
        nonlocal trained
        trained += 1
        if trained == 5:
            raise FailedPrecondition("out of memory")
        return Trained.of(told((float(trained), 0.9), peak=trained))

    monkeypatch.setattr(training, "train", train)
    run = Run(quick=True)
    with pytest.raises(FailedPrecondition):
        training.measure(run)
    assert run.kept["smile_seconds"] == 3.0 and run.kept["rows"] == 160
    assert "smile_seconds_documents" not in run.kept
    kept = run.kept["trainings"]
    assert isinstance(kept, dict)
    assert {name: {key: len(each) for key, each in of.items()} for name, of in kept.items()} == {
        "sentences": {"full": 1, "peft": 1, "smile": 1},
        "documents": {"full": 1},
    }


def test_a_whole_run_has_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> Trained:
        return Trained.of(told((2.0, 0.9), peak=5))

    monkeypatch.setattr(training, "train", train)
    found = training.measure(Run())
    assert {target.key for target in TARGETS["training"]} <= found.keys()
    assert (found["repetitions"], found["rows"], found["rows_held_out_documents"]) == (2, 2000, 419)


def test_memory_counts_from_the_start_of_the_clock() -> None:
    clock = Clock.start()
    ballast = bytearray(64 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    clock.epoch(0.5)
    found = clock.figures()
    assert isinstance(found["peak_bytes"], int)
    assert found["peak_bytes"] > 60 << 20
    assert len(clock.epochs) == 1 and clock.epochs[0][1] == 0.5
    del ballast
