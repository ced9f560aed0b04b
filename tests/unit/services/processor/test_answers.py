"""Answers: probabilities, labels in order, words with their places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.answers import Question, check_size, predict, softmax
from services.processor.requests import InferenceRequest
from smile.errors import InvalidArgument
from smile.model.specs import HeadSpec, Task
from smile.model.tokenizer import Places, TokenizedText
from smile.names import VplmName
from smile.resources import Classification, Embedding, TokenClassification
from tests.unit.services.processor.conftest import text

TOPICS = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("sport", "money", "film"))
WORDS = HeadSpec(Task.TOKEN_CLASSIFICATION, ("other", "place"))
VECTOR = HeadSpec(Task.EMBEDDING)


def logits(*values: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


def ranked(head: HeadSpec, top_k: int, *values: float) -> Classification:
    result = predict(Question("x", text(4), head, top_k), logits(*values)).result
    assert isinstance(result, Classification)
    return result


def test_classification_ranks_all_labels() -> None:
    result = ranked(TOPICS, 0, 0.0, 2.0, 1.0)
    assert [row.label for row in result.scores] == ["money", "film", "sport"]
    assert sum(row.score for row in result.scores) == pytest.approx(1.0)
    assert result.scores[0].score == pytest.approx(np.exp(2) / np.exp([0, 1, 2]).sum())


def test_classification_tells_the_best_alone() -> None:
    result = ranked(TOPICS, 2, 0.0, 2.0, 1.0)
    assert [row.label for row in result.scores] == ["money", "film"]
    assert len(ranked(TOPICS, 1_000, 0.0, 2.0, 1.0).scores) == 3


def test_equal_scores_come_in_label_order() -> None:
    assert [row.label for row in ranked(TOPICS, 0, 1.0, 1.0, 1.0).scores] == list(TOPICS.labels)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=2, max_size=20)
)
def test_softmax_is_a_distribution_for_all_finite_logits(values: list[float]) -> None:
    scores = softmax(logits(*values))
    assert np.isfinite(scores).all()
    assert scores.sum() == pytest.approx(1.0, abs=1e-5)


def test_pieces_merge_into_words() -> None:
    places = Places(
        offsets=[(0, 0), (0, 3), (3, 6), (7, 11), (11, 12), (0, 0)],
        special=[True, False, False, False, False, True],
        words=[None, 0, 0, 1, 2, None],
    )
    tokens = TokenizedText([0] * 6, lambda: places, truncated=True)
    values = np.zeros((6, 2), dtype=np.float32)
    values[1] = [0, 3]  # the first piece decides
    values[2] = [9, 0]
    prediction = predict(Question("London fell.", tokens, WORDS, 0), values)
    assert isinstance(prediction.result, TokenClassification)
    words = prediction.result.tokens
    assert [(w.word, w.start, w.end) for w in words] == [
        ("London", 0, 6),
        ("fell", 7, 11),
        (".", 11, 12),
    ]
    assert [w.label for w in words] == ["place", "other", "other"]
    assert words[0].score == pytest.approx(np.exp(3) / (1 + np.exp(3)))
    assert (prediction.truncated, prediction.token_count) == (True, 6)


def test_embeddings_pass_through() -> None:
    result = predict(Question("x", text(2), VECTOR, 0), logits(0.6, 0.8)).result
    assert isinstance(result, Embedding)
    assert result.values == pytest.approx((0.6, 0.8))


@pytest.mark.parametrize(
    ("head", "top_k", "texts", "fits"),
    [
        (VECTOR, 0, 10_000, True),
        (VECTOR, 0, 10_001, False),
        (TOPICS, 0, 5_000, True),
        (HeadSpec(Task.SEQUENCE_CLASSIFICATION, tuple(map(str, range(1_000)))), 0, 2_000, False),
        (HeadSpec(Task.SEQUENCE_CLASSIFICATION, tuple(map(str, range(1_000)))), 5, 2_000, True),
        (WORDS, 0, 1_000, True),
    ],
)
def test_answers_that_no_message_holds_are_refused(
    head: HeadSpec, top_k: int, texts: int, fits: bool
) -> None:
    name = VplmName.parse("tenants/acme/vplms/topics")
    asked = ("word " * 10,) * min(texts, 10_000)
    request = InferenceRequest(name, asked, 0.0, 1.0, top_k=top_k)
    limit = 10_000 * (4 * 384 + 10) if texts <= 10_000 else 10_000
    if fits:
        check_size(request, head, 384, limit)
    else:
        with pytest.raises(InvalidArgument, match=f"at most {limit}") as caught:
            check_size(request, head, 384, limit)
        assert caught.value.reason == "ANSWER_TOO_LARGE"
