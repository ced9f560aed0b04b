"""A domain as it is made and served: learned once, and a table for each rule of which rows it has.

How far states are from exact ones is measured over the rows of the tables themselves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness.command import Run
from benchmarks.harness.encoders import ids_of
from benchmarks.harness.fields import corpus
from benchmarks.harness.left_out import distilled
from benchmarks.harness.standin import backbone
from demo.news import News
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.packing import PackedTokens
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.distill.corpus import Pieces, cut
from smile.model.skip.distill.documents import Document, served_texts
from smile.model.skip.distill.measures import measure as measure_states
from smile.model.skip.distill.run import Distillation, Job
from smile.model.skip.distill.settings import DistillSettings
from smile.model.skip.distill.teacher import Teacher
from smile.model.skip.domain.creation import Kin
from smile.model.skip.domain.mixing import Mix
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import EncoderForm, outside_of
from smile.model.skip.ngrams import ngram_keys
from smile.model.skip.rows import EncoderRows
from smile.representations import places
from smile.representations.build import TableWish, count_texts
from smile.representations.counting import CorpusCounter, NgramCounts
from smile.representations.delta import DeltaRules, Encoders, build_delta, differences
from smile.representations.domains import EffectiveRows
from smile.representations.manifest import GENERAL, TableManifest
from smile.representations.snapshot import Table

BUDGET_BYTES = 1 << 40


@dataclass(frozen=True, slots=True)
class Variant:
    """A table of a domain; its name is the domain's id in the engine."""

    name: str
    rules: DeltaRules


@dataclass(frozen=True, slots=True)
class Documents:
    """A topic's documents, to learn from and to compare states on."""

    topic: str
    learned: Sequence[Document]
    held_out: Sequence[Document]

    @classmethod
    def of(cls, news: News, topic: str, most: tuple[int, int]) -> Documents:
        """At most so many to learn from, and held out."""
        learned, held_out = most
        return cls(
            topic, corpus(news.train, topic, learned), corpus(news.held_out, topic, held_out)
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """A table's size, and the error of held-out states over it."""

    rows: int
    bytes: int
    error: float


@dataclass(frozen=True, slots=True)
class Made:
    """Tables of a topic by name, but those without a row; what general rows do; how learning went.

    Attributes:
        differences: Of the most frequent n-grams' rows from general ones, in lengths of those [n].
    """

    tables: Mapping[str, Rows]
    general: Rows
    differences: NDArray[np.float32]
    learning_s: float


@dataclass(frozen=True, slots=True)
class Served:
    """States from rows as they are served; implements `smile.model.skip.distill.measures.Below`."""

    encoder: LocalEncoder
    rows: EffectiveRows

    @property
    def form(self) -> EncoderForm:
        return self.encoder.form

    def __call__(self, packed: PackedTokens, keys: Tensor | None = None) -> Tensor:
        asked = ngram_keys(packed, self.encoder.outside) if keys is None else keys
        different, numbers = torch.unique(asked, return_inverse=True)
        row_format = RowFormat(RowDtype.FLOAT16, self.form.hidden)
        rows = row_format.unpack(self.rows.packed(different.numpy(), row_format))
        return self.encoder.merge(torch.from_numpy(rows).index_select(0, numbers), packed)


@dataclass(frozen=True, slots=True)
class Asked:
    """Held-out texts and the exact states of them that others are compared with."""

    teacher: Teacher
    pieces: Pieces

    def error(self, file: EncoderFile, rows: EffectiveRows) -> float:
        """Of the last layer's states, in variances of theirs."""
        frozen = backbone()
        below = Served(LocalEncoder.of(file, frozen), rows)
        told = measure_states(below, self.teacher, self.pieces, 0)
        return told[f"error_layer_{frozen.shape.layers}"]

    def error_of(self, file: EncoderFile) -> float:
        """The same of an encoder's own rows."""
        return self.error(file, EffectiveRows(EncoderRows.of(file, backbone())))


def asked_of(documents: Documents, settings: DistillSettings) -> Asked:
    """Over a topic's held-out documents."""
    frozen = backbone()
    pieces = cut(documents.held_out, frozen.tokenizer, settings.passage_tokens)
    return Asked(Teacher.of(frozen, settings.boundary), pieces)


def make(
    run: Run,
    documents: Documents,
    kin: Kin,
    settings: DistillSettings,
    place: tuple[Path, Sequence[Variant]],
) -> Made:
    """Learns once, and writes all tables, each as a domain of one folder."""
    (folder, variants), frozen = place, backbone()
    outside = outside_of(frozen.embeddings.position_offset)
    counted = count_texts(served_texts(documents.learned), ids_of, outside)
    alphas = tuple(dict.fromkeys(one.rules.alpha for one in variants))
    file, seconds = _learned(run, documents, kin, settings, Mix.of(kin.rows, counted[1], alphas))
    encoders = Encoders(EncoderRows.of(file, frozen), kin.rows)
    off = differences(counted[1].covering(DeltaRules().alpha).keys, encoders, _format())
    asked = asked_of(documents, settings)
    general = Rows(0, 0, asked.error(kin.file, kin.rows))
    tables: dict[str, Rows] = {}
    with run.steps(f"tables of {documents.topic}", len(variants)) as done:
        for one in variants:
            if one.rules.difference_min <= off.max():
                stated = _table(folder / one.name, counted, encoders, one.rules)
                delta = Table.open(folder / one.name / places.TABLE)
                over = EffectiveRows(kin.rows.general, (delta,))
                tables[one.name] = Rows(stated.rows, stated.bytes, asked.error(kin.file, over))
            done()
    return Made(tables, general, off, seconds)


def _learned(
    run: Run, documents: Documents, kin: Kin, settings: DistillSettings, mix: Mix
) -> tuple[EncoderFile, float]:
    """The domain's encoder, and seconds."""
    learned, measured = (
        cut(some, backbone().tokenizer, settings.passage_tokens)
        for some in (documents.learned, documents.held_out[:1])  # measured over tables, below
    )
    topic = documents.topic
    with tempfile.TemporaryDirectory(prefix="smile-bench-learning-") as work:
        job = Job(backbone(), settings, learned, measured, topic, Path(work), kin.file, mix)
        done = distilled(run, Distillation(job), f"learning {topic}").file
    return done, done.facts.seconds


def _table(
    folder: Path,
    counted: tuple[CorpusCounter, NgramCounts],
    encoders: Encoders,
    rules: DeltaRules,
) -> TableManifest:
    wish = TableWish(
        _format(), BUDGET_BYTES, backbone().info.vocab, domain=folder.name, parent=GENERAL
    )
    folder.mkdir()
    return build_delta(folder / places.TABLE, counted, encoders, wish, rules)


def _format() -> RowFormat:
    return RowFormat(RowDtype.FLOAT16, backbone().shape.hidden)
