"""The trainable module itself: its parameters, its export, where gradients stop, that it learns."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from smile.model import layout, losses
from smile.model.backbone import Backbone
from smile.model.initial import StoredArray, initial_tensors
from smile.model.metrics import IGNORED_LABEL
from smile.model.packing import PackedTokens, pack
from smile.model.reference import VplmModule
from smile.model.specs import (
    SERVED,
    Choice,
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Projection,
    Task,
)
from smile.model.toy_modules import random_tensors

LABELS = ("a", "b", "c")
TOKENS = HeadSpec(Task.TOKEN_CLASSIFICATION, LABELS)
SEQUENCE = HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS)


def spec_of(
    backbone: Backbone, pet: PetSpec, head: HeadSpec, dtype: DType = DType.FLOAT32
) -> ModuleSpec:
    return ModuleSpec(backbone.name, backbone.digest, pet.placed(backbone.shape), head, dtype)


def module_of(backbone: Backbone, pet: PetSpec, head: HeadSpec = TOKENS) -> VplmModule:
    spec = spec_of(backbone, pet, head)
    return VplmModule(backbone, spec, random_tensors(spec, backbone.shape, seed=1))


KINDS = {
    PetKind.NONE: PetSpec(PetKind.NONE),
    PetKind.PFEIFFER: PetSpec(PetKind.PFEIFFER, None, 8),
    PetKind.HOULSBY: PetSpec(PetKind.HOULSBY, None, 8),
    PetKind.LORA: PetSpec(PetKind.LORA, None, 4, 8.0, (Projection.QUERY, Projection.VALUE)),
    PetKind.BITFIT: PetSpec(PetKind.BITFIT),
    PetKind.DIFF_PRUNING: PetSpec(PetKind.DIFF_PRUNING, density=0.02),
    PetKind.MASK_BERT: PetSpec(PetKind.MASK_BERT, density=0.05),
}


@pytest.mark.parametrize("kind", SERVED)
def test_parameters_are_the_layouts_tensors_alone(toy: Backbone, kind: PetKind) -> None:
    module = module_of(toy, KINDS[kind], SEQUENCE)
    expected = layout.tensors(module.spec, toy.shape)
    got = {name.replace("/", "."): tuple(p.shape) for name, p in module.named_parameters()}
    assert got == {
        name: (tensor.entries,) if tensor.dtype is Choice.BITS else tensor.shape
        for name, tensor in expected.items()
        if tensor.dtype is not Choice.INDICES
    }
    assert not toy.embeddings.word.requires_grad


@pytest.mark.parametrize("kind", SERVED)
@pytest.mark.parametrize("dtype", list(DType))
def test_export_gives_back_the_stored_bits(toy: Backbone, kind: PetKind, dtype: DType) -> None:
    spec = spec_of(toy, KINDS[kind], SEQUENCE, dtype)
    tensors = random_tensors(spec, toy.shape, seed=3)
    assert_same_bits(VplmModule(toy, spec, tensors).export(), tensors)


def assert_same_bits(got: dict[str, StoredArray], expected: dict[str, StoredArray]) -> None:
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("kind", SERVED)
def test_initial_tensors_answer_as_the_bare_backbone(toy: Backbone, kind: PetKind) -> None:
    packed = pack([[5, 9, 44], [7] * 20])
    head = HeadSpec(Task.EMBEDDING)
    spec, bare = spec_of(toy, KINDS[kind], head), spec_of(toy, PetSpec(PetKind.NONE), head)
    with torch.no_grad():
        got = VplmModule(toy, spec, initial_tensors(spec, toy.shape, 0))(packed)
        expected = VplmModule(toy, bare, {})(packed)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_back_propagation_stops_at_the_boundary(toy: Backbone) -> None:
    module = module_of(toy, PetSpec(PetKind.HOULSBY, 2, 8))
    packed = pack([[5, 9, 44], [7] * 20])
    assert module.boundary == 2
    states = module.boundary_states(packed)
    assert not states.requires_grad and states.grad_fn is None
    torch.testing.assert_close(
        states, toy.forward_layers(toy.embed(packed), packed, 0, 2), rtol=0, atol=0
    )
    torch.testing.assert_close(module.forward_from(states, packed), module(packed))


def test_without_a_pet_module_only_the_head_is_differentiated(toy: Backbone) -> None:
    module = module_of(toy, PetSpec(PetKind.NONE), SEQUENCE)
    assert module.boundary == toy.shape.layers


@dataclass(frozen=True)
class Lesson:
    """A separable toy task: the class is in one token of each text."""

    packed: PackedTokens
    texts: Tensor  # [texts] classes
    tokens: Tensor  # [tokens] classes, -100 at all but the telling one

    @classmethod
    def make(cls, count: int = 24) -> Lesson:
        source = random.Random(11)
        rows, classes, tokens = [], [], []
        for index in range(count):
            label = index % 3
            row = [2] + [source.randrange(100, 140) for _ in range(source.randint(4, 12))] + [3]
            place = source.randrange(1, len(row) - 1)
            row[place] = 60 + label
            rows.append(row)
            classes.append(label)
            tokens += [label if at == place else IGNORED_LABEL for at in range(len(row))]
        return cls(pack(rows), torch.tensor(classes), torch.tensor(tokens))


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        (kind, task)
        for kind in SERVED
        for task in Task
        if (kind, task) != (PetKind.NONE, Task.EMBEDDING)  # which has nothing to train
    ],
)
def test_training_reaches_every_answer_of_a_separable_task(
    toy: Backbone, kind: PetKind, task: Task
) -> None:
    head = HeadSpec(task, () if task is Task.EMBEDDING else LABELS)
    spec = spec_of(toy, KINDS[kind], head, DType.FLOAT16)
    module = VplmModule(toy, spec, initial_tensors(spec, toy.shape, 0))
    lesson = Lesson.make()
    states = module.boundary_states(lesson.packed)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.02)
    curve = []
    for _ in range(120):
        loss = lesson_loss(module, states, lesson)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        curve.append(loss.item())
    # A perfect anchor shares its probability among its 7 equal positives.
    least = math.log(7) if task is Task.EMBEDDING else 0.0
    assert curve[-1] - least < 0.1 * (curve[0] - least)
    stored = VplmModule(toy, spec, module.export())
    assert accuracy(stored, states, lesson) == 1.0


def lesson_loss(module: VplmModule, states: Tensor, lesson: Lesson) -> Tensor:
    answer = module.forward_from(states, lesson.packed)
    if module.spec.head.task is Task.SEQUENCE_CLASSIFICATION:
        return losses.sequence_loss(answer, lesson.texts)
    if module.spec.head.task is Task.TOKEN_CLASSIFICATION:
        return losses.token_loss(answer, lesson.tokens)
    return losses.contrastive_loss(answer, lesson.texts)


@torch.no_grad()
def accuracy(module: VplmModule, states: Tensor, lesson: Lesson) -> float:
    answer = module.forward_from(states, lesson.packed)
    if module.spec.head.task is Task.EMBEDDING:
        similarity = (answer @ answer.T).fill_diagonal_(-1)
        right = lesson.texts[similarity.argmax(1)] == lesson.texts
    elif module.spec.head.task is Task.TOKEN_CLASSIFICATION:
        told = lesson.tokens != IGNORED_LABEL
        right = answer.argmax(1)[told] == lesson.tokens[told]
    else:
        right = answer.argmax(1) == lesson.texts
    return float(np.mean(right.numpy()))
