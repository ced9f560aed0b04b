"""How right materialised answers are, by boundary, width, policy for missing n-grams, size and form
of the table. It measures no time, so the machine may be busy; `benchmarks.skip_speed` does.

The same modules, trained on exact states, answer the same held-out texts exactly and by each local
encoder of the folder that `SMILE_BENCH_ENCODERS` names. Their modules begin at layer 4, so one set
serves all boundaries. Tables have n-grams of the training documents alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from benchmarks.harness.command import Run, script
from benchmarks.harness.encoders import (
    BOUNDARY_MAX,
    INCLUDED,
    Encoder,
    First,
    Standing,
    encoders,
    hits,
    loaded,
)
from benchmarks.harness.engine import settings, side_by_side
from benchmarks.harness.json_types import Figures, Json, number
from benchmarks.harness.standin import Halves, backbone
from benchmarks.harness.tasks import QUESTIONS, Labelled, Trained, materials, train
from smile.model.answers import Output
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.ngram_rows import RowDtype
from smile.model.skip.policy import MissPolicy, RowKind

BATCH_TEXTS = 16
EPOCHS = 2
TASKS = len(QUESTIONS)
SHARES = (0.0, 0.1, 0.3, 1.0)  # of a table's rows, beside those that a policy always wants


@dataclass(frozen=True, slots=True)
class Exam:
    """Held-out texts of one kind, and the modules that answer them.

    Attributes:
        batches: Every text with every module, text after text.
    """

    trained: tuple[Trained, ...]
    batches: tuple[MixedBatch, ...]

    @classmethod
    def of(cls, engine: BatchedEngine, trained: Sequence[Trained]) -> Exam:
        modules = [loaded(engine, one.spec, one.data) for one in trained]
        texts = trained[0].held_out.texts
        return cls(
            tuple(trained),
            tuple(
                MixedBatch.build(
                    [(m, text) for text in texts[at : at + BATCH_TEXTS] for m in modules]
                )
                for at in range(0, len(texts), BATCH_TEXTS)
            ),
        )

    @property
    def ids(self) -> list[list[int]]:
        """Of its texts."""
        return [text.ids for text in self.trained[0].held_out.texts]


@dataclass(frozen=True, slots=True)
class Answers:
    """Labels told by each task's module: [tasks, texts]."""

    exam: Exam
    told: tuple[tuple[int, ...], ...]

    @property
    def right(self) -> dict[str, float]:
        """Share of right answers by task."""
        found = {}
        for task, told in zip(self.exam.trained, self.told, strict=True):
            wanted = [task.label_of[topic] for topic in task.held_out.topics]
            found[task.name] = float(np.mean(np.equal(told, wanted)))
        return found

    def agreement(self, other: Answers) -> float:
        """Share of answers that are the same."""
        return float(np.mean(np.equal(self.told, other.told)))


class Examiner:
    """Asks all exams, exactly or by what stands in."""

    def __init__(self, engine: BatchedEngine, exams: Sequence[Exam]) -> None:
        self._engine = engine
        self._exams = exams
        self.exact = self.answers(None)

    def answers(self, standing: Standing | None) -> list[Answers]:
        """Of each exam; None: exactly."""
        return [self._of(exam, standing) for exam in self._exams]

    def judged(self, standing: Standing) -> dict[str, Json]:
        """What is lost against exact answers."""
        found = self.answers(standing)
        tasks = _tasks(found)
        exact = _tasks(self.exact)
        return {
            "accuracy": mean(tasks.values()),
            "loss_points": 100 * (mean(exact.values()) - mean(tasks.values())),
            "loss_points_worst": max(100 * (exact[name] - tasks[name]) for name in tasks),
            "agreement": mean(a.agreement(b) for a, b in zip(found, self.exact, strict=True)),
            "tasks": tasks,
        }

    def hits(self, rows: First, outside: int) -> dict[str, Json]:
        """Shares of all the exams' n-grams that rows are found for."""
        return hits(rows, [ids for exam in self._exams for ids in exam.ids], outside)

    def _of(self, exam: Exam, standing: Standing | None) -> Answers:
        outputs: dict[int, list[Output]] = {}

        def act(numbered: tuple[int, MixedBatch]) -> None:
            number, batch = numbered
            run = partial(standing.answer, self._engine) if standing else self._engine.run
            outputs[number] = run(batch)

        side_by_side(settings().stream_count, act, list(enumerate(exam.batches)))
        flat = [int(one.values.argmax()) for number in sorted(outputs) for one in outputs[number]]
        tasks = len(exam.trained)
        return Answers(exam, tuple(tuple(flat[task::tasks]) for task in range(tasks)))


@dataclass(frozen=True, slots=True)
class Variant:
    """One encoder under one policy, by size and form of the table.

    Attributes:
        shares: Of the rows beside those that the policy always wants.
    """

    encoder: Encoder
    policy: MissPolicy
    dtype: RowDtype = RowDtype.FLOAT16
    shares: tuple[float, ...] = (1.0,)


