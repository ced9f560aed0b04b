"""Metrics against the libraries that others use: scikit-learn and seqeval."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smile.model.metrics import classification_report, span_scores, token_report

sklearn = importlib.import_module("sklearn.metrics")
seqeval = importlib.import_module("seqeval.metrics")

LABELS = ("sport", "money", "art")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")
TEXTS = st.lists(
    st.lists(st.tuples(st.sampled_from(range(7)), st.sampled_from(range(7))), min_size=1),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_class_tables_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
    report = classification_report(truth, predicted, LABELS)
    given_ = {"labels": [0, 1, 2], "zero_division": 0}
    table = sklearn.precision_recall_fscore_support(truth, predicted, **given_)
    rows = zip(*table, strict=True)
    for score, (precision, recall, f1, support) in zip(report.classes, rows, strict=True):
        mine = (score.precision, score.recall, score.f1)
        assert mine == pytest.approx((precision, recall, f1))
        assert score.support == support
    matrix = sklearn.confusion_matrix(truth, predicted, labels=[0, 1, 2])
    assert report.confusion == tuple(map(tuple, matrix))
    assert report.accuracy == pytest.approx(sklearn.accuracy_score(truth, predicted))
    macro = sklearn.f1_score(truth, predicted, average="macro", zero_division=0)
    assert report.macro_f1 == pytest.approx(macro)


@settings(deadline=None)
@given(TEXTS)
def test_entity_scores_are_seqevals(texts: list[list[tuple[int, int]]]) -> None:
    truth = [[TAGS[true] for true, _ in text] for text in texts]
    predicted = [[TAGS[guess] for _, guess in text] for text in texts]
    rows, whole = span_scores(truth, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # undefined ratios are 0 in both
        micro = [
            getattr(seqeval, f"{name}_score")(truth, predicted)
            for name in ("precision", "recall", "f1")
        ]
        table = seqeval.classification_report(truth, predicted, output_dict=True, zero_division=0)
    assert (whole.precision, whole.recall, whole.f1) == pytest.approx(tuple(micro))
    theirs = {name: row for name, row in table.items() if " avg" not in name}
    assert {row.label for row in rows} == set(theirs)
    for row in rows:
        other = theirs[row.label]
        assert (row.precision, row.recall, row.f1) == pytest.approx(
            (other["precision"], other["recall"], other["f1-score"])
        )
        assert row.support == other["support"]


def test_a_token_report_has_its_entities_by_type() -> None:
    truth = [np.array([1, 2, 0, 3, -100], dtype=np.int64)]
    predicted = [np.array([1, 2, 0, 0, 5], dtype=np.int64)]
    report = token_report(truth, predicted, TAGS)
    assert [(row.label, row.f1, row.support) for row in report.entities] == [
        ("LOC", 0.0, 1),
        ("PER", 1.0, 1),
    ]
