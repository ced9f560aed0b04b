"""States are the same wherever they lie, and their file goes away."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.trainer.training import states as states_file
from services.trainer.training.loop import train
from services.trainer.training.loop_events import Encoding, Planned, StepDone
from services.trainer.training.precision import Precision
from services.trainer.training.states import DiskFull, EntryStates, StatesRoom
from smile.model.backbone import Backbone
from smile.model.initial import initial_tensors
from smile.model.reference import VplmModule
from smile.model.specs import PetKind, PetSpec, Task
from smile.model.toy import write_toy_backbone
from tests.unit.services.trainer.test_loop import (
    PFEIFFER,
    consumed,
    digest,
    given,
    spec,
    texts,
)

TEXTS = [(2, *range(10, 10 + length), 3) for length in (4, 30, 1, 12, 31, 7)]
TOKENS = sum(map(len, TEXTS))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(write_toy_backbone(tmp_path_factory.mktemp("toy")), "toy")


def states_in(backbone: Backbone, room: StatesRoom, pet: PetSpec = PFEIFFER) -> EntryStates:
    of = spec(backbone, pet, Task.SEQUENCE_CLASSIFICATION)
    module = VplmModule(backbone, of, initial_tensors(of, backbone.shape, 0))
    return EntryStates(module, TEXTS, room)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_file, "ENCODED_TOKENS_MAX", 32)


def test_states_are_the_same_wherever_they_lie(
    backbone: Backbone, tmp_path: Path, small_batches: None
) -> None:
    size = TOKENS * backbone.shape.hidden * 4
    rooms = {
        "memory": StatesRoom(size),
        "disk": StatesRoom(0, size, tmp_path),
        "half of each": StatesRoom(size // 2, size, tmp_path),
        "memory and nowhere": StatesRoom(size // 2),
        "all three": StatesRoom(size // 2, size // 3, tmp_path),
        "nowhere": StatesRoom(0),
    }
    asked = [3, 0, 5, 1, 3, 2, 4]
    expected = None
    kept = {}
    for name, room in rooms.items():
        states = states_in(backbone, room)
        told = list(states.fill())
        assert told == sorted(told) and (not told or told[-1] == states.kept)
        found, packed = states.of(asked)
        kept[name] = states.kept
        states.close()
        assert packed.lengths == tuple(len(TEXTS[text]) for text in asked)
        expected = found if expected is None else expected
        assert torch.equal(found, expected), name
        assert not found.is_inference(), "autograd may keep it"
    assert kept["memory"] == kept["disk"] == kept["half of each"] == len(TEXTS)
    assert 0 < kept["memory and nowhere"] < kept["all three"] < len(TEXTS)
    assert kept["nowhere"] == 0


def test_adapters_behind_attention_keep_two_states_a_token(
    backbone: Backbone, tmp_path: Path
) -> None:
    size = 2 * TOKENS * backbone.shape.hidden * 4
    states = states_in(backbone, StatesRoom(0, size, tmp_path), PetSpec(PetKind.HOULSBY, rank=8))
    list(states.fill())
    assert (states.kept, states.bytes_kept) == (len(TEXTS), size)
    assert states.of([1])[0].shape == (len(TEXTS[1]), 2 * backbone.shape.hidden)
    states.close()


def test_embeddings_alone_are_not_kept(backbone: Backbone) -> None:
    states = states_in(backbone, StatesRoom(), PetSpec(PetKind.BITFIT, first_layer=0))
    assert list(states.fill()) == [] and states.kept == 0


def test_the_file_has_no_name_and_is_closed(
    backbone: Backbone, tmp_path: Path, small_batches: None
) -> None:
    states = states_in(backbone, StatesRoom(0, 1 << 20, tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    list(states.fill())
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before + 1
    states.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_told_before_anything_is_computed(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    states = states_in(backbone, StatesRoom(0, 1 << 20, tmp_path))
    with pytest.raises(DiskFull, match=f"bytes of states do not fit {tmp_path}: No space left"):
        list(states.fill())
    assert states.kept == 0


def test_training_from_disk_gives_the_same_bytes(backbone: Backbone, tmp_path: Path) -> None:
    in_memory = given(backbone, texts(60))
    on_disk = replace(in_memory, room=StatesRoom(0, 1 << 24, tmp_path))
    events, _ = consumed(train(on_disk))
    planned = next(event for event in events if isinstance(event, Planned))
    assert planned.texts_kept == planned.texts
    assert digest(on_disk) == digest(in_memory)


def test_a_training_that_is_dropped_closes_its_file(backbone: Backbone, tmp_path: Path) -> None:
    room = StatesRoom(0, 1 << 24, tmp_path)
    run = train(replace(given(backbone, texts(60)), room=room))
    before = len(os.listdir("/proc/self/fd"))
    while not isinstance(next(run), Planned):
        pass
    assert len(os.listdir("/proc/self/fd")) == before + 1
    run.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_bfloat16_halves_what_is_kept_and_learns_as_well(backbone: Backbone) -> None:
    float32 = given(backbone, texts(80))
    bfloat16 = replace(float32, precision=Precision.BFLOAT16)
    events, trained = consumed(train(bfloat16))
    same, _ = consumed(train(float32))
    kept = [
        max(event.bytes_kept for event in found if isinstance(event, Encoding))
        for found in (events, same)
    ]
    assert kept[0] * 2 == kept[1]
    first = [next(e.loss for e in found if isinstance(e, StepDone)) for found in (events, same)]
    assert first[0] == pytest.approx(first[1], rel=0.02)
    assert first[0] != first[1]
    assert trained.metrics["validation_accuracy"] >= 0.9
    assert digest(bfloat16) == digest(bfloat16)
