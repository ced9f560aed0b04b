"""Text to token ids and back to character positions, through the `tokenizers` library.

A `TextTokenizer` never changes after construction, so threads may share it.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument, TextEmpty, TextTooLong
from smile.limits import TEXT_CHARS_MAX
from smile.model.checkpoint import TOKENIZER_SETTINGS_FILE, tokenizer_file
from smile.model.plain_text import PlainText

CLS, SEP, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"


@dataclass(frozen=True, slots=True)
class Places:
    """Where tokens come from. All fields have one entry per token.

    Attributes:
        offsets: [start, stop) in the text's characters; (0, 0) at special tokens.
        special: True at tokens the tokenizer added ([CLS], [SEP], <s>, </s>).
        words: Index of the token's word; None at special tokens. The tokenizer's own words for
            `encode`, the caller's for `encode_words`.
    """

    offsets: list[tuple[int, int]]
    special: list[bool]
    words: list[int | None]

    @classmethod
    def of(cls, encoding: Encoding) -> Places:
        special = [bool(flag) for flag in encoding.special_tokens_mask]
        return cls(encoding.offsets, special, encoding.word_ids)


class TokenizedText:
    """One text as tokens, special tokens included.

    Attributes:
        ids: Rows of the backbone's word embedding.
        truncated: The text had more tokens than the backbone takes, and its end was dropped.
    """

    __slots__ = ("_find", "_places", "ids", "truncated")

    def __init__(
        self,
        ids: list[int],
        find: Callable[[], Places] | None = None,
        *,
        truncated: bool = False,
    ) -> None:
        """`find` is called where `places` is asked for, once; None: nobody will."""
        self.ids = ids
        self.truncated = truncated
        self._find = find
        self._places: Places | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def places(self) -> Places:
        """Where the tokens come from, which few answers need."""
        if self._places is None:
            assert self._find is not None, "made of ids alone"
            self._places = self._find()
        return self._places


class TextTokenizer:
    """Tokenizes for one backbone.

    Args:
        tokenizer: A tokenizer with neither truncation nor padding. Owned from here on.
        tokens_max: Longest text in tokens, special tokens included.
    """

    def __init__(self, tokenizer: Tokenizer, tokens_max: int) -> None:
        self.tokens_max = tokens_max
        self._whole = tokenizer
        self._plain = PlainText.of(tokenizer)
        self._cut = Tokenizer.from_str(tokenizer.to_str())
        self._cut.enable_truncation(tokens_max)

    @classmethod
    def load(cls, path: Path, *, tokens_max: int, vocab: int) -> TextTokenizer:
        """Reads `tokenizer.json`, else `vocab.txt`, of a backbone directory.

        Raises:
            FailedPrecondition: neither file is there.
            DataCorrupted: the file is no tokenizer, or has ids the backbone has no row for.
        """
        file = tokenizer_file(path)
        try:
            tokenizer = (
                Tokenizer.from_file(str(file)) if file.suffix == ".json" else _wordpiece(file)
            )
        except FailedPrecondition:
            raise
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise DataCorrupted(f"{file} is not a tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= largest < vocab:
            raise DataCorrupted(f"{file}: token id {largest} has no row among the {vocab} embedded")
        return cls(tokenizer, tokens_max)

    def encode(
        self, texts: Sequence[str], *, truncate: bool = False, first_index: int = 0
    ) -> list[TokenizedText]:
        """Tokens of each text, in order. Errors count texts from `first_index`.

        Raises:
            InvalidArgument: a text holds half a surrogate pair.
            TextEmpty: a text has nothing but white space.
            TextTooLong: a text has more than `TEXT_CHARS_MAX` characters, or more than
                `tokens_max` tokens and `truncate` is False.
        """
        for index, text in enumerate(texts, first_index):
            _check_text(text, index)
        found = [self._plainly(text) for text in texts]
        others = [text for text, known in zip(texts, found, strict=True) if known is None]
        if len(others) == 1:  # without handing it to threads, which takes as long again
            encodings = iter([self._whole.encode(others[0])])
        else:
            encodings = iter(self._whole.encode_batch(others) if others else ())
        return [
            known or self._tokenized(next(encodings), text, index, truncate)
            for index, (known, text) in enumerate(zip(found, texts, strict=True), first_index)
        ]

    def encode_words(
        self, rows: Sequence[Sequence[str]], *, truncate: bool = False
    ) -> list[TokenizedText]:
        """Tokens of texts that come as words, for token classification.

        A row is encoded as its words joined by single spaces, so training sees the tokens that
        serving sees; offsets count in that joined text. A word of nothing but control characters
        has no token.

        Raises:
            InvalidArgument: a word is empty.
            TextEmpty, TextTooLong: as `encode`.
        """
        for index, row in enumerate(rows):
            if not all(row):
                raise InvalidArgument(f"row {index}: word {list(row).index('')} is empty")
        encoded = self.encode([" ".join(row) for row in rows], truncate=truncate)
        return [_with_words(text, row) for text, row in zip(encoded, rows, strict=True)]

    def _plainly(self, text: str) -> TokenizedText | None:
        """A plain text's tokens; None where it is not one, or has too many."""
        ids = None if self._plain is None else self._plain.ids(text)
        if ids is None or len(ids) > self.tokens_max:
            return None
        return TokenizedText(ids, lambda: Places.of(self._whole.encode(text)))

    def _tokenized(
        self, encoding: Encoding, text: str, index: int, truncate: bool
    ) -> TokenizedText:
        count = len(encoding)
        truncated = count > self.tokens_max
        if truncated:
            if not truncate:
                raise _too_long(index, "tokens", self.tokens_max, count)
            encoding = self._cut.encode(text)
        return TokenizedText(encoding.ids, lambda: Places.of(encoding), truncated=truncated)


