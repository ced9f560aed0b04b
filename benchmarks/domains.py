"""Rows of a domain's own: how much nearer to exact answers they come, and what they take.

Each of BBC's five topics is a domain under the general local encoder. Its encoder learns further
from training documents of the topic, once for three tables: two deltas, and all n-grams. Modules
trained on exact states answer held-out texts exactly, with general rows, and with each table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness.command import Run, script
from benchmarks.harness.engine import outputs, settings
from benchmarks.harness.fields import corpus, materials
from benchmarks.harness.fleet import BACKBONE
from benchmarks.harness.json_types import Figures, Json, number
from benchmarks.harness.standin import backbone, encoder_place
from benchmarks.harness.tasks import Trained, train
from demo.news import TOPICS, News, load_news
from services.processor.engine import Engine
from services.processor.materialize.options import StandInPlace
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.distill.corpus import cut
from smile.model.skip.distill.documents import Document, served_texts
from smile.model.skip.distill.measures import measure as measure_states
from smile.model.skip.distill.run import Distillation, Job, Phase
from smile.model.skip.distill.teacher import Teacher
from smile.model.skip.domain.creation import Kin, domain_settings
from smile.model.skip.domain.mixing import AsServed, Mix
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import outside_of
from smile.model.skip.rows import EncoderRows
from smile.representations import places
from smile.representations.build import TableWish, count_texts
from smile.representations.delta import DeltaRules, Encoders, build_delta
from smile.representations.manifest import GENERAL, TableManifest
from smile.resources import Exactness

BUDGET_BYTES = 1 << 40
ERROR_DOCUMENTS = 8  # held out, whose states are compared


@dataclass(frozen=True, slots=True)
class Variant:
    """A table of a domain."""

    name: str
    rules: DeltaRules


VARIANTS = (
    Variant("delta_30", DeltaRules(alpha=0.3)),
    Variant("delta_50", DeltaRules(alpha=0.5)),
    Variant("full", DeltaRules(alpha=1.0, difference_min=0.0)),
)
EXACT = "exact"
ALPHAS = {"general": 0.0, **{one.name: one.rules.alpha for one in VARIANTS}}


@dataclass(frozen=True, slots=True)
class Documents:
    """A topic's documents, to learn from and to compare states on."""

    topic: str
    learned: Sequence[Document]
    held_out: Sequence[Document]

    @classmethod
    def of(cls, news: News, topic: str, most: int) -> Documents:
        """At most so many to learn from."""
        return cls(
            topic,
            corpus(news.train, topic, most),
            corpus(news.held_out, topic, ERROR_DOCUMENTS),
        )


@dataclass(frozen=True, slots=True)
class Made:
    """A topic's tables by variant, the error of held-out states by kind of rows, and how long the
    encoder learned.
    """

    tables: Mapping[str, TableManifest]
    errors: Mapping[str, float]
    seconds: float


def measure(run: Run) -> Figures:
    """Accuracy, agreement, error and bytes, by kind of rows and domain."""
    news = load_news()
    torch.set_num_threads(settings().stream_count)
    with tempfile.TemporaryDirectory(prefix="smile-bench-domains-") as made_in:
        folder = Path(made_in)
        kin = Kin.of(folder, GENERAL, artifact.read(encoder_place()), backbone())
        most = run.choose(200, 30)
        made = {topic: _made(run, Documents.of(news, topic, most), kin, folder) for topic in TOPICS}
        trained = {topic: _trained(run, news, topic) for topic in TOPICS}
        labels = _answered(run, trained, folder)
    by_domain: dict[str, dict[str, Json]] = {}
    for topic in TOPICS:
        own = {kind: labels[topic, kind] for kind in (EXACT, *ALPHAS)}
        by_domain[topic] = _of_domain(made[topic], trained[topic], own)
    means = {
        key: mean(_number(one[key]) for one in by_domain.values()) for key in by_domain[TOPICS[0]]
    }
    return {
        **means,
        "gain_points_delta_50": _gain(by_domain, "delta_50"),
        "gain_points_full": _gain(by_domain, "full"),
        "domains": {topic: dict(figures) for topic, figures in by_domain.items()},
        "encoder_digest": made[TOPICS[0]].tables["full"].parent_encoder,
    }


def _gain(by_domain: Mapping[str, Mapping[str, Json]], kind: str) -> float:
    """Points of accuracy over general rows, mean over domains."""
    pairs = [(one[f"accuracy_{kind}"], one["accuracy_general"]) for one in by_domain.values()]
    return 100 * mean(_number(own) - _number(general) for own, general in pairs)


def _number(value: Json) -> float:
    found = number(value)
    assert found is not None, value
    return found


