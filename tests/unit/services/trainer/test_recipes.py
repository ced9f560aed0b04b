"""What practitioners expect of a training: class weights, accumulation, selection."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.trainer.checks import check_job
from services.trainer.data.corpus import CorpusRow
from services.trainer.data.examples import LabeledText, LabeledWords
from services.trainer.training.loop import train
from services.trainer.training.loop_events import EpochDone, StepDone
from services.trainer.training.run import TrainingInput
from services.trainer.training.selection import Selector, selectable
from services.trainer.training.weighting import class_weights
from services.trainer.worker.provenance import RunSpec, environment
from smile.errors import InvalidSpec
from smile.model.backbone import Backbone
from smile.model.losses import sequence_loss, token_loss
from smile.model.specs import HeadSpec, Task
from smile.model.toy import write_toy_backbone
from smile.resources import (
    ClassWeighting,
    ColumnMapping,
    HyperParameters,
    Selection,
    TrainingJob,
)
from tests.unit.services.trainer.test_loop import QUICK, consumed, given, spec, texts

sklearn = importlib.import_module("sklearn.utils.class_weight")
TOPICS = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("sport", "money"))
NAMES = HeadSpec(Task.TOKEN_CLASSIFICATION, ("O", "B-PER", "I-PER"))
WORDS = HeadSpec(Task.TOKEN_CLASSIFICATION, ("sport", "money"))
NEAR = HeadSpec(Task.EMBEDDING)
BALANCED = HyperParameters(class_weighting=ClassWeighting.BALANCED)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(write_toy_backbone(tmp_path_factory.mktemp("toy")), "toy")


def test_balanced_weights_are_scikit_learns() -> None:
    labels = [0] * 7 + [1] * 2 + [2]
    rows = [CorpusRow((0,), (label,)) for label in labels]
    found = class_weights(BALANCED, ("a", "b", "c", "absent"), rows)
    theirs = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    assert found is not None
    assert found.tolist() == pytest.approx([*theirs, 1.0])


def test_tokens_that_do_not_count_do_not_weigh_and_given_weights_win() -> None:
    rows = [CorpusRow((0,), (-100, 0, 0, 0, 1, -100))]
    values = replace(BALANCED, class_weights={"b": 9.0})
    found = class_weights(values, ("a", "b"), rows)
    assert found is not None
    assert found.tolist() == pytest.approx([4 / (2 * 3), 9.0])
    assert class_weights(HyperParameters(), ("a", "b"), rows) is None


def test_weighted_losses_are_the_weighted_means() -> None:
    logits, weights = torch.randn(6, 2), torch.tensor([1.0, 5.0])
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    single = torch.stack([sequence_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(6)])
    each = weights[labels]
    expected = (single * each).sum() / each.sum()
    assert torch.allclose(sequence_loss(logits, labels, weights), expected)
    ignored = torch.cat([labels, torch.tensor([-100])])
    more = torch.cat([logits, torch.randn(1, 2)])
    assert torch.allclose(token_loss(more, ignored, weights), expected)
    nothing = token_loss(more[-1:].requires_grad_(), ignored[-1:], weights)
    nothing.backward()
    assert nothing.item() == 0.0


def test_balance_helps_the_rare_class(backbone: Backbone) -> None:
    """On rows that say nothing, a class of one in ten is never predicted unless it weighs more."""
    rows = [LabeledText("the a of", int(index % 10 == 0)) for index in range(100)]
    recall = {}
    for weighting in ClassWeighting:
        values = replace(QUICK, epochs=2, class_weighting=weighting)
        values = replace(values, class_weights={"money": 50.0} if "bal" in weighting else {})
        _, trained = consumed(train(given(backbone, rows, values)))
        recall[weighting] = trained.summary.classes[1].recall
    assert recall == {ClassWeighting.UNIFORM: 0.0, ClassWeighting.BALANCED: 1.0}


def test_accumulated_batches_make_the_step_of_one_large_batch(backbone: Backbone) -> None:
    """With one batch an epoch that is cut into four, the same rows make each step."""
    large = replace(QUICK, epochs=3, batch_size=80)
    small = replace(large, batch_size=20, accumulation_batches=4)
    losses = []
    for values in (large, small):
        events, _ = consumed(train(given(backbone, texts(100), values)))
        losses.append([event.loss for event in events if isinstance(event, StepDone)])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_best_epoch_is_the_one_of_the_chosen_metric(backbone: Backbone) -> None:
    values = replace(QUICK, epochs=6, learning_rate=0.05)
    for selection, name in ((Selection.LOSS, "validation_loss"), (Selection.TASK, None)):
        run = given(backbone, texts(60), replace(values, selection=selection))
        events, trained = consumed(train(run))
        epochs = [event for event in events if isinstance(event, EpochDone)]
        metric = name or "validation_accuracy"
        seen = [event.metrics[metric] for event in epochs]
        best = epochs[int(trained.metrics["best_epoch"]) - 1].metrics[metric]
        assert best == (min(seen) if name else max(seen))


def test_what_does_not_gain_the_delta_counts_as_standing_still(backbone: Backbone) -> None:
    values = replace(QUICK, epochs=40, early_stopping_epochs=2, selection=Selection.LOSS)
    ran = []
    for delta in (0.0, 1000.0):
        run = given(backbone, texts(100), replace(values, early_stopping_delta=delta))
        events, trained = consumed(train(run))
        ran.append(len([event for event in events if isinstance(event, EpochDone)]))
        assert trained.metrics["best_epoch"] <= ran[-1]
    assert ran[1] == 3
    assert trained.metrics["best_epoch"] == 3, "the best is published, whatever counts as progress"
    assert ran[0] > 3


def test_gains_and_betters() -> None:
    selector = Selector("validation_accuracy")

    def epoch(accuracy: float, loss: float) -> Mapping[str, float]:
        return {"validation_accuracy": accuracy, "validation_loss": loss}

    assert selector.better(epoch(0.5, 9.0), None)
    assert selector.better(epoch(0.5, 0.8), epoch(0.5, 0.9))
    assert not selector.better(epoch(0.5, 0.9), epoch(0.5, 0.9))
    assert selector.gained(epoch(0.62, 0.9), epoch(0.5, 0.9), 0.1)
    assert not selector.gained(epoch(0.58, 0.1), epoch(0.5, 0.9), 0.1)
    by_loss = Selector("validation_loss")
    assert by_loss.better(epoch(0.1, 0.2), epoch(0.9, 0.3))
    assert not by_loss.gained(epoch(0.1, 0.25), epoch(0.9, 0.3), 0.1)


@pytest.mark.parametrize(
    ("head", "choices", "task"),
    [
        (TOPICS, {"task", "loss", "accuracy", "macro_f1"}, "validation_accuracy"),
        (NAMES, {"task", "loss", "accuracy", "macro_f1", "entity_f1"}, "validation_f1"),
        (WORDS, {"task", "loss", "accuracy", "macro_f1"}, "validation_token_accuracy"),
        (NEAR, {"task", "loss"}, "validation_recall_at_1"),
    ],
)
def test_what_a_task_is_selected_by(head: HeadSpec, choices: set[str], task: str) -> None:
    assert set(selectable(head)) == choices
    assert selectable(head)[Selection.TASK] == task


@pytest.mark.parametrize(
    ("values", "head", "told"),
    [
        ({"selection": Selection.ENTITY_F1}, TOPICS, "accuracy, macro_f1, got entity_f1"),
        ({"selection": Selection.LOSS, "validation_ratio": 0.0}, TOPICS, "needs validation rows"),
        ({"class_weights": {"art": 2.0}}, TOPICS, "'art', which is no label"),
        ({"class_weights": {"sport": 0.0}}, TOPICS, "at most 1000, got 0 for 'sport'"),
        ({"class_weights": {"sport": 1e9}}, TOPICS, "at most 1000, got 1e"),
        ({"class_weighting": ClassWeighting.BALANCED}, NEAR, "no classes to weigh"),
        ({"momentum": 1.0}, TOPICS, "momentum must be between 0 and 0.999999, got 1"),
        ({"accumulation_batches": 0}, TOPICS, "accumulation_batches must be between 1 and 1024"),
        ({"early_stopping_delta": -1.0}, TOPICS, "early_stopping_delta must be between 0 and 1000"),
    ],
)
def test_wrong_recipes_are_named(
    values: dict[str, object], head: HeadSpec, told: str, backbone: Backbone
) -> None:
    wanted = replace(HyperParameters(), **values)  # type: ignore[arg-type]
    with pytest.raises(InvalidSpec, match=told):
        check_job(TrainingJob("", "v", "d", hyper_parameters=wanted), head, backbone.shape)


def test_a_summary_has_every_class_and_every_entity(backbone: Backbone) -> None:
    _, trained = consumed(train(given(backbone, texts(100), QUICK)))
    summary = trained.summary
    assert [row.label for row in summary.classes] == ["sport", "money"]
    assert sum(map(sum, summary.confusion)) == 20 == sum(row.support for row in summary.classes)
    assert summary.seed == QUICK.seed
    assert summary.entities == ()
    rows = [LabeledWords(("game", "market", "play"), (1, 2, 0)) for _ in range(40)]
    named = replace(spec(backbone, given(backbone, []).spec.pet, Task.TOKEN_CLASSIFICATION))
    named = replace(named, head=NAMES)
    _, tagged = consumed(train(TrainingInput(backbone, named, QUICK, rows)))
    assert [row.label for row in tagged.summary.entities] == ["PER"]


def test_the_digest_of_a_spec_covers_all_that_decides(backbone: Backbone, tmp_path: Path) -> None:
    module = given(backbone, []).spec
    one = RunSpec(module, ColumnMapping(), HyperParameters(), "a" * 64)
    others = [
        replace(one, module=replace(module, backbone_digest="0" * 64)),
        replace(one, columns=ColumnMapping("t")),
        replace(one, values=HyperParameters(seed=1)),
        replace(one, values=HyperParameters(class_weights={"a": 2.0})),
        replace(one, dataset="b" * 64),
        replace(one, validation="a" * 64),
        replace(one, base="a" * 64),
    ]
    assert len({run.digest for run in (one, *others)}) == 8
    assert replace(one, module=replace(module, backbone="other-name")).digest == one.digest
    assert environment(7)["threads"] == str(torch.get_num_threads())
    assert environment(7)["states_bytes_max"] == "7"
