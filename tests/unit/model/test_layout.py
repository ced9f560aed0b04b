"""Names and shapes of every kind of module."""

from __future__ import annotations

import pytest

from smile.errors import InvalidSpec
from smile.model.layout import bytes_total, pet_layers, tensors
from smile.model.specs import (
    BackboneShape,
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Projection,
    Task,
)

SHAPE = BackboneShape(
    layers=3, hidden=8, intermediate=12, heads=2, tokens_max=16, parameters=1, bytes=4
)
BERT_BASE = BackboneShape(
    layers=12, hidden=768, intermediate=3072, heads=12, tokens_max=512, parameters=1, bytes=4
)
HEAD = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b", "c"))


def sizes(pet: PetSpec, head: HeadSpec = HEAD) -> dict[str, tuple[int, ...]]:
    spec = ModuleSpec("toy", "0" * 64, pet, head)
    return {name: tensor.shape for name, tensor in tensors(spec, SHAPE).items()}


def test_pfeiffer_has_one_adapter_in_each_layer_from_the_first() -> None:
    assert sizes(PetSpec(PetKind.PFEIFFER, 2, rank=4)) == {
        "layers.2.feedforward.adapter.down.weight": (4, 8),
        "layers.2.feedforward.adapter.down.bias": (4,),
        "layers.2.feedforward.adapter.up.weight": (8, 4),
        "layers.2.feedforward.adapter.up.bias": (8,),
        "head.weight": (3, 8),
        "head.bias": (3,),
    }


def test_houlsby_has_two() -> None:
    names = sizes(PetSpec(PetKind.HOULSBY, 1, rank=4))
    assert len(names) == 2 * 2 * 4 + 2
    assert names["layers.1.attention.adapter.down.weight"] == (4, 8)
    assert names["layers.2.feedforward.adapter.up.bias"] == (8,)


def test_lora_follows_each_projections_shape() -> None:
    names = sizes(PetSpec(PetKind.LORA, 2, 4, 8.0, tuple(Projection)))
    assert len(names) == 2 * 6 + 2
    assert names["layers.2.query.lora.a"] == (4, 8)
    assert names["layers.2.query.lora.b"] == (8, 4)
    assert names["layers.2.intermediate.lora.a"] == (4, 8)
    assert names["layers.2.intermediate.lora.b"] == (12, 4)
    assert names["layers.2.output.lora.a"] == (4, 12)
    assert names["layers.2.output.lora.b"] == (8, 4)


def test_bitfit_has_every_bias_of_the_layer() -> None:
    assert sizes(PetSpec(PetKind.BITFIT, 2), HeadSpec(Task.EMBEDDING)) == {
        "layers.2.query.bias": (8,),
        "layers.2.key.bias": (8,),
        "layers.2.value.bias": (8,),
        "layers.2.attention_output.bias": (8,),
        "layers.2.intermediate.bias": (12,),
        "layers.2.output.bias": (8,),
        "layers.2.attention_norm.bias": (8,),
        "layers.2.output_norm.bias": (8,),
    }


def test_no_pet_leaves_the_head_and_no_head_leaves_nothing() -> None:
    assert list(sizes(PetSpec(PetKind.NONE, 0))) == ["head.weight", "head.bias"]
    assert sizes(PetSpec(PetKind.NONE, 0), HeadSpec(Task.EMBEDDING)) == {}
    assert len(pet_layers(PetSpec(PetKind.NONE, 0), SHAPE)) == 0


def test_a_specs_dtype_is_every_tensors() -> None:
    spec = ModuleSpec("toy", "0" * 64, PetSpec(PetKind.BITFIT, 0), HEAD, DType.FLOAT32)
    assert {tensor.dtype for tensor in tensors(spec, SHAPE).values()} == {DType.FLOAT32}


def test_bytes_agree_with_the_published_size_of_an_adapter() -> None:
    """BERT-base, 12 Pfeiffer bottlenecks of 64: 1.19 M parameters (Pfeiffer et al. 2021)."""
    pet = PetSpec(PetKind.PFEIFFER, 0, rank=64)
    spec = ModuleSpec("bert", "0" * 64, pet, HeadSpec(Task.EMBEDDING))
    assert bytes_total(spec, BERT_BASE) == 2 * 12 * (2 * 64 * 768 + 64 + 768) == 2 * 1_189_632


def test_specs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="undecided"):
        sizes(PetSpec(PetKind.BITFIT))
    with pytest.raises(InvalidSpec, match="3 layers, got 3"):
        sizes(PetSpec(PetKind.BITFIT, 3))
    with pytest.raises(InvalidSpec, match="hidden width 8, got 9"):
        sizes(PetSpec(PetKind.PFEIFFER, 0, rank=9))
