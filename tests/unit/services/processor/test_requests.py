"""Requests: what is refused, and how they are cut up."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.processor.requests import (
    Answered,
    Batch,
    InferenceRequest,
    ModuleKey,
    Ride,
    Target,
    runs,
    slices,
)
from smile import errors
from smile.model.specs import DType, HeadSpec, ModuleSpec, PetKind, PetSpec, Pooling, Task
from smile.names import VplmName
from smile.resources import VersionOrigin, VplmVersion
from tests.unit.services.processor.conftest import Maker, text

NAME = VplmName.parse("tenants/acme/vplms/topics")
SPEC = ModuleSpec(
    "toy", "0" * 64, PetSpec(PetKind.BITFIT, 2), HeadSpec(Task.EMBEDDING), DType.FLOAT16
)
VERSION = VplmVersion(f"{NAME}/versions/3", "d" * 64, 10, SPEC, VersionOrigin.TRAINING)


def request(*texts: str) -> InferenceRequest:
    return InferenceRequest(NAME, texts, arrived=0.0, deadline=1.0)


def test_limits_are_allowed() -> None:
    assert len(request(*["a"] * 10_000).texts) == 10_000
    assert len(request("a" * 100_000).texts[0]) == 100_000


@pytest.mark.parametrize(
    ("texts", "error", "told"),
    [
        ((), errors.InvalidArgument, "1 to 10000 texts, got 0"),
        (("a",) * 10_001, errors.TooManyTexts, "at most 10000 texts, got 10001"),
        (("a", ""), errors.TextEmpty, "text 1 .* got 0 characters"),
        (("a", "b", "\n \t"), errors.TextEmpty, "text 2 .* got 3 characters"),
        (("a" * 100_001,), errors.TextTooLong, "text 0 .* 100000 characters, got 100001"),
    ],
)
def test_limits_are_named(
    texts: tuple[str, ...], error: type[errors.SmileError], told: str
) -> None:
    with pytest.raises(error, match=told):
        request(*texts)


def test_equal_bytes_of_another_meaning_are_another_module() -> None:
    key = Target.of(VERSION).key
    pooled = replace(SPEC, head=HeadSpec(Task.EMBEDDING, pooling=Pooling.CLS))
    foreign = replace(VERSION, name="tenants/rival/vplms/topics/versions/3")
    assert Target.of(replace(VERSION, spec=pooled)).key != key
    assert Target.of(foreign).key != key
    assert Target.of(replace(VERSION, name=f"{NAME}/versions/4")).key == key
    assert isinstance(key, ModuleKey)


@given(st.lists(st.text("ab ", min_size=1, max_size=300), min_size=1, max_size=60))
def test_slices_cover_every_text_once(texts: list[str]) -> None:
    spans = list(slices(texts, texts_max=7, tokens_max=120))
    assert spans[0][0] == 0
    assert spans[-1][1] == len(texts)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert all(1 <= stop - start <= 7 for start, stop in spans)


@given(st.lists(st.integers(1, 50), max_size=60))
def test_runs_keep_texts_in_order_and_within_limits(lengths: list[int]) -> None:
    texts = [text(length) for length in lengths]
    cut = list(runs(texts, texts_max=5, tokens_max=40))
    assert [one for run in cut for one in run] == texts
    for run in cut:
        assert len(run) <= 5
        assert len(run) == 1 or sum(map(len, run)) <= 40


def test_an_answer_has_one_output_per_text(make: Maker) -> None:
    chunk = make.chunk(texts=3)
    with pytest.raises(AssertionError, match="one output per text"):
        Answered(chunk, (), Ride(1, 0.0, 0.0, 3, 1))


def test_a_batch_counts_its_texts_and_tokens(make: Maker) -> None:
    batch = Batch.of("toy", [make.chunk(tokens=10, texts=2), make.chunk(tokens=5, module="n")])
    assert (batch.texts, batch.tokens, len(batch.parts)) == (3, 15, 2)
