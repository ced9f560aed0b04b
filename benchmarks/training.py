"""Full fine-tuning, PEFT's LoRA and SMILE on the same texts, each to its best held-out accuracy.

Every training is a process of its own, and they take turns. Time and memory count from when a
process has imported and loaded everything; an epoch's time includes its evaluation, and SMILE's
first one what it computes once. What is held out comes from documents that no training sees.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import cast

from benchmarks.harness.command import Run, script
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.repeat import interleaved, paired_ratio
from benchmarks.harness.worker import ROOT
from benchmarks.harness.workload import sentences_of
from benchmarks.peers.environments import python_of
from benchmarks.trainers.protocol import Lesson
from demo.news import TOPICS, Document, load_news
from services.trainer.worker.memory import TUNABLES
from smile.backbone_config import BACKBONES_DEFAULT
from smile.embedded.child import leashed
from smile.errors import FailedPrecondition
from smile.model.sources import parse_sources

OURS = "smile"
SEED = 5
BATCH = 32
TOKENS_MAX = 160
TRAINING_S_MAX = 1500.0
TOLD_CHARS_MAX = 600


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to train: its program, and the settings it does well with.

    Attributes:
        environment: Of `benchmarks.peers.environments`; `OURS`: SMILE's own.
        arguments: Of the program, after the lesson.
    """

    key: str
    environment: str
    program: str
    arguments: tuple[str, ...]
    epochs: int
    learning_rate: float


