"""What came of a training: part of jobs and of versions."""

from __future__ import annotations

from collections.abc import Iterable

from smile import resources as r
from smile.codec.tables import TRAINING_STATES
from smile.v1 import training_summary_pb2


def summary_to_pb(summary: r.TrainingSummary) -> training_summary_pb2.TrainingSummary:
    return training_summary_pb2.TrainingSummary(
        classes=[_score_to_pb(score) for score in summary.classes],
        confusion=[training_summary_pb2.ConfusionRow(counts=row) for row in summary.confusion],
        entities=[_score_to_pb(score) for score in summary.entities],
        seed=summary.seed,
        spec_digest=summary.spec_digest,
        environment=dict(summary.environment),
        states=TRAINING_STATES.to_pb(summary.states),
        encoder_digest=summary.encoder_digest,
        domain=summary.domain,
        domain_digest=summary.domain_digest,
    )


def summary_from_pb(message: training_summary_pb2.TrainingSummary) -> r.TrainingSummary:
    return r.TrainingSummary(
        classes=_scores_from_pb(message.classes),
        confusion=tuple(tuple(row.counts) for row in message.confusion),
        entities=_scores_from_pb(message.entities),
        seed=message.seed,
        spec_digest=message.spec_digest,
        environment=dict(message.environment),
        states=TRAINING_STATES.from_pb(message.states),
        encoder_digest=message.encoder_digest,
        domain=message.domain,
        domain_digest=message.domain_digest,
    )


def _score_to_pb(score: r.ClassScore) -> training_summary_pb2.ClassScore:
    return training_summary_pb2.ClassScore(
        label=score.label,
        precision=score.precision,
        recall=score.recall,
        f1=score.f1,
        support=score.support,
    )


def _scores_from_pb(rows: Iterable[training_summary_pb2.ClassScore]) -> tuple[r.ClassScore, ...]:
    return tuple(
        r.ClassScore(row.label, row.precision, row.recall, row.f1, row.support) for row in rows
    )