def measure(run: Run) -> Figures:
    """One row for each variant and size."""
    engine = BatchedEngine.of(backbone())
    found = list(encoders())
    subject = max((one for one in found if one.default), key=lambda one: one.learned_tokens)
    variants = [one for encoder in found for one in _variants(encoder, closely=encoder is subject)]
    examiner = Examiner(engine, _exams(run, engine))
    train_texts = Halves.load().train
    rows: list[dict[str, Json]] = []
    with (
        tempfile.TemporaryDirectory(prefix="smile-bench-tables-") as made,
        run.steps("encoders, policies and tables", len(variants)) as done,
    ):
        for variant in variants:
            rows += _measured(variant, examiner, train_texts, Path(made))
            done()
    exact = _tasks(examiner.exact)
    return {
        "accuracy_exact": mean(exact.values()),
        **_headline(rows),
        "texts": sum(len(one.exam.ids) for one in examiner.exact),
        "modules_begin_at": BOUNDARY_MAX,
        "tasks_exact": exact,
        "variants": rows,
    }


def _variants(encoder: Encoder, *, closely: bool) -> Iterator[Variant]:
    """Its own policy; `closely` besides no table, int8 rows, and the policy that it was not
    distilled for."""
    own = encoder.policy
    if own is MissPolicy.SHORTER:
        yield Variant(encoder, own, shares=SHARES)
        yield Variant(encoder, MissPolicy.COMPUTE)
        return
    yield Variant(encoder, own, shares=(0.0, 1.0) if closely else (1.0,))
    if closely:
        yield Variant(encoder, own, RowDtype.INT8)
        yield Variant(encoder, MissPolicy.SHORTER, shares=SHARES)


def _measured(
    variant: Variant, examiner: Examiner, texts: Sequence[str], folder: Path
) -> Iterator[dict[str, Json]]:
    encoder, policy = variant.encoder, variant.policy
    table = encoder.table(folder, texts, policy, variant.dtype)
    always = encoder.rows.vocab if policy is MissPolicy.SHORTER else 0
    entry_bytes = encoder.entry_bytes(table, policy)
    for share in variant.shares:
        rows = First(table, always + round(share * (table.manifest.rows - always)))
        yield {
            **encoder.facts,
            "distilled_for": str(encoder.policy),
            "policy": str(policy),
            "dtype": str(variant.dtype),
            "rows": rows.rows,
            "table_bytes": round(rows.rows * entry_bytes),
            **examiner.hits(rows, encoder.rows.outside),
            **examiner.judged(Standing.over(encoder, policy, rows)),
        }


def _exams(run: Run, engine: BatchedEngine) -> list[Exam]:
    threads = torch.get_num_threads()
    torch.set_num_threads(settings().stream_count)
    kinds = materials(
        engine.backbone, sentences=run.choose(3_000, 600), documents=run.choose(1_000, 200)
    )
    found: list[Exam] = []
    try:
        with run.steps("training modules on exact states", TASKS * len(kinds)) as done:
            for kind, most in zip(
                kinds, (run.choose(2_000, 400), run.choose(600, 150)), strict=True
            ):
                learned = Labelled(kind.train.texts[:most], kind.train.topics[:most])
                material = replace(kind, train=learned)
                trained = train(engine.backbone, material, EPOCHS, done, BOUNDARY_MAX)
                found.append(Exam.of(engine, trained))
    finally:
        torch.set_num_threads(threads)
    return found


def _tasks(found: Sequence[Answers]) -> dict[str, float]:
    return {name: share for one in found for name, share in one.right.items()}


def _headline(rows: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """What the encoder that comes with SMILE loses; and the least that one loses under each policy
    with a whole table, of those that learned as much as SkipBERT's layers did."""
    own = [row for row in rows if row["policy"] == row["distilled_for"]]
    largest = {row["encoder"]: row for row in own if row["dtype"] == RowDtype.FLOAT16}
    whole = list(largest.values())  # tables of an encoder come in order of size
    learned = {row["learned_tokens"] for row in whole if row["kind"] == RowKind.LAYERS}

    like = [row for row in whole if row["boundary"] == 3 and row["learned_tokens"] in learned]
    return {
        "loss_points_included": _least([row for row in whole if row["encoder"] == INCLUDED]),
        **{
            f"loss_points_{policy}": _least([row for row in like if row["policy"] == policy])
            for policy in MissPolicy
        },
    }


def _least(rows: Sequence[Mapping[str, Json]]) -> float | None:
    losses = [loss for row in rows if (loss := number(row["loss_points"])) is not None]
    return min(losses, default=None)


if __name__ == "__main__":
    script("skip_sweep", measure)