CONTENDERS = (
    Contender("full", "huggingface", "hugging_face", ("full",), 3, 5e-5),
    Contender("peft", "huggingface", "hugging_face", ("peft",), 4, 1e-3),
    Contender("smile", OURS, "smile_trainer", (), 4, 2e-3),
)
Row = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows of one length of text; `suffix` is what their keys end with."""

    suffix: str
    training: tuple[Row, ...]
    held_out: tuple[Row, ...]

    @property
    def name(self) -> str:
        return self.suffix.strip("_") or "sentences"


@dataclass(frozen=True, slots=True)
class Trained:
    """What one training reached.

    Attributes:
        seconds: Until the end of the epoch with the best accuracy, the first of those.
        accuracy: On what is held out; SMILE's of the weights as they are stored.
        peak_bytes: The most memory it had, without what it had before the first text.
    """

    seconds: float
    accuracy: float
    peak_bytes: int
    peak_bytes_absolute: int
    told: Mapping[str, Json]

    @classmethod
    def of(cls, told: Mapping[str, Json]) -> Trained:
        epochs = cast("Sequence[tuple[float, float]]", told["epochs"])
        seconds, accuracy = max(epochs, key=lambda epoch: epoch[1])
        stored = told.get("stored_accuracy", accuracy)
        return cls(
            seconds,
            cast("float", stored),
            cast("int", told["peak_bytes"]),
            cast("int", told["peak_bytes_absolute"]),
            told,
        )


def measure(run: Run) -> Figures:
    """The keys of the claim: of sentences, and with their suffix of documents."""
    repetitions = run.choose(2, 1)
    for texts in texts_of(run):
        turns = repetitions * len(CONTENDERS)
        with (
            tempfile.TemporaryDirectory(prefix="smile-bench-") as folder,
            run.steps(f"training on {len(texts.training)} texts, in turns", turns) as done,
        ):
            trained = interleaved(
                {one.key: partial(_kept, run, texts, one, Path(folder)) for one in CONTENDERS},
                repetitions,
                done,
            )
        rows = {"rows": len(texts.training), "rows_held_out": len(texts.held_out)}
        every = {**figures(trained), **rows}
        run.keep({f"{key}{texts.suffix}": value for key, value in every.items()})
    return {**run.kept, "repetitions": repetitions}


def _kept(run: Run, texts: Texts, one: Contender, folder: Path) -> Trained:
    """`train`, and what it told is kept."""
    trained = train(one, lesson_of(one, texts, run), folder)
    told = cast("dict[str, dict[str, list[Json]]]", run.kept.setdefault("trainings", {}))
    told.setdefault(texts.name, {}).setdefault(one.key, []).append(dict(trained.told))
    run.say(f"{texts.name}, {one.key}: {trained.seconds:.1f} s, accuracy {trained.accuracy:.3f}")
    return trained


def figures(trained: Mapping[str, Sequence[Trained]]) -> dict[str, Json]:
    """The promised keys from the trainings of each contender, one per repetition."""

    def of(key: str, name: str) -> list[float]:
        return [float(getattr(one, name)) for one in trained[key]]

    seconds = {key: of(key, "seconds") for key in trained}
    accuracy = {key: median(of(key, "accuracy")) for key in trained}
    peak = {key: of(key, "peak_bytes") for key in trained}
    return {
        **{f"{key}_seconds": median(values) for key, values in seconds.items()},
        "speedup_vs_full": paired_ratio(seconds["full"], seconds["smile"]),
        "speedup_vs_peft": paired_ratio(seconds["peft"], seconds["smile"]),
        **{f"{key}_accuracy": value for key, value in accuracy.items()},
        "accuracy_loss": accuracy["full"] - accuracy["smile"],
        **{f"{key}_peak_bytes": round(median(values)) for key, values in peak.items()},
        **{
            f"{key}_peak_bytes_absolute": round(median(of(key, "peak_bytes_absolute")))
            for key in trained
        },
        "memory_saving": 1 - paired_ratio(peak["smile"], peak["full"]),
    }


def texts_of(run: Run) -> tuple[Texts, Texts]:
    """Sentences, and documents: each with what it is tested on from other documents."""
    news = load_news()
    held_out = _sentences(news.held_out)
    asked = {text for text, _ in held_out}  # some quotes stand in several documents
    train = tuple(row for row in _sentences(news.train) if row[0] not in asked)
    documents = tuple((one.text, TOPICS.index(one.topic)) for one in news.train)
    held_out_documents = tuple((one.text, TOPICS.index(one.topic)) for one in news.held_out)
    return (
        Texts("", train[: run.choose(2000, 160)], held_out[: run.choose(1000, 100)]),
        Texts(
            "_documents",
            documents[: run.choose(700, 64)],
            held_out_documents[: run.choose(419, 40)],
        ),
    )


def lesson_of(one: Contender, texts: Texts, run: Run) -> Lesson:
    """What a contender is given."""
    return Lesson(
        model=str(next(iter(parse_sources(BACKBONES_DEFAULT))).locate()),
        labels=TOPICS,
        texts=[text for text, _ in texts.training],
        classes=[label for _, label in texts.training],
        held_out_texts=[text for text, _ in texts.held_out],
        held_out_classes=[label for _, label in texts.held_out],
        tokens_max=TOKENS_MAX,
        batch=BATCH,
        epochs=run.choose(one.epochs, 2),
        learning_rate=one.learning_rate,
        seed=SEED,
    )


def train(one: Contender, lesson: Lesson, folder: Path) -> Trained:
    """One training, in a process of its own; each of a contender has another seed.

    Raises:
        FailedPrecondition: it ended without an answer, with the end of what it said.
    """
    seed = lesson.seed + len(list(folder.glob(f"{one.key}-*.json")))
    path = folder / f"{one.key}-{seed}.json"
    path.write_text(json.dumps(asdict(replace(lesson, seed=seed))), encoding="utf-8")
    python = sys.executable if one.environment == OURS else str(python_of(one.environment))
    command = (python, "-m", f"benchmarks.trainers.{one.program}", str(path), *one.arguments)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    if one.environment == OURS:
        environment["GLIBC_TUNABLES"] = TUNABLES  # as the trainer starts its workers
    try:
        ended = subprocess.run(
            leashed(command),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            timeout=TRAINING_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FailedPrecondition(f"{one.key} took more than {TRAINING_S_MAX:.0f} s") from error
    if ended.returncode or not ended.stdout:
        told = ended.stderr.strip()[-TOLD_CHARS_MAX:]
        raise FailedPrecondition(f"{one.key} ended with {ended.returncode}: ...{told}")
    return Trained.of(json.loads(ended.stdout.splitlines()[-1]))


def _sentences(documents: Sequence[Document]) -> tuple[Row, ...]:
    """Their sentences, each once, with the documents' topics; in an order drawn once for all."""
    topics: dict[str, int] = {}
    for document in documents:
        for sentence in sentences_of(document.text):
            topics.setdefault(sentence, TOPICS.index(document.topic))
    rows = list(topics.items())
    random.Random(SEED).shuffle(rows)  # noqa: S311 -- an order, not a secret
    return tuple(rows)


if __name__ == "__main__":
    script("training", measure)
