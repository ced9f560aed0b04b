"""SMILE's training loop, as a worker runs it; where SMILE is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch._dynamo  # optimizers import it at their first step

from benchmarks.trainers.protocol import Clock, Lesson, only_answers, tell
from services.trainer.config import TrainerSettings
from services.trainer.data.examples import LabeledText
from services.trainer.training.loop import train
from services.trainer.training.loop_events import EpochDone, Planned
from services.trainer.training.run import Trained, TrainingInput
from services.trainer.training.states import StatesRoom
from services.trainer.worker.memory import release_free_memory, tame_heap
from smile.logs import LogFormat, LogLevel, configure
from smile.model.backbone import Backbone
from smile.model.batch import CPU
from smile.model.kernels import kernels_for
from smile.model.specs import HeadSpec, ModuleSpec, PetKind, PetSpec, Pooling, Task
from smile.resources import HyperParameters

PET = PetSpec(PetKind.PFEIFFER, rank=24, first_layer=3)
POOLING = Pooling.MEAN


def load(lesson: Lesson) -> Backbone:
    """The backbone, its weights in memory, and the kernels compiled."""
    backbone = Backbone.load(Path(lesson.model), "benchmark")
    backbone.embeddings.word.sum()  # reads pages that were only mapped
    for layer in backbone.layers:
        for dense in layer.projections.values():
            dense.weight.sum()
    kernels_for(CPU, torch.float32)
    return backbone


def given(lesson: Lesson, backbone: Backbone) -> TrainingInput:
    head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, tuple(lesson.labels), POOLING)
    defaults = TrainerSettings.model_fields
    room = StatesRoom(
        defaults["states_bytes_max"].default, defaults["states_disk_bytes_max"].default
    )
    rows = zip(lesson.texts, lesson.classes, strict=True)
    held_out = zip(lesson.held_out_texts, lesson.held_out_classes, strict=True)
    return TrainingInput(
        backbone=backbone,
        spec=ModuleSpec(backbone.name, backbone.digest, PET.placed(backbone.shape), head),
        values=HyperParameters(
            epochs=lesson.epochs,
            learning_rate=lesson.learning_rate,
            batch_size=lesson.batch,
            tokens_max=lesson.tokens_max,
            seed=lesson.seed,
        ),
        examples=[LabeledText(text, label) for text, label in rows],
        validation=[LabeledText(text, label) for text, label in held_out],
        room=room,
    )


def main(lesson: Lesson) -> dict[str, object]:
    backbone = load(lesson)
    clock = Clock.start()
    run = train(given(lesson, backbone))
    trained: Trained | None = None
    while trained is None:
        try:
            event = next(run)
        except StopIteration as end:
            trained = end.value
            break
        if isinstance(event, Planned | EpochDone):
            release_free_memory()  # as a worker does
        if isinstance(event, EpochDone):
            clock.epoch(event.metrics["validation_accuracy"])
    return {
        **clock.figures(),
        "stored_accuracy": trained.metrics["validation_accuracy"],
        "trained_parameters": sum(tensor.size for tensor in trained.tensors.values()),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    lines = only_answers()
    configure("benchmark", LogLevel.WARNING, LogFormat.CONSOLE)
    tame_heap()
    tell(main(Lesson.read(sys.argv[1])), lines)