def _check_text(text: str, index: int) -> None:
    if not text or text.isspace():
        raise TextEmpty(
            f"text {index} must have at least 1 character that is not white space, got "
            f"{len(text)} characters",
            metadata={"text": str(index)},
        )
    if len(text) > TEXT_CHARS_MAX:
        raise _too_long(index, "characters", TEXT_CHARS_MAX, len(text))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"text {index} must be Unicode, got half a surrogate pair at character {error.start}",
            metadata={"text": str(index)},
        ) from error


def _too_long(index: int, unit: str, limit: int, value: int) -> TextTooLong:
    return TextTooLong(
        f"text {index} must have at most {limit} {unit}, got {value}",
        metadata={"text": str(index), "unit": unit, "limit": str(limit), "value": str(value)},
    )


def _with_words(text: TokenizedText, row: Sequence[str]) -> TokenizedText:
    """The same tokens, with word indices by where the row's words begin in the joined text."""
    starts = [0, *itertools.accumulate(len(word) + 1 for word in row)][:-1]
    places = text.places
    words = [
        None if special else bisect.bisect_right(starts, _first_visible(offset)) - 1
        for special, offset in zip(places.special, places.offsets, strict=True)
    ]
    found = replace(places, words=words)
    return TokenizedText(text.ids, lambda: found, truncated=text.truncated)


def _first_visible(offset: tuple[int, int]) -> int:
    """A token that takes its leading space along belongs to the word that ends with it."""
    start, stop = offset
    return max(start, stop - 1)


def _wordpiece(vocab: Path) -> Tokenizer:
    """BERT's tokenizer from its vocabulary file alone."""
    pieces = {
        line: index for index, line in enumerate(vocab.read_text(encoding="utf-8").splitlines())
    }
    missing = [token for token in (CLS, SEP, UNKNOWN) if token not in pieces]
    if missing:
        raise FailedPrecondition(f"{vocab} has no {', '.join(missing)}: not a BERT vocabulary")
    tokenizer = Tokenizer(WordPiece(pieces, unk_token=UNKNOWN))
    tokenizer.normalizer = BertNormalizer(lowercase=_lowercase(vocab.parent))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(CLS, pieces[CLS]), (SEP, pieces[SEP])]
    )
    tokenizer.add_special_tokens([t for t in ("[PAD]", UNKNOWN, CLS, SEP, "[MASK]") if t in pieces])
    return tokenizer


def _lowercase(path: Path) -> bool:
    """`do_lower_case` of `tokenizer_config.json`; BERT's default, True, where it is not stated."""
    file = path / TOKENIZER_SETTINGS_FILE
    if not file.is_file():
        return True
    stated = json.loads(file.read_text(encoding="utf-8"))
    return bool(stated.get("do_lower_case", True)) if isinstance(stated, dict) else True
