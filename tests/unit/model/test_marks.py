"""Equal texts that are marked otherwise are different texts of a batch."""

from __future__ import annotations

from smile.model.batch import DifferentTexts
from smile.model.packing import pack
from smile.model.tokenizer import TokenizedText


def text(*ids: int) -> TokenizedText:
    return TokenizedText(list(ids))


ONE, TWO = (1, 5, 2), (1, 6, 7, 2)
TEXTS = [text(*ONE), text(*TWO), text(*ONE), text(*ONE), text(*TWO)]
PACKED = pack([one.ids for one in TEXTS])


def test_marks_tell_equal_texts_apart() -> None:
    found = DifferentTexts.of(TEXTS, PACKED, ["", "news", "news", "", "news"])
    assert found.marks == ("", "news", "news")
    assert [tuple(one.ids) for one in found.texts] == [ONE, TWO, ONE]
    assert found.places(PACKED).tolist() == [0, 1, 2, 0, 1]
    assert found.packed.ids.tolist() == [*ONE, *TWO, *ONE]


def test_without_marks_equal_texts_are_one() -> None:
    found = DifferentTexts.of(TEXTS, PACKED)
    assert found.marks == () and found.places(PACKED).tolist() == [0, 1, 0, 0, 1]
    same = DifferentTexts.of(TEXTS, PACKED, [""] * len(TEXTS))
    assert same.places(PACKED).tolist() == [0, 1, 0, 0, 1] and same.marks == ("", "")


def test_texts_that_all_differ_keep_their_marks() -> None:
    marks = ["news", "", "sport"]
    found = DifferentTexts.of(TEXTS[:3], pack([one.ids for one in TEXTS[:3]]), marks)
    assert found.tokens is None and found.marks == tuple(marks)
