"""Tasks over BBC news to tell how good answers are: modules trained on exact states, as a trainer
does, and how many of their answers are right.

Whoever learns sees documents of the training half alone; labels of a sentence are its document's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import workload
from demo.news import TOPICS, Document, load_news
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.initial import initial_tensors
from smile.model.losses import sequence_loss
from smile.model.packing import pack
from smile.model.reference import VplmModule
from smile.model.specs import HeadSpec, ModuleSpec, PetKind, PetSpec, Task
from smile.model.tokenizer import TokenizedText

RANK = 24
RATE = 2e-3
BATCH_TEXTS = 32
CHUNK_TEXTS = 64


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts and the topic of each, as a number of `TOPICS`."""

    texts: tuple[TokenizedText, ...]
    topics: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What a task asks of a text.

    Attributes:
        name: For figures.
        labels: In class order.
        label_of: Topic to label.
    """

    name: str
    labels: tuple[str, ...]
    label_of: Mapping[int, int]


def one_against_others(topic: str) -> Question:
    """Whether a text is of one topic."""
    return Question(topic, ("other", topic), {n: int(t == topic) for n, t in enumerate(TOPICS)})


FIVE = Question("topic", TOPICS, {number: number for number in range(len(TOPICS))})
QUESTIONS = (FIVE, one_against_others("sport"), one_against_others("business"))


@dataclass(frozen=True, slots=True)
class Material:
    """Texts of one kind, to learn from and held out."""

    name: str
    train: Labelled
    held_out: Labelled
    questions: tuple[Question, ...] = QUESTIONS


@dataclass(frozen=True, slots=True)
class Trained:
    """A module that answers one question about one kind of text."""

    name: str
    spec: ModuleSpec
    data: bytes
    held_out: Labelled
    label_of: Mapping[int, int]

    def right(self, outputs: Sequence[NDArray[np.float32]]) -> float:
        """The share of held-out texts whose best label is theirs, 0 to 1."""
        told = [int(values.argmax()) for values in outputs]
        wanted = [self.label_of[topic] for topic in self.held_out.topics]
        return float(np.mean([a == b for a, b in zip(told, wanted, strict=True)]))


def materials(backbone: Backbone, *, sentences: int, documents: int) -> tuple[Material, ...]:
    """Sentences and documents, at most so many of each half."""
    news = load_news()
    half = max(1, sentences // 2), max(1, documents // 2)

    def of(given: Sequence[Document], most: int, *, whole: bool) -> Labelled:
        pairs = [
            (text, TOPICS.index(document.topic))
            for document in given
            for text in ((document.text,) if whole else workload.sentences_of(document.text))
        ]
        order = np.random.default_rng(7).permutation(len(pairs))[:most]
        texts = backbone.tokenizer.encode([pairs[n][0] for n in order], truncate=True)
        return Labelled(tuple(texts), tuple(pairs[n][1] for n in order))

    return (
        Material(
            "sentences",
            of(news.train, sentences, whole=False),
            of(news.held_out, half[0], whole=False),
        ),
        Material(
            "documents",
            of(news.train, documents, whole=True),
            of(news.held_out, half[1], whole=True),
        ),
    )


def train(
    backbone: Backbone,
    material: Material,
    epochs: int,
    done: Callable[[], None],
    first_layer: int | None = None,
) -> list[Trained]:
    """A module for every question about this material, over exact states computed once.

    Args:
        first_layer: Where modules begin; None: in the middle, as by default.
    """
    pet = PetSpec(PetKind.PFEIFFER, first_layer, rank=RANK).placed(backbone.shape)
    states = _states(backbone, material.train.texts, pet.first_layer or 0)
    found = []
    for question in material.questions:
        head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, question.labels)
        spec = ModuleSpec(backbone.name, backbone.digest, pet, head)
        module = VplmModule(backbone, spec, initial_tensors(spec, backbone.shape, seed=1))
        wanted = torch.tensor([question.label_of[topic] for topic in material.train.topics])
        _fit(module, material.train.texts, states, wanted, epochs)
        data = weights.encode(module.export(), spec)
        name = f"{question.name}_{material.name}"
        found.append(Trained(name, spec, data, material.held_out, question.label_of))
        done()
    return found


@torch.no_grad()
def _states(backbone: Backbone, texts: Sequence[TokenizedText], layer: int) -> list[Tensor]:
    """Exact states of each text below a layer, [tokens, H]."""
    found: list[Tensor] = []
    for start in range(0, len(texts), CHUNK_TEXTS):
        packed = pack([text.ids for text in texts[start : start + CHUNK_TEXTS]])
        states = backbone.forward_layers(backbone.embed(packed), packed, 0, layer)
        found += states.split(packed.lengths)
    return found


def _fit(
    module: VplmModule,
    texts: Sequence[TokenizedText],
    states: Sequence[Tensor],
    wanted: Tensor,
    epochs: int,
) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), RATE)
    steps = epochs * -(-len(texts) // BATCH_TEXTS)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    random = np.random.default_rng(3)
    for _ in range(epochs):
        order = random.permutation(len(texts))
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = order[start : start + BATCH_TEXTS]
            packed = pack([texts[n].ids for n in batch])
            logits = module.forward_from(torch.cat([states[n] for n in batch]), packed)
            loss = sequence_loss(logits, wanted[torch.from_numpy(batch)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
