"""Metrics against small cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smile.model import metrics
from smile.model.metrics import Indices, TokenScoring


def indices(*values: int) -> Indices:
    return np.array(values, dtype=np.int64)


def test_classification_report_of_a_case_counted_by_hand() -> None:
    report = metrics.classification_report(
        indices(0, 0, 0, 1, 1, 2), indices(0, 0, 1, 1, 0, 1), ["a", "b", "c", "absent"]
    )
    assert report.accuracy == pytest.approx(3 / 6)
    assert report.confusion == ((2, 1, 0, 0), (1, 1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0))
    a, b, c, absent = report.classes
    assert (a.precision, a.recall) == pytest.approx((2 / 3, 2 / 3))
    assert a.support == 3
    assert (b.precision, b.recall) == pytest.approx((1 / 3, 1 / 2))
    assert b.f1 == pytest.approx(0.4)
    assert (c.precision, c.recall, c.f1, c.support) == (0, 0, 0, 1)
    assert absent.support == 0
    assert report.macro_f1 == pytest.approx((2 / 3 + 0.4 + 0) / 3)  # 'absent' does not count


def test_classification_report_of_nothing_is_all_zero() -> None:
    report = metrics.classification_report(indices(), indices(), ["a", "b"])
    assert (report.accuracy, report.macro_f1) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_confusion_counts_every_pair_once(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = indices(*(t for t, _ in pairs)), indices(*(p for _, p in pairs))
    report = metrics.classification_report(truth, predicted, list("abcd"))
    for i in range(4):
        for j in range(4):
            assert report.confusion[i][j] == pairs.count((i, j))
    assert report.accuracy == pytest.approx(np.mean(truth == predicted))


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-PER I-PER O", {(1, 3, "PER")}),
        ("B-PER B-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("B-PER I-LOC", {(0, 1, "PER"), (1, 2, "LOC")}),
        ("I-PER I-PER O I-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
        ("O O", set()),
        ("B-A I-A B-A I-A", {(0, 2, "A"), (2, 4, "A")}),
    ],
)
def test_bio_spans(tags: str, spans: set[tuple[int, int, str]]) -> None:
    assert metrics.bio_spans(tags.split()) == spans


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["O", "B-PER", "I-PER"], True),
        (["O", "B-PER"], True),
        (["O", "I-PER"], False),
        (["B-PER", "I-PER"], False),
        (["O", "B-PER", "other"], False),
        (["noun", "verb"], False),
    ],
)
def test_is_bio(labels: list[str], expected: bool) -> None:
    assert metrics.is_bio(labels) is expected


def test_token_report_counts_whole_entities_for_bio_labels() -> None:
    labels = ["O", "B-PER", "I-PER", "B-LOC"]
    truth = [indices(-100, 1, 2, 0, 3, -100), indices(-100, 3, -100, 0)]
    guess = [indices(3, 1, 2, 0, 0, 3), indices(0, 3, 1, 1)]
    report = metrics.token_report(truth, guess, labels)
    assert report.scoring is TokenScoring.ENTITIES
    assert report.accuracy == pytest.approx(4 / 6)
    # True spans: PER, LOC, LOC. Guessed: PER (right), LOC (right), PER (wrong).
    assert report.precision == pytest.approx(2 / 3)
    assert report.recall == pytest.approx(2 / 3)
    assert report.f1 == pytest.approx(2 / 3)


def test_token_report_counts_tokens_for_other_labels() -> None:
    report = metrics.token_report([indices(0, 1, 1, -100)], [indices(0, 1, 0, 0)], ["noun", "verb"])
    assert report.scoring is TokenScoring.TOKENS
    assert report.precision == pytest.approx((0.5 + 1) / 2)
    assert report.recall == pytest.approx((1 + 0.5) / 2)
    assert report.f1 == report.tokens.macro_f1 == pytest.approx(2 / 3)


def test_token_report_of_nothing_is_zero() -> None:
    report = metrics.token_report([], [], ["O", "B-PER"])
    assert (report.accuracy, report.f1) == (0, 0)


def test_retrieval_report_asks_only_answerable_texts() -> None:
    angles = np.radians([0, 5, 90, 12])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    report = metrics.retrieval_report(embeddings, indices(0, 0, 1, 0))
    assert (report.recall_at_1, report.queries) == (1.0, 3)
    report = metrics.retrieval_report(embeddings, indices(0, 1, 0, 1))
    # 0 finds 1 (wrong), 1 finds 0 (wrong), 2 finds 3 (wrong), 3 finds 1 (right).
    assert report.queries == 4
    assert report.recall_at_1 == pytest.approx(1 / 4)
    assert metrics.retrieval_report(embeddings, indices(0, 1, 2, 3)).queries == 0


def test_pair_retrieval_report() -> None:
    anchors = np.eye(3)
    report = metrics.pair_retrieval_report(anchors, anchors[[0, 2, 1]])
    assert report.recall_at_1 == pytest.approx(1 / 3)
    assert report.queries == 3
    assert metrics.pair_retrieval_report(anchors[:0], anchors[:0]).queries == 0
