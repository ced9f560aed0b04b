"""The error tree: what its docstring draws is what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from smile import errors
from smile.errors import SmileError


def tree(cls: type[SmileError] = SmileError) -> Iterator[type[SmileError]]:
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from tree(child)


CLASSES = list(tree())


def test_the_drawing_names_every_class() -> None:
    drawing = (errors.__doc__ or "").split("Each class")[0]
    drawn = {word for word in re.findall(r"\b[A-Z][A-Za-z]+\b", drawing) if hasattr(errors, word)}
    assert drawn == {cls.__name__ for cls in CLASSES} | {"SmileError"}


@pytest.mark.parametrize("cls", CLASSES)
def test_reasons_are_stable_words_of_their_own(cls: type[SmileError]) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", cls.reason)
    assert [other for other in CLASSES if other.reason == cls.reason] == [cls]


def test_an_error_keeps_what_it_was_given() -> None:
    metadata = {"limit": "3"}
    error = errors.TooManyTexts(
        "at most 3 texts, got 4",
        reason="TEXTS_PER_REQUEST",
        metadata=metadata,
        retry_after=2.5,
        violations=[("texts", "too many")],
    )
    metadata["limit"] = "changed"
    assert str(error) == error.message == "at most 3 texts, got 4"
    assert error.reason == "TEXTS_PER_REQUEST"
    assert errors.TooManyTexts("x").reason == "TOO_MANY_TEXTS"
    assert error.metadata == {"limit": "3"}
    assert error.retry_after == 2.5
    assert error.violations == (("texts", "too many"),)


def test_an_error_needs_only_a_message() -> None:
    error = errors.NotFound("gone")
    assert (error.metadata, error.retry_after, error.violations) == ({}, None, ())
