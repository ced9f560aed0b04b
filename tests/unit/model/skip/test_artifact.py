"""A local encoder's file: what goes in comes out, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument
from smile.model.backbone import Backbone
from smile.model.skip.artifact import FORMAT, EncoderFacts, decode, encode, read
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import EncoderForm

FORM = EncoderForm(boundary=2, hidden=32, first=12, middle=10, after=8, context=4)


@pytest.fixture
def facts(toy: Backbone) -> EncoderFacts:
    return EncoderFacts("toy", toy.digest, FORM, seed=4, measures={"cosine": 0.5})


@pytest.fixture
def encoder(toy: Backbone) -> LocalEncoder:
    torch.manual_seed(1)
    return LocalEncoder(FORM, toy)


def arrays(encoder: LocalEncoder) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy() for name, tensor in encoder.tensors().items()}


def test_what_is_read_is_what_was_written(
    toy: Backbone, encoder: LocalEncoder, facts: EncoderFacts, tmp_path: Path
) -> None:
    data = encode(facts, arrays(encoder))
    assert data == encode(facts, arrays(encoder))
    (tmp_path / "encoder").write_bytes(data)
    file = read(tmp_path / "encoder")
    assert file.facts == facts
    assert file.bytes == len(data)
    again = LocalEncoder.of(file, toy)
    for name, tensor in encoder.tensors().items():
        assert torch.equal(again.tensors()[name], tensor.half().float())
    assert decode(encode(file.facts, arrays(again))).digest == file.digest


def test_another_backbone_or_boundary_is_refused(
    roberta_path: Path, encoder: LocalEncoder, facts: EncoderFacts
) -> None:
    file = decode(encode(facts, arrays(encoder)))
    file.check(facts.backbone_digest, 2)
    other = Backbone.load(roberta_path, "roberta")
    with pytest.raises(FailedPrecondition) as caught:
        LocalEncoder.of(file, other)
    assert caught.value.reason == "BACKBONE_MISMATCH"
    with pytest.raises(FailedPrecondition, match="for boundary 2, not 1") as caught:
        file.check(facts.backbone_digest, 1)
    assert caught.value.reason == "BOUNDARY_MISMATCH"


def test_numbers_that_are_none_are_refused(encoder: LocalEncoder, facts: EncoderFacts) -> None:
    tensors = arrays(encoder)
    tensors["last.bias"] = np.full_like(tensors["last.bias"], 1e6)
    with pytest.raises(InvalidArgument, match=r"last\.bias"):
        encode(facts, tensors)
    halves = load(encode(facts, arrays(encoder)))
    halves["last.bias"][3] = np.inf
    metadata = {FORMAT: _stated(encode(facts, arrays(encoder)))}
    with pytest.raises(DataCorrupted, match="not finite"):
        decode(save(halves, metadata))


def test_other_bytes_are_refused(encoder: LocalEncoder, facts: EncoderFacts) -> None:
    data = encode(facts, arrays(encoder))
    halves, stated = load(data), _stated(data)
    longer = {**halves, "more": halves["last.bias"]}
    wider = {**halves, "last.bias": halves["last.bias"].astype(np.float32)}
    wrong = json.loads(stated)
    wrong["form"]["first"] = 13
    bad_form = json.loads(stated)
    bad_form["form"]["first"] = "13"
    no_form = json.loads(stated)
    del no_form["form"]
    for bad, why in (
        (b"", "cut off"),
        (data[:-5], "cannot be read"),
        (data[:20], "cut off"),
        (save(halves, {"format": "pt"}), "header has no"),
        (save(longer, {FORMAT: stated}), "1 tensors missing or extra"),
        (save(wider, {FORMAT: stated}), "must be float16"),
        (save(halves, {FORMAT: json.dumps(wrong)}), "must be float16"),
        (save(halves, {FORMAT: json.dumps(bad_form)}), "facts are wrong"),
        (save(halves, {FORMAT: json.dumps(no_form)}), "facts are wrong"),
        (save(halves, {FORMAT: "[]"}), "not an object"),
    ):
        with pytest.raises(DataCorrupted, match=why):
            decode(bad)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no local encoder at"):
        read(tmp_path / "none")


def _stated(data: bytes) -> str:
    length = int.from_bytes(data[:8], "little")
    stated = json.loads(data[8 : 8 + length])["__metadata__"][FORMAT]
    assert isinstance(stated, str)
    return stated
