"""Rows of a domain's own: how much nearer to exact answers they come, and what they take.

Each of BBC's five topics is a domain under a general local encoder that has learned from the other
four alone. Its encoder learns further from the topic's training documents, once for all its tables:
two deltas, all n-grams, and one delta under several least differences from the general rows.
Modules trained on exact states answer held-out texts exactly, with general rows, with each table,
and with the rows of the encoder that comes with SMILE, which has learned from all five topics.
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
from benchmarks.harness.domain import Documents, Rows, Variant, asked_of, make
from benchmarks.harness.engine import outputs, settings
from benchmarks.harness.fields import materials
from benchmarks.harness.fleet import BACKBONE
from benchmarks.harness.json_types import Figures, Json, number
from benchmarks.harness.left_out import without
from benchmarks.harness.standin import backbone, encoder_place
from benchmarks.harness.tasks import Trained, train
from demo.news import TOPICS, News, load_news
from services.processor.engine import Engine
from services.processor.materialize.options import StandInPlace
from smile.model.skip import artifact
from smile.model.skip.distill.settings import DistillSettings
from smile.model.skip.domain.creation import Kin, domain_settings
from smile.representations.delta import DeltaRules
from smile.representations.manifest import GENERAL
from smile.resources import Exactness

VARIANTS = (
    Variant("delta-30", DeltaRules(alpha=0.3)),
    Variant("delta-50", DeltaRules(alpha=0.5)),
    Variant("full", DeltaRules(alpha=1.0, difference_min=0.0)),
)
DIFFERENCES = (0.0, 0.25, 0.3, 0.35, 0.4, 0.5)
SWEPT = tuple(
    Variant(f"least-{round(100 * least)}", DeltaRules(alpha=0.5, difference_min=least))
    for least in DIFFERENCES
)
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
EPOCHS, RATE = 2, 2e-3
DOCUMENTS_MAX = 1_000  # more than a topic has

Told = Sequence[NDArray[np.int64]]  # the best label of every held-out text, by task


@dataclass(frozen=True, slots=True)
class Exam:
    """A topic's tasks, and what they are told exactly and by the encoder that comes with SMILE."""

    trained: Sequence[Trained]
    exact: Told
    included: Told

    def accuracy(self, told: Told) -> float:
        """Share of right labels, mean over tasks."""
        return _same(told, [np.array(one.held_out.topics) for one in self.trained])

    def agreement(self, told: Told) -> float:
        """Share of the exact labels, mean over tasks."""
        return _same(told, self.exact)


@dataclass(frozen=True, slots=True)
class Measured:
    """One domain's figures: its own, those of the swept tables by least difference, and quantiles
    of its rows' differences.
    """

    figures: Mapping[str, Json]
    swept: Mapping[str, Mapping[str, Json]]
    differences: Mapping[str, Json]


def measure(run: Run) -> Figures:
    """Accuracy, agreement, error and bytes, by kind of rows and domain."""
    news = load_news()
    torch.set_num_threads(settings().stream_count)
    exams = _exams(run, news)
    return figures({topic: _domain(run, news, topic, exams[topic]) for topic in TOPICS})


def figures(found: Mapping[str, Measured]) -> Figures:
    """Means over domains, and those of each."""
    means = _means([one.figures for one in found.values()])
    kinds = [_name(one) for one in VARIANTS]
    swept = [one.swept for one in found.values()]
    return {
        **means,
        **{f"gain_points_{one}": 100 * _above(means, "accuracy", one) for one in kinds},
        **{f"error_less_{one}": -_above(means, "error", one) for one in kinds},
        "domains": {topic: one.figures for topic, one in found.items()},
        "by_difference_min": {least: _means([one[least] for one in swept]) for least in swept[0]},
        **{
            f"{what}_by_difference_min": {
                topic: {least: row[what] for least, row in one.swept.items()}
                for topic, one in found.items()
            }
            for what in ("rows", "error", "agreement", "accuracy")
        },
        "differences": {topic: one.differences for topic, one in found.items()},
    }


def _means(rows: Sequence[Mapping[str, Json]]) -> dict[str, float]:
    return {key: mean(_number(row[key]) for row in rows) for key in rows[0]}


def _above(means: Mapping[str, float], what: str, kind: str) -> float:
    """How much more than with general rows."""
    return means[f"{what}_{kind}"] - means[f"{what}_general"]


def _number(value: Json) -> float:
    found = number(value)
    assert found is not None, value
    return found


def _name(variant: Variant) -> str:
    return variant.name.replace("-", "_")


