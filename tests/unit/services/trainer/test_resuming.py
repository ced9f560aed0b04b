"""A run that was broken off and went on from a snapshot ends with the same bytes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from services.trainer.training.loop import Training
from services.trainer.training.loop_events import EpochDone, LoopEvent, Planned, StepDone
from services.trainer.training.run import Trained, TrainingInput
from services.trainer.training.snapshots import Checkpoint, decode, encode
from services.trainer.training.states import StatesRoom
from smile.errors import DataCorrupted
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.specs import PetKind, PetSpec, Task
from smile.model.toy import write_toy_backbone
from smile.resources import Optimizer, Selection
from tests.unit.services.trainer.test_loop import PETS, QUICK, given, texts

EVERY = replace(QUICK, epochs=3, batch_size=16, learning_rate=0.02)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(write_toy_backbone(tmp_path_factory.mktemp("toy")), "toy")


def whole(run: TrainingInput) -> tuple[list[LoopEvent], Trained]:
    return broken_off(run, ())


def broken_off(run: TrainingInput, after: tuple[int, ...]) -> tuple[list[LoopEvent], Trained]:
    """The run, killed after so many steps or epochs and gone on with from its bytes each time; the
    events that count."""
    seen: list[LoopEvent] = []
    for stop in (*after, None):
        training = Training(run)
        events = training.events()
        count = 0
        while True:
            if count == stop:
                snapshot = training.snapshot()
                assert snapshot is not None
                data = encode(Checkpoint(snapshot, "d", len(seen), 1.0))
                run = replace(run, resume=decode(data).snapshot)
                break
            try:
                event = next(events)
            except StopIteration as end:
                return seen, end.value
            if isinstance(event, StepDone | EpochDone):
                seen.append(event)
                count += 1
    raise AssertionError("unreachable")


def same(run: TrainingInput, after: tuple[int, ...]) -> None:
    events, expected = whole(run)
    again, found = broken_off(run, after)
    assert again == events
    assert weights.encode(found.tensors, run.spec) == weights.encode(expected.tensors, run.spec)
    assert (found.metrics, found.summary) == (expected.metrics, expected.summary)


@pytest.mark.parametrize("optimizer", Optimizer)
def test_every_optimizer_goes_on_as_if_nothing_had_been(
    backbone: Backbone, optimizer: Optimizer
) -> None:
    same(given(backbone, texts(80), replace(EVERY, optimizer=optimizer)), (2, 5))


@pytest.mark.parametrize("pet", PETS, ids=lambda pet: f"{pet.kind}-{pet.first_layer}")
def test_every_kind_goes_on_as_if_nothing_had_been(backbone: Backbone, pet: PetSpec) -> None:
    same(given(backbone, texts(60), EVERY, pet=pet), (4,))


@pytest.mark.parametrize("stop", range(1, 16))
def test_it_may_be_broken_off_anywhere(backbone: Backbone, stop: int) -> None:
    """80 rows, 64 to train on: 4 steps and an end an epoch, before and after every one of them."""
    same(given(backbone, texts(80), EVERY), (stop,))


def test_a_run_that_stopped_early_stays_stopped(backbone: Backbone) -> None:
    values = replace(EVERY, epochs=30, early_stopping_epochs=2, early_stopping_delta=1000.0)
    run = given(backbone, texts(80), replace(values, selection=Selection.LOSS))
    events, _ = whole(run)
    assert len(events) == 15, "three epochs"
    same(run, (15,))
    same(run, (9, 5))


def test_accumulation_and_embeddings_go_on_too(backbone: Backbone) -> None:
    values = replace(EVERY, accumulation_batches=3, batch_size=8)
    same(given(backbone, texts(80), values, task=Task.EMBEDDING), (1, 1, 1, 1))


def test_states_that_are_not_kept_make_no_difference(backbone: Backbone) -> None:
    same(replace(given(backbone, texts(80), EVERY), room=StatesRoom(0)), (3,))


def test_a_snapshot_is_a_few_times_the_module(backbone: Backbone) -> None:
    run = given(backbone, texts(40), EVERY, pet=PetSpec(PetKind.PFEIFFER, rank=16))
    training = Training(run)
    events = training.events()
    while not isinstance(next(events), StepDone):
        assert training.snapshot() is None or training.snapshot().step == 0  # type: ignore[union-attr]
    snapshot = training.snapshot()
    assert snapshot is not None
    size = len(encode(Checkpoint(snapshot, "d" * 64, 2, 0.5)))
    stored = len(weights.encode(broken_off(run, ())[1].tensors, run.spec))
    assert size < 8 * stored + 16_384, "float32 and two moments, for float16; and torch's 5 KB"


def test_damage_is_found_wherever_it_is(backbone: Backbone) -> None:
    training = Training(given(backbone, texts(20), EVERY))
    events = training.events()
    while not isinstance(next(events), Planned):
        pass
    next(events)
    snapshot = training.snapshot()
    assert snapshot is not None
    data = encode(Checkpoint(snapshot, "d" * 64, 2, 0.5))
    assert decode(data).curve_points == 2
    draw = random.Random(1)
    for _ in range(50):
        at = draw.randrange(len(data))
        with pytest.raises(DataCorrupted):
            decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DataCorrupted):
            decode(data[:at])
