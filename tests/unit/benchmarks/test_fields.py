"""Tasks of a topic: halves apart, labels right, as many of each."""

from __future__ import annotations

import pytest

from benchmarks.harness.fields import Field
from smile.model.backbone import Backbone
from smile.model.tokenizer import TextTokenizer
from smile.model.toy import write_toy_backbone


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return Backbone.load(write_toy_backbone(tmp_path_factory.mktemp("toy")), "toy").tokenizer


OWN = (("the movie was good", "the story was sad", "a train"), ("a cold river", "the river"))
OTHERS = ("good good good", "sad sad sad", "cold cold cold", "slow slow slow")
FIELD = Field(OWN, OTHERS)


def test_about(tokenizer: TextTokenizer) -> None:
    found = FIELD.about(8, tokenizer, 1)
    known = {tuple(text.ids): 1 for text in tokenizer.encode([s for d in OWN for s in d])}
    known |= {tuple(text.ids): 0 for text in tokenizer.encode(OTHERS)}
    assert sorted(found.topics) == [0] * 4 + [1] * 4
    assert [known[tuple(text.ids)] for text in found.texts] == list(found.topics)


def test_opening(tokenizer: TextTokenizer) -> None:
    long = tuple(
        f"{word} {word} train" for word in ("good", "sad", "slow", "cold", "movie", "story")
    )
    found = Field((long, OWN[1]), OTHERS).opening(8, tokenizer, 2)
    later = {tuple(text.ids) for text in tokenizer.encode(long[4:])}
    first = {tuple(text.ids) for text in tokenizer.encode([*long[:2], *OWN[1]])}
    assert sorted(found.topics) == [0, 0, 1, 1], "as many of each as there are"
    for text, label in zip(found.texts, found.topics, strict=True):
        assert tuple(text.ids) in (first if label else later)
