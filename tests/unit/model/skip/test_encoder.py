"""Rows are pure functions of their trigrams; serving computes what training computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smile.errors import FailedPrecondition
from smile.model.backbone import Backbone
from smile.model.kernels import EAGER, Kernels, kernels_for
from smile.model.packing import PackedTokens, pack
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import EncoderForm
from smile.model.skip.ngrams import ANY, keys_of, ngram_keys, ngrams_from, ngrams_of
from smile.model.skip.serving import ServingEncoder, WordRows
from smile.model.skip.words import AskedParts, ByRow, WholeParts, WordParts
from smile.model.specs import PetKind, PetSpec

CPU = torch.device("cpu")
TEXTS = [
    "the movie was good and the story was sad",
    "a slow train, a cold river and the big city",
    "rain",
    "black market prices rose in london, paris did not",
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.06}


def packed_of(backbone: Backbone, texts: list[str]) -> PackedTokens:
    return pack([text.ids for text in backbone.tokenizer.encode(texts)])


@pytest.fixture(scope="module")
def encoder(toy: Backbone) -> LocalEncoder:
    torch.manual_seed(3)
    form = EncoderForm(boundary=2, hidden=32, first=48, middle=40, after=24, context=8)
    return LocalEncoder(form, toy)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


@pytest.fixture(params=["native", "eager"])
def kernels(request: pytest.FixtureRequest, dtype: torch.dtype) -> Kernels:
    return EAGER if request.param == "eager" else kernels_for(CPU, dtype)


def test_trigrams_end_at_texts(toy: Backbone) -> None:
    packed = pack([[7, 8, 9], [5]])
    assert ngrams_of(packed, 0).tolist() == [[0, 7, 8], [7, 8, 9], [8, 9, 0], [0, 5, 0]]
    assert ngram_keys(packed, 0).tolist()[0] == 7 << 21 | 8


def test_keys_hold_what_went_in() -> None:
    ngrams = torch.tensor([[0, 1, 2], [ANY, ANY - 1, ANY], [30_521, 7, 250_000]])
    assert torch.equal(ngrams_from(keys_of(ngrams)), ngrams)


@torch.no_grad()
def test_serving_is_training(
    toy: Backbone, encoder: LocalEncoder, kernels: Kernels, dtype: torch.dtype
) -> None:
    serving = ServingEncoder.of(encoder, kernels, CPU, dtype)
    packed = packed_of(toy, TEXTS)
    rows = serving.rows(ngrams_of(packed, serving.outside))
    expected = encoder.rows(ngrams_of(packed, encoder.outside))
    assert rows.dtype is dtype
    torch.testing.assert_close(rows.float(), expected, atol=TOLERANCE[dtype], rtol=0)
    merged = encoder.merged(expected, packed)
    torch.testing.assert_close(
        serving.after(merged.to(dtype), packed).float(),
        encoder.after(merged, packed),
        atol=TOLERANCE[dtype],
        rtol=0,
    )


@torch.no_grad()
def test_a_row_alone_is_the_row_in_any_batch(
    toy: Backbone, encoder: LocalEncoder, dtype: torch.dtype
) -> None:
    serving = ServingEncoder.of(encoder, kernels_for(CPU, dtype), CPU, dtype)
    if serving.kernels.native is None:
        pytest.skip("torch's own products give no such promise")
    ngrams = ngrams_of(packed_of(toy, TEXTS), serving.outside)
    rows = serving.rows(ngrams)
    for index in range(len(ngrams)):
        assert torch.equal(serving.rows(ngrams[index : index + 1])[0], rows[index])
    with serving.kernels.together() as together:
        later = serving.using(together).rows(ngrams.flip(0))
    assert torch.equal(later.flip(0), rows)


@torch.no_grad()
def test_a_large_vocabulary_is_multiplied_row_by_row(
    toy: Backbone, encoder: LocalEncoder, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed = ServingEncoder.of(encoder, kernels, CPU, torch.float32)
    monkeypatch.setattr("smile.model.skip.words.PARTS_MAX", 0)
    multiplied = ServingEncoder.of(encoder, kernels, CPU, torch.float32)
    assert isinstance(summed.maker, WordRows) and isinstance(summed.maker.first, WholeParts)
    assert isinstance(multiplied.maker, WordRows) and isinstance(multiplied.maker.first, ByRow)
    ngrams = ngrams_of(packed_of(toy, TEXTS), summed.outside)
    torch.testing.assert_close(summed.rows(ngrams), multiplied.rows(ngrams), atol=1e-6, rtol=0)


@torch.no_grad()
def test_words_parts_are_the_same_made_as_they_are_asked(
    toy: Backbone, encoder: LocalEncoder, kernels: Kernels, dtype: torch.dtype
) -> None:
    """To the bit by native kernels, in passes that wait for their end, too."""
    whole = ServingEncoder.of(encoder, kernels, CPU, dtype)
    asked = ServingEncoder.of(encoder, kernels, CPU, dtype, WordParts.ASKED)
    assert isinstance(asked.maker, WordRows) and isinstance(asked.maker.first, AskedParts)
    ngrams = [ngrams_of(packed_of(toy, [text]), whole.outside) for text in (*TEXTS, TEXTS[0])]
    words: set[int] = set()
    for number, some in enumerate(ngrams):
        expected = whole.rows(some)
        with kernels.together() as together:
            found = (asked.using(together) if number % 2 else asked).rows(some)
        words |= set(some.view(-1).tolist())
        assert asked.maker.first.made == len(words) < toy.info.vocab
        if kernels.native is None:
            torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=0)
        else:
            assert torch.equal(found, expected)
    for odd in (-1, toy.info.vocab, ANY):
        with pytest.raises(IndexError):
            asked.rows(torch.tensor([[0, odd, 0]]))
    assert torch.equal(asked.rows(ngrams[0]), asked.rows(ngrams[0]))


@torch.no_grad()
def test_a_text_alone_is_served_as_in_any_batch(
    toy: Backbone, encoder: LocalEncoder, dtype: torch.dtype
) -> None:
    serving = ServingEncoder.of(encoder, kernels_for(CPU, dtype), CPU, dtype)
    if serving.kernels.native is None:
        pytest.skip("torch's own products give no such promise")
    packed = packed_of(toy, TEXTS)
    x = torch.randn(packed.tokens, 32).to(dtype)
    whole = serving.after(x, packed).split(packed.lengths)
    for text, part, states in zip(TEXTS, x.split(packed.lengths), whole, strict=True):
        assert torch.equal(serving.after(part, packed_of(toy, [text])), states)


@torch.no_grad()
def test_words_outside_the_vocabulary_are_refused(toy: Backbone, encoder: LocalEncoder) -> None:
    serving = ServingEncoder.of(encoder, kernels_for(CPU, torch.float32), CPU, torch.float32)
    with pytest.raises(IndexError):
        serving.rows(torch.tensor([[0, toy.info.vocab, 0]]))


@torch.no_grad()
def test_a_text_alone_is_the_text_in_any_batch(toy: Backbone, encoder: LocalEncoder) -> None:
    whole = encoder(packed_of(toy, TEXTS)).split(packed_of(toy, TEXTS).lengths)
    for text, states in zip(TEXTS, whole, strict=True):
        torch.testing.assert_close(encoder(packed_of(toy, [text])), states, atol=1e-6, rtol=0)


@torch.no_grad()
def test_words_reach_two_places_but_for_context(toy: Backbone) -> None:
    form = EncoderForm(boundary=2, hidden=32, first=48, middle=40, after=24)
    encoder = LocalEncoder(form, toy)
    before, after = (encoder(pack([[2, 50, 51, 52, last, 54, 3]])) for last in (53, 60))
    changed = (before - after).abs().amax(1) > 0
    assert changed.tolist() == [False, False, True, True, True, True, True]


def test_what_does_not_fit_is_refused(toy: Backbone) -> None:
    with pytest.raises(FailedPrecondition, match="hidden width 16") as caught:
        LocalEncoder(EncoderForm(boundary=2, hidden=16, first=8, middle=8, after=8), toy)
    assert caught.value.reason == "BACKBONE_MISMATCH"
    form = EncoderForm(boundary=2, hidden=32, first=8, middle=8, after=8)
    form.check_pet(PetSpec(PetKind.PFEIFFER, first_layer=2, rank=4))
    with pytest.raises(FailedPrecondition, match="at least the boundary 2") as caught:
        form.check_pet(PetSpec(PetKind.PFEIFFER, first_layer=1, rank=4))
    assert caught.value.reason == "MODULE_BELOW_BOUNDARY"


@torch.no_grad()
def test_roberta_counts_positions_behind_its_pad_token(roberta_path: Path) -> None:
    backbone = Backbone.load(roberta_path, "roberta")
    form = EncoderForm(boundary=1, hidden=24, first=16, middle=16, after=8, context=4)
    encoder = LocalEncoder(form, backbone)
    assert encoder.outside == 1
    packed = packed_of(backbone, TEXTS)
    kernels = kernels_for(CPU, torch.float32)
    serving = ServingEncoder.of(encoder, kernels, CPU, torch.float32)
    ngrams = ngrams_of(packed, serving.outside)
    assert ngrams[0, 0] == 1
    torch.testing.assert_close(serving.rows(ngrams), encoder.rows(ngrams), atol=1e-5, rtol=0)
    states = encoder(packed)
    torch.testing.assert_close(encoder(packed_of(backbone, TEXTS[:1])), states[: packed.lengths[0]])
