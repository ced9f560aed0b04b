"""Token ids against transformers, positions in the text, and limits."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument, TextEmpty, TextTooLong
from smile.limits import TEXT_CHARS_MAX
from smile.model.backbone import Backbone
from smile.model.tokenizer import Places, TextTokenizer, TokenizedText

TEXTS = [
    "The movie was GOOD!",
    "  two  spaces, a\ttab and\na line ",
    "Ünïcödé — naïve café, 北京 and 🙂",
    "unbelievablylongwordwithoutspaces",
    "e-mail: a.b@c.org; 3,14 & $5",
    "a literal [SEP] and <s> in the text",
]


def told(texts: list[TokenizedText]) -> list[tuple[list[int], Places, bool]]:
    """All there is to know of texts."""
    return [(text.ids, text.places, text.truncated) for text in texts]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["toy", "minilm", "roberta"])
def test_ids_equal_transformers(family: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoTokenizer

    path: Path = request.getfixturevalue(f"{family}_path")
    ours = Backbone.load(path, family).tokenizer.encode(TEXTS, truncate=True)
    theirs = AutoTokenizer.from_pretrained(path)(
        TEXTS, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    assert [text.ids for text in ours] == theirs["input_ids"]
    assert [text.places.offsets for text in ours] == theirs["offset_mapping"]
    assert [[int(flag) for flag in text.places.special] for text in ours] == theirs[
        "special_tokens_mask"
    ]
    assert [text.places.words for text in ours] == [theirs.word_ids(i) for i in range(len(TEXTS))]


@pytest.mark.filterwarnings("ignore")
def test_truncated_ids_equal_transformers(minilm: Backbone, minilm_path: Path) -> None:
    from transformers import AutoTokenizer

    long = "word, " * 400
    cut, short = minilm.tokenizer.encode([long, "short"], truncate=True)
    theirs = AutoTokenizer.from_pretrained(minilm_path)(long, truncation=True, max_length=512)
    assert cut.ids == theirs["input_ids"]
    assert (
        len(cut)
        == len(cut.places.offsets)
        == len(cut.places.special)
        == len(cut.places.words)
        == 512
    )
    assert cut.truncated
    assert not short.truncated


def test_offsets_cut_the_words_out_of_the_text(minilm: Backbone) -> None:
    text = "Ünïcödé in 北京, 🙂 ok"
    encoded = minilm.tokenizer.encode([text])[0]
    pieces = [text[start:stop] for start, stop in encoded.places.offsets]
    assert pieces[0] == pieces[-1] == ""
    assert pieces[-2] == "ok"
    assert "北" in pieces
    assert encoded.places.special == [True] + [False] * (len(encoded) - 2) + [True]


def test_a_text_of_exactly_the_limit_passes_and_one_more_does_not(toy: Backbone) -> None:
    limit = toy.tokenizer.tokens_max
    assert limit == toy.shape.tokens_max == 128
    assert len(toy.tokenizer.encode(["good " * (limit - 2)])[0]) == limit
    with pytest.raises(TextTooLong, match="text 1 must have at most 128 tokens, got 129") as caught:
        toy.tokenizer.encode(["good", "good " * (limit - 1)])
    assert caught.value.metadata == {
        "text": "1",
        "unit": "tokens",
        "limit": "128",
        "value": "129",
    }


def test_roberta_leaves_room_for_its_position_offset(roberta_path: Path) -> None:
    roberta = Backbone.load(roberta_path, "roberta")
    assert roberta.tokenizer.tokens_max == 64
    long = roberta.tokenizer.encode(["the movie was good " * 30], truncate=True)[0]
    assert len(long) == 64
    assert long.truncated


def test_characters_are_bounded_even_with_truncation(toy: Backbone) -> None:
    with pytest.raises(TextTooLong, match=f"at most {TEXT_CHARS_MAX} characters, got 100001"):
        toy.tokenizer.encode(["x" * (TEXT_CHARS_MAX + 1)], truncate=True)


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_a_text_of_nothing_is_refused(toy: Backbone, text: str) -> None:
    with pytest.raises(TextEmpty, match=f"text 1 must .* got {len(text)} characters"):
        toy.tokenizer.encode(["good", text])


def test_half_a_surrogate_pair_is_refused(toy: Backbone) -> None:
    with pytest.raises(InvalidArgument, match=r"text 1 must be Unicode, got .* at character 2"):
        toy.tokenizer.encode(["good", "ab\ud83d"])


def test_no_texts_no_tokens(toy: Backbone) -> None:
    assert toy.tokenizer.encode([]) == []
    assert toy.tokenizer.encode_words([]) == []


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=200))
def test_any_text_is_encoded_or_refused(toy: Backbone, text: str) -> None:
    try:
        encoded = toy.tokenizer.encode([text], truncate=True)[0]
    except TextEmpty:
        assert not text.strip()
        return
    assert 2 <= len(encoded) <= toy.tokenizer.tokens_max
    assert max(encoded.ids) < toy.info.vocab
    assert all(0 <= start <= stop <= len(text) for start, stop in encoded.places.offsets)


@pytest.mark.parametrize("family", ["toy", "minilm", "roberta"])
def test_words_are_the_callers_and_tokens_are_servings(
    family: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(f"{family}_path")
    tokenizer = Backbone.load(path, family).tokenizer
    row = ["Prices", "in", "St.-Moritz", ",", "London's", "rose", "12%"]
    encoded = tokenizer.encode_words([row, ["good"]])[0]
    assert encoded.ids == tokenizer.encode([" ".join(row)])[0].ids
    seen = [word for word in encoded.places.words if word is not None]
    assert seen == sorted(seen)
    assert set(seen) == set(range(len(row)))
    assert [word is None for word in encoded.places.words] == encoded.places.special
    joined = " ".join(row)
    for index, word in enumerate(row):
        spans = [
            span
            for span, owner in zip(encoded.places.offsets, encoded.places.words, strict=True)
            if owner == index
        ]
        assert "".join(joined[start:stop] for start, stop in spans).strip() == word


def test_a_word_with_a_space_stays_one_word(toy: Backbone) -> None:
    encoded = toy.tokenizer.encode_words([["new york", "city"]])[0]
    last = len(encoded) - 2
    assert encoded.places.words[1] == 0
    assert encoded.places.words[last] == 1
    assert 1 not in encoded.places.words[:last]


def test_an_empty_word_is_refused(toy: Backbone) -> None:
    with pytest.raises(InvalidArgument, match="row 1: word 2 is empty"):
        toy.tokenizer.encode_words([["good"], ["a", "b", ""]])
    with pytest.raises(TextEmpty, match="text 0"):
        toy.tokenizer.encode_words([[]])


def test_long_rows_of_words_are_cut_only_when_asked(toy: Backbone) -> None:
    row = ["good"] * 200
    with pytest.raises(TextTooLong, match="text 0 must have at most 128 tokens, got 202"):
        toy.tokenizer.encode_words([row])
    cut = toy.tokenizer.encode_words([row], truncate=True)[0]
    assert cut.truncated
    assert cut.places.words[-2] == 125


def test_threads_share_a_tokenizer(toy: Backbone) -> None:
    texts = ["good " * (1 + index % 200) for index in range(40)]
    expected = told(toy.tokenizer.encode(texts, truncate=True))
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            if told(toy.tokenizer.encode(texts, truncate=True)) != expected:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_bare_vocabulary_is_enough(toy_path: Path, tmp_path: Path, lowercase: bool) -> None:
    (tmp_path / "vocab.txt").write_bytes((toy_path / "vocab.txt").read_bytes())
    settings_json = json.dumps({"do_lower_case": lowercase})
    (tmp_path / "tokenizer_config.json").write_text(settings_json)
    bare = TextTokenizer.load(tmp_path, tokens_max=128, vocab=350)
    full = TextTokenizer.load(toy_path, tokens_max=128, vocab=350)
    lower = [text.lower() for text in TEXTS if lowercase or text.isascii()]  # accents go with case
    assert told(bare.encode(lower)) == told(full.encode(lower))
    assert (told(bare.encode(["GOOD"])) == told(full.encode(["GOOD"]))) == lowercase


def test_files_that_are_no_tokenizer(toy_path: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"no tokenizer\.json or vocab\.txt in"):
        TextTokenizer.load(tmp_path, tokens_max=128, vocab=350)
    (tmp_path / "vocab.txt").write_text("one\ntwo\n")
    with pytest.raises(FailedPrecondition, match=r"has no \[CLS\], \[SEP\], \[UNK\]"):
        TextTokenizer.load(tmp_path, tokens_max=128, vocab=350)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataCorrupted, match="is not a tokenizer"):
        TextTokenizer.load(tmp_path, tokens_max=128, vocab=350)
    with pytest.raises(DataCorrupted, match="token id 349 has no row among the 349 embedded"):
        TextTokenizer.load(toy_path, tokens_max=128, vocab=349)
