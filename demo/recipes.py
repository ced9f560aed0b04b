"""What each of the three tenants wants: its task, PET module, rows and hyper-parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

import smile
from demo.news import TOPICS, Document, News
from smile import PetSpec, TrainOptions

PAIR = ("business", "politics")
TOKENS_MAX = 160  # a hundred words of news are about 125 tokens
ARCHIVE_DOCUMENTS = 600
QUERIES = 200
SEED = 7


@dataclass(frozen=True, slots=True)
class Recipe:
    """One tenant's model.

    Attributes:
        measure: What the reported share is the share of.
        labels: Empty for embeddings.
        rows: Documents to train on.
        held_out: Documents that no training sees.
    """

    tenant: str
    vplm: str
    task: str
    measure: str
    pet: PetSpec
    labels: tuple[str, ...]
    rows: tuple[Document, ...]
    held_out: tuple[Document, ...]
    training: TrainOptions = field(default_factory=TrainOptions)


def recipes(news: News) -> tuple[Recipe, ...]:
    """The three tenants, the five-topic one first."""
    return (
        Recipe(
            tenant="newsroom",
            vplm="topic",
            task="topic of a text, five labels",
            measure="held-out texts labelled right",
            pet=smile.Pfeiffer(rank=24, first_layer=4),
            labels=TOPICS,
            rows=news.train,
            held_out=news.held_out,
            training=_training(epochs=3, learning_rate=1e-3),
        ),
        Recipe(
            tenant="finance",
            vplm="business-or-politics",
            task="business or politics",
            measure="held-out texts labelled right",
            pet=smile.LoRA(rank=8, first_layer=4),
            labels=PAIR,
            rows=_of(PAIR, news.train)[:500],
            held_out=_of(PAIR, news.held_out),
            training=_training(epochs=3, learning_rate=2e-3),
        ),
        Recipe(
            tenant="archive",
            vplm="nearest",
            task="nearest texts by embedding",
            measure="held-out texts whose nearest archived text has their topic",
            pet=smile.Houlsby(rank=24, first_layer=4),
            labels=(),
            rows=news.train[:ARCHIVE_DOCUMENTS],
            held_out=news.held_out[:QUERIES],
            training=_training(epochs=3, learning_rate=1e-3),
        ),
    )


def _training(*, epochs: int, learning_rate: float) -> TrainOptions:
    return TrainOptions(
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=32,
        tokens_max=TOKENS_MAX,
        validation_ratio=0.05,
        seed=SEED,
    )


def _of(topics: tuple[str, ...], documents: tuple[Document, ...]) -> tuple[Document, ...]:
    return tuple(document for document in documents if document.topic in topics)
