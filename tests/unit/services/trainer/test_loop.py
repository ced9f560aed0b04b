"""Training on the toy backbone: it learns, repeats itself exactly, says when it cannot go on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Sequence
from dataclasses import replace

import pytest

from services.trainer.data.examples import Example, LabeledText, LabeledWords, TextPair
from services.trainer.training.loop import train
from services.trainer.training.loop_events import EpochDone, LoopEvent, Planned, StepDone
from services.trainer.training.run import LossNotFinite, Trained, TrainingInput
from services.trainer.training.states import StatesRoom
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.specs import DType, HeadSpec, ModuleSpec, PetKind, PetSpec, Projection, Task
from smile.model.toy import write_toy_backbone
from smile.resources import HyperParameters, Optimizer, Schedule

SPORT = ["game", "play", "win", "team", "goal", "run", "sport", "player"]
MONEY = ["market", "price", "stock", "trade", "money", "bank", "sell", "buy"]
FILLER = ["the", "a", "of", "and", "to", "in", "it", "was", "on", "they", "this"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(write_toy_backbone(tmp_path_factory.mktemp("toy")), "toy")


def sentence(topic: Sequence[str], draw: random.Random) -> str:
    words = draw.choices(topic, k=4) + draw.choices(FILLER, k=draw.randint(0, 6))
    draw.shuffle(words)
    return " ".join(words)


def texts(count: int = 200, seed: int = 1) -> list[LabeledText]:
    draw = random.Random(seed)
    return [LabeledText(sentence((SPORT, MONEY)[i % 2], draw), i % 2) for i in range(count)]


def spec(backbone: Backbone, pet: PetSpec, task: Task, dtype: DType = DType.FLOAT16) -> ModuleSpec:
    labels = () if task is Task.EMBEDDING else ("sport", "money")
    head = HeadSpec(task, labels)
    return ModuleSpec("toy", backbone.digest, pet.placed(backbone.shape), head, dtype)


PFEIFFER = PetSpec(PetKind.PFEIFFER, rank=8)
SPARSE_PETS = [
    PetSpec(PetKind.DIFF_PRUNING, density=0.01),
    PetSpec(PetKind.MASK_BERT, density=0.05),
]
PETS = [
    PFEIFFER,
    PetSpec(PetKind.HOULSBY, rank=8),
    PetSpec(PetKind.LORA, rank=4, alpha=8, targets=(Projection.QUERY, Projection.VALUE)),
    PetSpec(PetKind.BITFIT),
    *SPARSE_PETS,
    PetSpec(PetKind.NONE),
    PetSpec(PetKind.PFEIFFER, first_layer=0, rank=8),
    PetSpec(PetKind.FULL),
]
QUICK = HyperParameters(epochs=6, learning_rate=1e-2, validation_ratio=0.2, seed=3)


def given(
    backbone: Backbone,
    examples: Sequence[Example],
    values: HyperParameters = QUICK,
    *,
    pet: PetSpec = PFEIFFER,
    task: Task = Task.SEQUENCE_CLASSIFICATION,
) -> TrainingInput:
    return TrainingInput(backbone, spec(backbone, pet, task), values, examples)


def consumed(run: Generator[LoopEvent, None, Trained]) -> tuple[list[LoopEvent], Trained]:
    events: list[LoopEvent] = []
    while True:
        try:
            events.append(next(run))
        except StopIteration as stop:
            return events, stop.value


def digest(run: TrainingInput) -> str:
    return hashlib.sha256(weights.encode(consumed(train(run))[1].tensors, run.spec)).hexdigest()


@pytest.mark.parametrize("pet", PETS, ids=lambda pet: f"{pet.kind}-{pet.first_layer}")
def test_a_separable_task_is_learned(backbone: Backbone, pet: PetSpec) -> None:
    values = replace(QUICK, epochs=10, batch_size=16)
    _, trained = consumed(train(given(backbone, texts(), values, pet=pet)))
    assert trained.metrics["validation_accuracy"] >= 0.95
    assert trained.metrics["validation_rows"] == 40


def test_the_same_job_gives_the_same_bytes(backbone: Backbone) -> None:
    run = given(backbone, texts(80))
    assert digest(run) == digest(run)
    assert digest(run) != digest(replace(run, values=replace(QUICK, seed=4)))


def test_kept_states_change_no_byte(backbone: Backbone) -> None:
    """States that do not fit are computed per batch: the same function of the same texts, up to
    the rounding of other batch shapes."""
    run = given(backbone, texts(80))
    kept, _ = consumed(train(run))
    none, trained = consumed(train(replace(run, room=StatesRoom(0))))
    assert next(e for e in kept if isinstance(e, Planned)).texts_kept > 0
    assert next(e for e in none if isinstance(e, Planned)).texts_kept == 0
    assert trained.metrics["validation_accuracy"] >= 0.9
    losses = [[e.loss for e in events if isinstance(e, StepDone)] for events in (kept, none)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-3)


def test_every_step_and_every_epoch_is_told(backbone: Backbone) -> None:
    values = replace(QUICK, epochs=3, batch_size=32, warmup_ratio=0.25)
    events, trained = consumed(train(given(backbone, texts(100), values)))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, 10))  # 80 rows: 3 batches, 3 epochs
    assert steps[0].learning_rate == pytest.approx(values.learning_rate / 2)
    assert steps[1].learning_rate == steps[2].learning_rate == values.learning_rate
    assert steps[-1].learning_rate == pytest.approx(values.learning_rate / 7)
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert [(event.epoch, event.step) for event in epochs] == [(1, 3), (2, 6), (3, 9)]
    assert trained.metrics["best_epoch"] == max(e.epoch for e in epochs if e.best)


def test_training_stops_early(backbone: Backbone) -> None:
    values = replace(QUICK, epochs=50, early_stopping_epochs=2)
    events, trained = consumed(train(given(backbone, texts(100), values)))
    ran = [event.epoch for event in events if isinstance(event, EpochDone)]
    assert len(ran) < 50
    assert ran[-1] == trained.metrics["best_epoch"] + 2


def test_word_labels_are_learned(backbone: Backbone) -> None:
    draw = random.Random(5)
    rows = []
    for _ in range(400):
        words = draw.choices(SPORT + MONEY, k=draw.randint(2, 9))
        rows.append(LabeledWords(tuple(words), tuple(int(word in MONEY) for word in words)))
    values, task = replace(QUICK, epochs=12, batch_size=16), Task.TOKEN_CLASSIFICATION
    _, trained = consumed(train(given(backbone, rows, values, task=task)))
    assert trained.metrics["validation_token_accuracy"] >= 0.95


def test_embeddings_are_learned_from_labels_and_from_pairs(backbone: Backbone) -> None:
    _, grouped = consumed(train(given(backbone, texts(), task=Task.EMBEDDING)))
    assert grouped.metrics["validation_recall_at_1"] >= 0.9
    draw = random.Random(6)
    pairs = []
    for _ in range(120):
        words = draw.sample(SPORT + MONEY + FILLER, k=6)
        pairs.append(TextPair(" ".join(words), " ".join(words[1:])))
    _, paired = consumed(train(given(backbone, pairs, task=Task.EMBEDDING)))
    assert paired.metrics["validation_recall_at_1"] >= 0.5


@pytest.mark.parametrize("pet", SPARSE_PETS, ids=lambda pet: str(pet.kind))
def test_sparse_kinds_learn_without_a_head_and_go_on_from_what_is_stored(
    backbone: Backbone, pet: PetSpec
) -> None:
    """Embeddings have no head: whatever gets better, the module learned."""
    values = replace(QUICK, epochs=4, batch_size=16)
    run = given(backbone, texts(), values, pet=pet, task=Task.EMBEDDING)
    still = replace(values, epochs=1, learning_rate=1e-30)
    _, before = consumed(train(replace(run, values=still)))
    _, trained = consumed(train(run))
    loss, recall = "validation_loss", "validation_recall_at_1"
    assert trained.metrics[loss] < 0.95 * before.metrics[loss]
    assert trained.metrics[recall] >= before.metrics[recall]
    stored = weights.decode(weights.encode(trained.tensors, run.spec), run.spec, backbone.shape)
    _, again = consumed(train(replace(run, values=still, tensors=stored)))
    assert again.metrics[loss] == pytest.approx(trained.metrics[loss], abs=1e-6)
    _, further = consumed(train(replace(run, tensors=stored)))
    assert further.metrics["train_loss"] < trained.metrics["train_loss"]


def test_a_loss_that_is_no_number_ends_the_run(backbone: Backbone) -> None:
    values = replace(QUICK, learning_rate=1e38, optimizer=Optimizer.SGD, gradient_norm_max=0)
    with pytest.raises(LossNotFinite, match=r"at step \d+ of|after step"):
        consumed(train(given(backbone, texts(60), values)))


@pytest.mark.parametrize("optimizer", Optimizer)
@pytest.mark.parametrize("schedule", Schedule)
def test_every_optimizer_and_schedule_lowers_the_loss(
    backbone: Backbone, optimizer: Optimizer, schedule: Schedule
) -> None:
    rate = 0.1 if optimizer is Optimizer.SGD else 1e-2
    values = replace(QUICK, optimizer=optimizer, schedule=schedule, learning_rate=rate, epochs=4)
    events, _ = consumed(train(given(backbone, texts(80), values)))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    assert sum(losses[-2:]) < sum(losses[:2])


def test_metrics_are_those_of_the_rounded_weights(backbone: Backbone) -> None:
    run = given(backbone, texts(80), replace(QUICK, epochs=1))
    validation = texts(40, seed=9)
    _, trained = consumed(train(replace(run, validation=validation)))
    assert trained.metrics["validation_rows"] == 40
    again = replace(
        run,
        validation=validation,
        tensors=trained.tensors,
        values=replace(QUICK, epochs=1, learning_rate=1e-30, weight_decay=0.0),
    )
    _, same = consumed(train(again))
    for name in ("validation_loss", "validation_accuracy"):
        assert same.metrics[name] == pytest.approx(trained.metrics[name], abs=1e-6)


def test_long_texts_are_cut_to_the_jobs_limit(backbone: Backbone) -> None:
    long = [LabeledText(" ".join([e.text] * 40), e.label) for e in texts(20)]
    values = replace(QUICK, epochs=1, tokens_max=16)
    events, _ = consumed(train(given(backbone, long, values)))
    assert any(isinstance(event, StepDone) for event in events)