def _made(run: Run, documents: Documents, kin: Kin, folder: Path) -> Made:
    """Learns once, and writes all tables, each as a domain of one folder."""
    frozen, topic = backbone(), documents.topic
    outside = outside_of(frozen.embeddings.position_offset)
    counted = count_texts(served_texts(documents.learned), token_ids, outside)
    mix = Mix.of(kin.rows, counted[1], tuple(one.rules.alpha for one in VARIANTS))
    learning = domain_settings(
        kin.file, epochs=run.choose(2, 1), near_share=1.0, threads=torch.get_num_threads()
    )
    learned, measured = (
        cut(some, frozen.tokenizer, learning.passage_tokens)
        for some in (documents.learned, documents.held_out)
    )
    with tempfile.TemporaryDirectory(prefix="smile-bench-learning-") as work:
        job = Job(frozen, learning, learned, measured, topic, Path(work), kin.file, mix)
        done = _distilled(run, Distillation(job), topic)
    encoders = Encoders(EncoderRows.of(done, frozen), kin.rows)
    tables = {
        one.name: build_delta(
            folder / domain_of(topic, one.name) / places.TABLE,
            counted,
            encoders,
            _wish(domain_of(topic, one.name)),
            one.rules,
        )
        for one in VARIANTS
    }
    teacher, encoder = Teacher.of(frozen, learning.boundary), LocalEncoder.of(done, frozen)
    last = f"error_layer_{frozen.shape.layers}"
    told = done.facts.measures
    errors = {"general": told[f"parent_{last}"], "full": told[last]}
    for name in ALPHAS.keys() - errors.keys():
        served = AsServed(encoder, mix, ALPHAS[name])
        errors[name] = measure_states(served, teacher, measured, 0)[last]
    return Made(tables, errors, done.facts.seconds)


def domain_of(topic: str, variant: str) -> str:
    """The id of a topic's table of a kind; empty for general rows."""
    return "" if variant == "general" else f"{topic}-{variant.replace('_', '-')}"


def token_ids(texts: Sequence[str], /) -> list[list[int]]:
    return [text.ids for text in backbone().tokenizer.encode(texts, truncate=True)]


def _wish(name: str) -> TableWish:
    frozen = backbone()
    row_format = RowFormat(RowDtype.FLOAT16, frozen.shape.hidden)
    return TableWish(row_format, BUDGET_BYTES, frozen.info.vocab, domain=name, parent=GENERAL)


def _distilled(run: Run, running: Distillation, topic: str) -> EncoderFile:
    """Learns, with a bar of steps."""
    done = 0
    with run.steps(f"learning {topic}", running.steps) as step:
        for event in running.events():
            if event.phase is Phase.LEARNING and event.done > done:
                done = event.done
                step()
    return running.result().file


def _trained(run: Run, news: News, topic: str) -> list[Trained]:
    """A module for each task of a topic."""
    frozen, found = backbone(), list[Trained]()
    counts = run.choose(1_000, 300), run.choose(500, 150)
    kinds = materials(news, topic, frozen.tokenizer, counts)
    with run.steps(f"training modules for {topic}", len(kinds)) as done:
        for material in kinds:
            found += train(frozen, material, run.choose(3, 2), done)
    return found


def _answered(
    run: Run, trained: Mapping[str, Sequence[Trained]], folder: Path
) -> dict[tuple[str, str], list[NDArray[np.int64]]]:
    """The best label of every held-out text, by topic and kind of rows, a row for each task. One
    processor's engine has all domains at once.
    """
    options = settings().engine_options
    place = StandInPlace(encoder_place(), None, folder)
    engine = Engine(replace(options, stand_ins={BACKBONE: place}))
    engine.load()
    found: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
    with run.steps("answering", len(TOPICS) * (1 + len(ALPHAS))) as done:
        for topic, modules in trained.items():
            for kind in (EXACT, *ALPHAS):
                exactness = Exactness.EXACT if kind == EXACT else Exactness.MATERIALIZED
                domain = "" if kind == EXACT else domain_of(topic, kind)
                found[topic, kind] = [_labels(engine, one, exactness, domain) for one in modules]
                done()
    return found


def _labels(
    engine: Engine, trained: Trained, exactness: Exactness, domain: str
) -> NDArray[np.int64]:
    spec = replace(trained.spec, domain=domain)
    engine.check(spec, exactness)
    module = engine.load_module(spec, trained.data)
    values = outputs(engine, module, trained.held_out.texts, exactness, domain)
    return np.array([int(one.argmax()) for one in values])


def _of_domain(
    made: Made, trained: Sequence[Trained], labels: Mapping[str, Sequence[NDArray[np.int64]]]
) -> dict[str, Json]:
    """Figures of one domain: means over its tasks."""
    exact = labels[EXACT]
    right = [np.array(one.held_out.topics) for one in trained]
    found: dict[str, Json] = {
        f"accuracy_{kind}": _same(labels[kind], right) for kind in (EXACT, *ALPHAS)
    }
    for kind in ALPHAS:
        found[f"agreement_{kind}"] = _same(labels[kind], exact)
        found[f"error_{kind}"] = made.errors[kind]
        table = made.tables.get(kind)
        found[f"bytes_{kind}"] = 0 if table is None else table.bytes
        found[f"rows_{kind}"] = 0 if table is None else table.rows
    return {**found, "learning_s": made.seconds}


def _same(told: Sequence[NDArray[np.int64]], wanted: Sequence[NDArray[np.int64]]) -> float:
    """Share of equal labels, mean over tasks."""
    return mean(float((a == b).mean()) for a, b in zip(told, wanted, strict=True))


if __name__ == "__main__":
    script("domains", measure)
