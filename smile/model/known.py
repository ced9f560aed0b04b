"""States of texts that one caller asks of many vPLMs, kept from one batch to the next.

Below the lowest PET layer states depend on the text alone. A batch computes them once for equal
texts; this keeps them for the batches that follow, when a fan-out is too wide for one. Texts are
told apart by identity, never by content: what one caller asked is of no use to another, and its
time tells another nothing.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from smile.model.tokenizer import TokenizedText

TOKENS_KEPT_MAX = 4_096  # 6 MiB at 384 float32 numbers a token


@dataclass(frozen=True, slots=True)
class _Kept:
    """States [tokens of the text, H] below layer `boundary`; the text is held so that its identity
    stays its own."""

    text: TokenizedText
    boundary: int
    states: Tensor


class KnownTexts:
    """Boundary states by text, least recently used first. Threads may share them."""

    def __init__(self, tokens_max: int = TOKENS_KEPT_MAX) -> None:
        self._tokens_max = tokens_max
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._tokens = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def states(self, text: TokenizedText, boundary: int) -> Tensor | None:
        """States of this very text [tokens, H] below layer `boundary`, if they are kept."""
        with self._lock:
            kept = self._kept.get(id(text))
            if kept is None or kept.boundary != boundary:
                return None
            self._kept.move_to_end(id(text))
            return kept.states

    def keep(self, text: TokenizedText, boundary: int, states: Tensor) -> None:
        """Keep a text's states, which nobody changes from now on."""
        if len(text) > self._tokens_max:
            return
        kept = _Kept(text, boundary, states)
        with self._lock:
            self._drop(id(text))
            self._kept[id(text)] = kept
            self._tokens += len(text)
            while self._tokens > self._tokens_max:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: int) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._tokens -= len(kept.text)


def repeated(texts: Sequence[TokenizedText]) -> frozenset[int]:
    """Identities of the texts that stand there more than once."""
    return frozenset(key for key, count in Counter(map(id, texts)).items() if count > 1)
