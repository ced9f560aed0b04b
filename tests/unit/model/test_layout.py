"""Names and shapes of every kind of module."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smile.errors import InvalidSpec
from smile.model.layout import (
    SERVED_PERMILLE,
    bytes_total,
    chosen_count,
    dtype_of,
    pet_layers,
    served_count,
    served_permille,
    tensors,
)
from smile.model.specs import (
    DENSITY_MAX,
    BackboneShape,
    Choice,
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Projection,
    Task,
    TensorSpec,
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


def test_diff_pruning_has_entries_and_values_of_every_projection_and_bitfits_biases() -> None:
    pet = PetSpec(PetKind.DIFF_PRUNING, 2, density=0.05)
    names = sizes(pet, HeadSpec(Task.EMBEDDING))
    biases = sizes(PetSpec(PetKind.BITFIT, 2), HeadSpec(Task.EMBEDDING))
    assert {name: size for name, size in names.items() if ".delta." not in name} == biases
    assert len(names) == len(biases) + 2 * 6
    for projection, count in (("query", 3), ("intermediate", 4), ("output", 4)):
        assert names[f"layers.2.{projection}.delta.indices"] == (count,)  # 5 % of 64 and of 96
        assert names[f"layers.2.{projection}.delta.values"] == (count,)


def test_a_mask_is_a_bit_per_entry_and_bounded() -> None:
    pet = PetSpec(PetKind.MASK_BERT, 2, density=0.05)
    spec = ModuleSpec("toy", "0" * 64, pet, HeadSpec(Task.EMBEDDING))
    found = tensors(spec, SHAPE)
    assert len(found) == 6
    assert found["layers.2.key.mask.bits"] == TensorSpec((8,), Choice.BITS, 64, 3)
    assert found["layers.2.output.mask.bits"] == TensorSpec((12,), Choice.BITS, 96, 4)


@given(st.floats(1e-6, 0.05), st.integers(1, 32_767**2))
def test_near_densities_are_served_in_one_length_that_holds_them(
    density: float, entries: int
) -> None:
    pet = PetSpec(PetKind.MASK_BERT, 0, density=density)
    step = served_permille(pet)
    assert 1 <= chosen_count(pet, entries) <= served_count(pet, entries)
    assert served_count(pet, entries) == served_count(replace(pet, density=step / 1000), entries)
    assert step <= max(1, 2 * 1000 * density)


def test_every_density_has_a_step() -> None:
    assert SERVED_PERMILLE[-1] == 1000 * DENSITY_MAX
    assert served_permille(PetSpec(PetKind.DIFF_PRUNING, 0, density=DENSITY_MAX)) == 50
    assert served_permille(PetSpec(PetKind.PFEIFFER, 0, rank=8)) == 0


def test_no_pet_leaves_the_head_and_no_head_leaves_nothing() -> None:
    assert list(sizes(PetSpec(PetKind.NONE, 0))) == ["head.weight", "head.bias"]
    assert sizes(PetSpec(PetKind.NONE, 0), HeadSpec(Task.EMBEDDING)) == {}
    assert len(pet_layers(PetSpec(PetKind.NONE, 0), SHAPE)) == 0


@pytest.mark.parametrize(
    ("pet", "choice"),
    [
        (PetSpec(PetKind.BITFIT, 0), set()),
        (PetSpec(PetKind.DIFF_PRUNING, 0, density=0.01), {Choice.INDICES}),
        (PetSpec(PetKind.MASK_BERT, 0, density=0.01), {Choice.BITS}),
    ],
)
def test_a_specs_dtype_is_that_of_all_numbers(pet: PetSpec, choice: set[Choice]) -> None:
    spec = ModuleSpec("toy", "0" * 64, pet, HEAD, DType.FLOAT32)
    found = tensors(spec, SHAPE)
    assert {tensor.dtype for tensor in found.values()} == {DType.FLOAT32} | choice
    assert all(dtype_of(name, DType.FLOAT32) is tensor.dtype for name, tensor in found.items())


def test_bytes_agree_with_the_published_size_of_an_adapter() -> None:
    """BERT-base, 12 Pfeiffer bottlenecks of 64: 1.19 M parameters (Pfeiffer et al. 2021)."""
    pet = PetSpec(PetKind.PFEIFFER, 0, rank=64)
    spec = ModuleSpec("bert", "0" * 64, pet, HeadSpec(Task.EMBEDDING))
    assert bytes_total(spec, BERT_BASE) == 2 * 12 * (2 * 64 * 768 + 64 + 768) == 2 * 1_189_632


def test_bytes_agree_with_the_published_share_of_diff_pruning() -> None:
    """0.5 % of BERT-base's 85 M projection weights (Guo et al. 2021), 2 + 4 bytes each."""
    pet = PetSpec(PetKind.DIFF_PRUNING, 0, density=0.005)
    spec = ModuleSpec("bert", "0" * 64, pet, HeadSpec(Task.EMBEDDING))
    biases = ModuleSpec("bert", "0" * 64, PetSpec(PetKind.BITFIT, 0), HeadSpec(Task.EMBEDDING))
    sparse = bytes_total(spec, BERT_BASE) - bytes_total(biases, BERT_BASE)
    assert sparse == 6 * 12 * (4 * 2949 + 2 * 11796)
    mask = ModuleSpec("bert", "0" * 64, PetSpec(PetKind.MASK_BERT, 0, density=0.05), spec.head)
    assert bytes_total(mask, BERT_BASE) == 12 * 12 * 768 * 768 // 8


def test_specs_that_do_not_fit_are_refused() -> None:
    wide = replace(SHAPE, intermediate=40_000)
    with pytest.raises(
        InvalidSpec, match="kind 'mask-bert' needs widths of at most 32767, got 400"
    ):
        PetSpec(PetKind.MASK_BERT, 0, density=0.01).placed(wide)
    with pytest.raises(InvalidSpec, match="undecided"):
        sizes(PetSpec(PetKind.BITFIT))
    with pytest.raises(InvalidSpec, match="3 layers, got 3"):
        sizes(PetSpec(PetKind.BITFIT, 3))
    with pytest.raises(InvalidSpec, match="hidden width 8, got 9"):
        sizes(PetSpec(PetKind.PFEIFFER, 0, rank=9))