def _exams(run: Run, news: News) -> dict[str, Exam]:
    """By topic: modules trained on exact states, and their answers by all that need no domain."""
    frozen, found = backbone(), dict[str, Exam]()
    engine = _engine(StandInPlace(encoder_place()))
    counts = run.choose(1_000, 200), run.choose(1_000, 100)
    for topic in TOPICS:
        trained = list[Trained]()
        kinds = materials(news, topic, frozen.tokenizer, counts)
        with run.steps(f"training modules for {topic}", len(kinds)) as done:
            for material in kinds:
                trained += train(frozen, material, run.choose(3, 2), done)
        told = {one: _told(engine, trained, exactness=one) for one in Exactness}
        found[topic] = Exam(trained, told[Exactness.EXACT], told[Exactness.MATERIALIZED])
    return found


def _domain(run: Run, news: News, topic: str, exam: Exam) -> Measured:
    """One domain, means over its tasks."""
    documents = Documents.of(news, topic, (run.choose(DOCUMENTS_MAX, 12), run.choose(12, 1)))
    with tempfile.TemporaryDirectory(prefix="smile-bench-domains-") as made_in:
        folder = Path(made_in)
        encoder = without(run, news, topic, folder)
        domains = folder / "domains"
        domains.mkdir()
        kin = Kin.of(domains, GENERAL, artifact.read(encoder), backbone())
        learning = _learning(run, kin)
        made = make(run, documents, kin, learning, (domains, (*VARIANTS, *SWEPT)))
        included = asked_of(documents, learning).error_of(artifact.read(encoder_place()))
        engine = _engine(StandInPlace(encoder, None, domains))
        told = _answered(run, engine, exam, (GENERAL, *made.tables))

    def judged(variant: Variant) -> dict[str, Json]:
        """A table without a row is none: its texts get general ones."""
        name = variant.name if variant.name in made.tables else GENERAL
        return _judged(made.tables.get(name, made.general), exam, told[name])

    kinds = {
        GENERAL: _judged(made.general, exam, told[GENERAL]),
        **{_name(one): judged(one) for one in VARIANTS},
    }
    own: dict[str, Json] = {
        "accuracy_exact": exam.accuracy(exam.exact),
        "accuracy_included": exam.accuracy(exam.included),
        "agreement_included": exam.agreement(exam.included),
        "error_included": included,
    }
    for kind, row in kinds.items():
        own |= {f"{what}_{kind}": value for what, value in row.items()}
    return Measured(
        {**own, "learning_s": made.learning_s},
        {f"{one.rules.difference_min:g}": judged(one) for one in SWEPT},
        {f"q{100 * q:g}": float(np.quantile(made.differences, q)) for q in QUANTILES},
    )


def _learning(run: Run, kin: Kin) -> DistillSettings:
    """As `smile domains create` does, in half of its passes at twice its rate."""
    threads = torch.get_num_threads()
    return domain_settings(kin.file, epochs=run.choose(EPOCHS, 1), rate=RATE, threads=threads)


def _judged(rows: Rows, exam: Exam, told: Told) -> dict[str, Json]:
    return {
        "accuracy": exam.accuracy(told),
        "agreement": exam.agreement(told),
        "error": rows.error,
        "rows": rows.rows,
        "bytes": rows.bytes,
    }


def _engine(place: StandInPlace) -> Engine:
    """A processor's engine with what stands in."""
    engine = Engine(replace(settings().engine_options, stand_ins={BACKBONE: place}))
    engine.load()
    return engine


def _answered(run: Run, engine: Engine, exam: Exam, names: Sequence[str]) -> dict[str, Told]:
    """By general rows, and by each table's domain."""
    found: dict[str, Told] = {}
    with run.steps("answering", len(names)) as done:
        for name in names:
            domain = "" if name == GENERAL else name
            found[name] = _told(engine, exam.trained, Exactness.MATERIALIZED, domain)
            done()
    return found


def _told(
    engine: Engine, trained: Sequence[Trained], exactness: Exactness, domain: str = ""
) -> list[NDArray[np.int64]]:
    found: list[NDArray[np.int64]] = []
    for one in trained:
        spec = replace(one.spec, domain=domain)
        engine.check(spec, exactness)
        module = engine.load_module(spec, one.data)
        values = outputs(engine, module, one.held_out.texts, exactness, domain)
        found.append(np.array([int(each.argmax()) for each in values]))
    return found


def _same(told: Told, wanted: Told) -> float:
    """Share of equal labels, mean over tasks."""
    return mean(float((a == b).mean()) for a, b in zip(told, wanted, strict=True))


if __name__ == "__main__":
    script("domains", measure)
