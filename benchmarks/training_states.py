"""Training on materialised states: what the first epoch takes, and how right modules are after.

    python -m benchmarks.training_states [--quick] [--record]

MiniLM, BBC's five topics, sentences and whole documents, halves split by document; the local
encoder is the one that comes with SMILE, or that `SMILE_PROCESSOR_SKIP` names. Modules are trained
by the trainer's own loop on exact, materialised and mixed states, without a table: every row is
computed. Each is scored on held-out texts both as exact answers would be and as materialised ones.
Times are processor time, the least of several repetitions that take turns: of all up to the end of
the first epoch, texts tokenised and states computed included, validation not.

JSON keys: `first_epoch_s` by kind of text and of states, `first_epoch_speedup_sentences` and
`first_epoch_speedup_documents` (exact over materialised), `states_s` (what lies below the module
alone), and `accuracy` by kind of text, states trained on and states answered on, each a mean over
seeds; `accuracy_spread` is the difference between its least and most.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np

from benchmarks.harness.command import Run, script
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.repeat import interleaved
from benchmarks.harness.standin import backbone, encoder_place
from benchmarks.harness.workload import sentences_of
from demo.news import TOPICS, Document, load_news
from services.trainer.data.examples import LabeledText
from services.trainer.standins import StandIn
from services.trainer.training.loop import Training
from services.trainer.training.loop_events import EpochDone, Planned
from services.trainer.training.lowering import lowering
from services.trainer.training.precision import Precision
from services.trainer.training.run import Trained, TrainingInput
from services.trainer.training.states import StatesRoom
from smile.limits import GIB
from smile.model.ngram_rows import RowDtype
from smile.model.skip import artifact
from smile.model.specs import HeadSpec, ModuleSpec, PetKind, PetSpec, Task
from smile.resources import HyperParameters, TrainingStates
from smile.standins import StandInPlace

RANK = 24
TOKENS_MAX = 256
EXACT, MATERIALIZED = TrainingStates.EXACT, TrainingStates.MATERIALIZED
METRIC = "validation_accuracy"


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows to train on, and held-out ones: few enough to be scored on both kinds of states."""

    training: tuple[LabeledText, ...]
    held_out: tuple[LabeledText, ...]


def texts_of(run: Run) -> Mapping[str, Texts]:
    """By kind."""
    news = load_news()
    sizes = {
        "sentences": (run.choose(3_000, 600), run.choose(700, 140)),
        "documents": (run.choose(800, 160), run.choose(180, 36)),
    }

    def rows(given: Sequence[Document], most: int, *, whole: bool) -> tuple[LabeledText, ...]:
        found = [
            LabeledText(text, TOPICS.index(document.topic))
            for document in given
            for text in ((document.text,) if whole else sentences_of(document.text))
        ]
        order = np.random.default_rng(11).permutation(len(found))[:most]
        return tuple(found[number] for number in order)

    return {
        kind: Texts(
            rows(news.train, training, whole=kind == "documents"),
            rows(news.held_out, held_out, whole=kind == "documents"),
        )
        for kind, (training, held_out) in sizes.items()
    }


def lesson(texts: Texts, states: TrainingStates, seed: int, epochs: int) -> TrainingInput:
    """A training of the five topics."""
    frozen, place = backbone(), encoder_place()
    pet = PetSpec(PetKind.PFEIFFER, rank=RANK).placed(frozen.shape)
    head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, TOPICS)
    spec = ModuleSpec(frozen.name, frozen.digest, pet, head)
    values = HyperParameters(epochs=epochs, tokens_max=TOKENS_MAX, seed=seed, states=states)
    stand_in = StandIn(artifact.read(place), RowDtype.FLOAT16, StandInPlace(place))
    return TrainingInput(
        backbone=frozen,
        spec=spec,
        values=values,
        examples=texts.training,
        validation=texts.held_out,
        room=StatesRoom(8 * GIB),
        lower=lowering(stand_in, frozen, Precision.FLOAT32),
    )


def first_epoch(given: TrainingInput) -> tuple[float, float]:
    """Processor seconds up to the end of the first epoch, and of these up to its first step."""
    alone = replace(given, validation=(), values=replace(given.values, validation_ratio=0.0))
    events = Training(alone).events()
    started, prepared = time.process_time(), 0.0
    for event in events:
        if isinstance(event, Planned):
            prepared = time.process_time() - started
        if isinstance(event, EpochDone):
            break
    taken = time.process_time() - started
    events.close()
    return taken, prepared


def trained(given: TrainingInput) -> Trained:
    """All epochs."""
    events = Training(given).events()
    while True:
        try:
            next(events)
        except StopIteration as end:
            found: Trained = end.value
            return found


def measure(run: Run) -> Figures:
    """The keys of the claim."""
    kinds = texts_of(run)
    times = {kind: _times(run, kind, texts) for kind, texts in kinds.items()}
    accuracy = {kind: _accuracy(run, kind, texts) for kind, texts in kinds.items()}
    speedups: dict[str, Json] = {
        f"first_epoch_speedup_{kind}": found[EXACT][0] / found[MATERIALIZED][0]
        for kind, found in times.items()
    }
    return {
        **speedups,
        "first_epoch_s": _plain(
            {kind: {s: t[0] for s, t in f.items()} for kind, f in times.items()}
        ),
        "states_s": _plain({kind: {s: t[1] for s, t in f.items()} for kind, f in times.items()}),
        "accuracy": _plain(
            {kind: {s: found[0] for s, found in f.items()} for kind, f in accuracy.items()}
        ),
        "accuracy_spread": _plain(
            {kind: {s: found[1] for s, found in f.items()} for kind, f in accuracy.items()}
        ),
        "rows": _plain({kind: {"training": len(t.training)} for kind, t in kinds.items()}),
        "encoder_digest": artifact.read(encoder_place()).digest,
    }


def _times(run: Run, kind: str, texts: Texts) -> Mapping[TrainingStates, tuple[float, float]]:
    found: dict[TrainingStates, list[tuple[float, float]]] = {one: [] for one in TrainingStates}

    def time_of(states: TrainingStates) -> float:
        found[states].append(first_epoch(lesson(texts, states, 0, 1)))
        return found[states][-1][0]

    repetitions = run.choose(3, 2)
    variants = {str(one): (lambda one=one: time_of(one)) for one in TrainingStates}
    with run.steps(f"first epochs of {kind}", repetitions * len(variants)) as done:
        interleaved(variants, repetitions, done)
    return {states: min(taken) for states, taken in found.items()}


def _accuracy(run: Run, kind: str, texts: Texts) -> Mapping[str, tuple[float, float]]:
    """By `{trained on}_{answered on}`: the mean over seeds, and how far they are apart."""
    seeds, epochs = range(run.choose(3, 1)), run.choose(4, 3)
    shares: dict[str, list[float]] = {}
    with run.steps(f"training on {kind}", len(seeds) * len(TrainingStates)) as done:
        for seed in seeds:
            for states in TrainingStates:
                metrics = trained(lesson(texts, states, seed, epochs)).metrics
                for answered in (EXACT, MATERIALIZED):
                    name = METRIC if answered is states else f"{METRIC}_{answered}"
                    shares.setdefault(f"{states}_{answered}", []).append(metrics[name])
                done()
    return {name: (mean(found), max(found) - min(found)) for name, found in shares.items()}


def _plain(table: Mapping[str, Mapping[str, float]]) -> dict[str, Json]:
    return {kind: {str(name): value for name, value in row.items()} for kind, row in table.items()}


if __name__ == "__main__":
    script("training_states", measure)
