"""Rows that passed every check, as values to train on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class LabeledText:
    """A text and the index of its label."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class LabeledWords:
    """A text as words, and the index of each word's label."""

    words: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts that mean the same."""

    text: str
    pair: str


Example: TypeAlias = LabeledText | LabeledWords | TextPair
