"""Plain text's ids, word by word, are the library's."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from smile.model import plain_text
from smile.model.plain_text import PlainText, serves

VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", "the", "un", "##like", "##ly", "a", "##b", "B", ".", "'"]
LETTERS = st.text(st.sampled_from("abBunlikethe ly.'\t\n"), max_size=60)
PRINTABLE = st.text(st.sampled_from(string.printable), max_size=80)
ANY = st.text(max_size=40)


def bert_like(*, lowercase: bool = True, clean: bool = True, special: str = "[SEP]") -> Tokenizer:
    pieces = {piece: place for place, piece in enumerate(VOCABULARY)}
    pieces.setdefault(special, len(pieces))
    tokenizer = Tokenizer(WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase, clean_text=clean)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single=f"[CLS] $A {special}", special_tokens=[("[CLS]", 1), (special, pieces[special])]
    )
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", special])
    return tokenizer


def library(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@given(st.one_of(LETTERS, PRINTABLE, ANY), st.booleans())
@settings(max_examples=600, deadline=None)
def test_ids_are_the_librarys(text: str, lowercase: bool) -> None:
    tokenizer = bert_like(lowercase=lowercase)
    plain = PlainText(tokenizer)
    for _ in range(2):  # the second time every word is remembered
        ids = plain.ids(text)
        assert ids is None or ids == tokenizer.encode(text).ids


@given(st.one_of(PRINTABLE, ANY))
@settings(max_examples=300, deadline=None)
def test_a_real_tokenizers_too(minilm_path: Path, text: str) -> None:
    tokenizer = library(minilm_path)
    plain = PlainText.of(tokenizer)
    assert plain is not None
    ids = plain.ids(text)
    assert ids is None or ids == tokenizer.encode(text).ids


def test_which_texts_are_plain() -> None:
    plain = PlainText(bert_like())
    for text in ("The unlikely 'a'.", "\ta\nb\r", "x" * 500, "50% & $5 <b> {c} ~`|^"):
        assert plain.ids(text) is not None
    for text in ("caf\u00e9", "a [SEP] b", "a\x00b", "a\x7fb", "a\x0bb", "\ufffd", "\u4eac"):
        assert plain.ids(text) is None


def test_words_are_forgotten_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "WORDS_MAX", 3)
    tokenizer = bert_like()
    plain = PlainText(tokenizer)
    for text in ("a b", "the a", "un ab", "b the un a", "x" * 41 + " a"):
        assert plain.ids(text) == tokenizer.encode(text).ids
    assert len(plain._known) <= 3


def test_tokenizers_that_work_otherwise_are_left_to_the_library(roberta_path: Path) -> None:
    assert serves(bert_like())
    assert not serves(bert_like(clean=False))
    assert not serves(bert_like(special="</s>"))  # which plain text may spell
    assert PlainText.of(library(roberta_path)) is None
