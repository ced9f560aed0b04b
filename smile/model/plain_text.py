"""Token ids of plain English text without the tokenizer: by words, which repeat.

BERT's tokenizer treats text of printable ASCII characters word by word, and looks nowhere else: it
lowercases, splits at white space and around punctuation, and cuts each word into pieces. So the
pieces of a word are asked for once and remembered. Any other text, and any other tokenizer, is the
library's.
"""

from __future__ import annotations

import json
import re
from itertools import chain

from tokenizers import Tokenizer

WORDS_MAX = 100_000  # remembered; then all are forgotten
WORD_CHARS_MAX = 40  # longer ones are not remembered
_PLAIN = re.compile(r"[\t\n\r -Z\\-~]*", re.ASCII)  # printable, but for what opens a special token
_WORD = re.compile(r"[0-9A-Za-z]+|[^\s0-9A-Za-z]", re.ASCII)


class PlainText:
    """The ids of plain texts; threads may share it.

    Args:
        tokenizer: One for which `serves` is true. Only its model is used.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        config = json.loads(tokenizer.to_str())
        first, last = _template(config)
        self._model = tokenizer.model
        self._lowercase = bool(config["normalizer"]["lowercase"])
        self._first, self._last = [first], [last]
        self._known: dict[str, list[int]] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PlainText | None:
        """For a tokenizer that works as described above; None for any other."""
        return cls(tokenizer) if serves(tokenizer) else None

    def ids(self, text: str) -> list[int] | None:
        """The ids of a text, special tokens included; None where the text is not plain."""
        if _PLAIN.fullmatch(text) is None:
            return None
        words = _WORD.findall(text.lower() if self._lowercase else text)
        known = self._known
        try:
            pieces = [known[word] for word in words]
        except KeyError:
            pieces = [self._pieces(word) for word in words]
        return [*chain(self._first, *pieces, self._last)]

    def _pieces(self, word: str) -> list[int]:
        if (found := self._known.get(word)) is not None:
            return found
        pieces = [token.id for token in self._model.tokenize(word)]
        if len(word) <= WORD_CHARS_MAX:
            if len(self._known) >= WORDS_MAX:
                self._known = {}
            self._known[word] = pieces
        return pieces


def serves(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer treats plain text word by word, as BERT's does."""
    config = json.loads(tokenizer.to_str())
    normalizer, splitter = config["normalizer"] or {}, config["pre_tokenizer"] or {}
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text") is True
        and splitter.get("type") == "BertPreTokenizer"
        and config["model"].get("type") == "WordPiece"
        and all(_PLAIN.fullmatch(added["content"]) is None for added in config["added_tokens"])
        and len(_template(config)) == 2
    )


def _template(config: dict[str, dict[str, object]]) -> tuple[int, ...]:
    """The ids of the tokens before and after a text; empty where there is not one of each."""
    processor = config["post_processor"] or {}
    single, special = processor.get("single"), processor.get("special_tokens")
    if processor.get("type") != "TemplateProcessing" or not isinstance(single, list):
        return ()
    kinds = [next(iter(piece)) for piece in single]
    if kinds != ["SpecialToken", "Sequence", "SpecialToken"] or not isinstance(special, dict):
        return ()
    ids = [special[single[place]["SpecialToken"]["id"]]["ids"] for place in (0, 2)]
    return tuple(one[0] for one in ids) if all(len(one) == 1 for one in ids) else ()
