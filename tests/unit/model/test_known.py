"""What is kept of texts that many vPLMs are asked about."""

from __future__ import annotations

import torch

from smile.model.known import KnownTexts, repeated
from smile.model.tokenizer import TokenizedText


def text(tokens: int) -> TokenizedText:
    return TokenizedText([7] * tokens)


def test_a_text_is_known_by_identity_and_boundary() -> None:
    known = KnownTexts()
    one, twin = text(3), text(3)
    states = torch.ones(3, 4)
    known.keep(one, 2, states)
    assert known.states(one, 2) is states
    assert known.states(one, 1) is None
    assert known.states(twin, 2) is None


def test_tokens_are_bounded_and_the_least_used_leaves() -> None:
    known = KnownTexts(tokens_max=10)
    texts = [text(4) for _ in range(3)]
    for one in texts[:2]:
        known.keep(one, 0, torch.zeros(4, 2))
    assert known.states(texts[0], 0) is not None
    known.keep(texts[2], 0, torch.zeros(4, 2))
    assert [known.states(one, 0) is not None for one in texts] == [True, False, True]
    known.keep(text(11), 0, torch.zeros(11, 2))
    assert len(known) == 2, "too long to keep"
    known.keep(texts[0], 1, torch.zeros(4, 2))
    assert len(known) == 2


def test_repeated_are_the_same_object() -> None:
    one, twin, other = text(2), text(2), text(3)
    assert repeated([one, twin, other, one]) == {id(one)}
