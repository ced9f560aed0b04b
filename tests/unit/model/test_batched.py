"""The batched engine against one reference module per text."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument
from smile.model.answers import Embedding, Logits, Output, TokenLogits
from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.initial import StoredArray
from smile.model.loaded import Decoder, LoadedModule
from smile.model.packing import PackedTokens, pack
from smile.model.reference import VplmModule
from smile.model.serving import ServingBackbone
from smile.model.specs import (
    SERVED,
    SPARSE,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Pooling,
    Projection,
    Task,
)
from smile.model.tokenizer import TokenizedText
from smile.model.toy_modules import random_tensors

TOLERANCE = 1e-5
OUTPUTS = {
    Task.SEQUENCE_CLASSIFICATION: Logits,
    Task.TOKEN_CLASSIFICATION: TokenLogits,
    Task.EMBEDDING: Embedding,
}


@dataclass(frozen=True)
class Vplm:
    """One vPLM in both forms."""

    spec: ModuleSpec
    tensors: dict[str, StoredArray]
    loaded: LoadedModule
    reference: VplmModule

    @classmethod
    def make(cls, backbone: Backbone, pet: PetSpec, head: HeadSpec, seed: int) -> Vplm:
        spec = ModuleSpec(backbone.name, backbone.digest, pet.placed(backbone.shape), head)
        tensors = random_tensors(spec, backbone.shape, seed=seed)
        return cls(
            spec,
            tensors,
            LoadedModule.load(spec, tensors, backbone),
            VplmModule(backbone, spec, tensors),
        )

    def answer(self, text: TokenizedText) -> NDArray[np.float32]:
        with torch.no_grad():
            values: NDArray[np.float32] = self.reference(pack([text.ids])).numpy()
        return values if self.spec.head.task is Task.TOKEN_CLASSIFICATION else values[0]


def text_of(ids: Sequence[int]) -> TokenizedText:
    return TokenizedText(list(ids))


def random_text(source: random.Random, tokens: int, vocab: int = 200) -> TokenizedText:
    return text_of([source.randrange(vocab) for _ in range(tokens)])


def head_of(task: Task, labels: int, pooling: Pooling = Pooling.MEAN) -> HeadSpec:
    names = () if task is Task.EMBEDDING else tuple(f"label {i}" for i in range(labels))
    if pooling is Pooling.POOLER and task is not Task.SEQUENCE_CLASSIFICATION:
        pooling = Pooling.CLS
    return HeadSpec(task, names, pooling)


def run(backbone: Backbone, items: Sequence[tuple[Vplm, TokenizedText]]) -> list[Output]:
    batch = MixedBatch.build([(vplm.loaded, text) for vplm, text in items])
    return BatchedEngine.of(backbone).run(batch)


def assert_answers(outputs: Sequence[Output], items: Sequence[tuple[Vplm, TokenizedText]]) -> None:
    assert len(outputs) == len(items)
    for output, (vplm, text) in zip(outputs, items, strict=True):
        assert isinstance(output, OUTPUTS[vplm.spec.head.task])
        np.testing.assert_allclose(output.values, vplm.answer(text), rtol=0, atol=TOLERANCE)


def lora_of(first: int, rank: int, scale: float, targets: Sequence[Projection]) -> PetSpec:
    return PetSpec(PetKind.LORA, first, rank, scale * rank, tuple(targets))


PETS = st.one_of(
    st.just(PetSpec(PetKind.NONE)),
    st.builds(
        PetSpec,
        st.sampled_from([PetKind.PFEIFFER, PetKind.HOULSBY]),
        st.integers(0, 3),
        st.integers(1, 32),
    ),
    st.builds(PetSpec, st.just(PetKind.BITFIT), st.integers(0, 3)),
    st.builds(
        PetSpec,
        st.sampled_from([PetKind.DIFF_PRUNING, PetKind.MASK_BERT]),
        st.integers(0, 3),
        density=st.floats(0.001, 0.05),
    ),
    st.builds(
        lora_of,
        st.integers(0, 3),
        st.integers(1, 32),
        # A scale of 64 would be legal, and would blow float32's own rounding past the tolerance.
        st.sampled_from([0.25, 1.0, 2.0]),
        st.lists(st.sampled_from(list(Projection)), min_size=1, unique=True),
    ),
)
HEADS = st.builds(
    head_of, st.sampled_from(list(Task)), st.integers(2, 40), st.sampled_from(list(Pooling))
)


@settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_mix_equals_the_reference(toy: Backbone, data: st.DataObject) -> None:
    source = random.Random(data.draw(st.integers(0, 10_000)))
    modules = data.draw(st.lists(st.tuples(PETS, HEADS), min_size=1, max_size=7))
    vplms = [Vplm.make(toy, pet, head, seed) for seed, (pet, head) in enumerate(modules)]
    count = data.draw(st.integers(1, 12))
    texts = [random_text(source, source.choice([1, 2, 3, 7, 20, 60, 128])) for _ in range(count)]
    items = [(source.choice(vplms), source.choice(texts)) for _ in range(count)]
    assert_answers(run(toy, items), items)


@pytest.mark.parametrize("kind", SERVED)
def test_many_vplms_of_one_shape_class_in_shuffled_order(toy: Backbone, kind: PetKind) -> None:
    source = random.Random(3)
    vplms = [
        Vplm.make(toy, pet_of(kind, first=seed % 4, rank=4 + seed), head_of(task, 2 + seed), seed)
        for seed, task in enumerate(list(Task) * 4)
    ]
    items = [(vplm, random_text(source, source.randint(1, 40))) for vplm in vplms * 3]
    source.shuffle(items)
    assert_answers(run(toy, items), items)


def pet_of(kind: PetKind, *, first: int | None = None, rank: int = 4) -> PetSpec:
    if kind in (PetKind.NONE, PetKind.BITFIT):
        return PetSpec(kind, first)
    if kind in SPARSE:
        return PetSpec(kind, first, density=min(0.05, rank / 200))
    if kind is PetKind.LORA:
        return PetSpec(kind, first, rank, 8.0, (Projection.QUERY, Projection.OUTPUT))
    return PetSpec(kind, first, rank)


def mixed_items(backbone: Backbone, seed: int = 5) -> list[tuple[Vplm, TokenizedText]]:
    source = random.Random(seed)
    vplms = [
        Vplm.make(backbone, pet_of(kind, first=index % 3), head_of(task, 3), index)
        for index, (kind, task) in enumerate((kind, task) for kind in SERVED for task in Task)
    ]
    return [(vplm, random_text(source, source.randint(2, 30))) for vplm in vplms]


def test_a_mixed_batch_over_minilm_equals_the_reference(minilm: Backbone) -> None:
    items = mixed_items(minilm)
    assert_answers(run(minilm, items), items)


def test_answers_follow_the_order_of_the_items(toy: Backbone) -> None:
    items = mixed_items(toy)
    shuffled = random.Random(1).sample(range(len(items)), len(items))
    straight = run(toy, items)
    moved = run(toy, [items[place] for place in shuffled])
    for output, place in zip(moved, shuffled, strict=True):
        np.testing.assert_allclose(output.values, straight[place].values, rtol=0, atol=TOLERANCE)


def test_a_row_does_not_depend_on_its_neighbours(toy: Backbone) -> None:
    items = mixed_items(toy)
    together = run(toy, items)
    for item, output in zip(items, together, strict=True):
        (alone,) = run(toy, [item])
        np.testing.assert_allclose(output.values, alone.values, rtol=0, atol=TOLERANCE)


def test_the_order_of_loras_targets_does_not_mix_their_weights_up(toy: Backbone) -> None:
    """Modules of one shape class are read by one layout, wherever each was decoded."""
    source = random.Random(4)
    vplms = [
        Vplm.make(toy, lora_of(1, 4, 1.0, targets), head_of(Task.EMBEDDING, 0), seed)
        for seed, targets in enumerate(itertools.permutations(list(Projection)[:3]))
    ]
    items = [(vplm, random_text(source, 9)) for vplm in vplms]
    assert_answers(run(toy, items), items)


def test_equal_texts_of_different_vplms_are_told_apart(toy: Backbone) -> None:
    text = random_text(random.Random(2), 17)
    vplms = [vplm for vplm, _ in mixed_items(toy)]
    items = [(vplm, text) for vplm in vplms * 2]
    batch = MixedBatch.build([(vplm.loaded, text) for vplm, text in items])
    assert batch.different.packed.lengths == (17,)
    assert_answers(run(toy, items), items)


def test_a_wide_fan_out_computes_what_vplms_share_once(
    toy: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, other = (random_text(random.Random(seed), 17) for seed in (2, 3))
    vplms = [
        Vplm.make(toy, PetSpec(PetKind.BITFIT, 2), head_of(Task.EMBEDDING, 0), seed)
        for seed in range(6)
    ]
    computed: list[tuple[int, ...]] = []
    embed = ServingBackbone.embed

    def counting(serving: ServingBackbone, packed: PackedTokens) -> torch.Tensor:
        computed.append(packed.lengths)
        return embed(serving, packed)

    monkeypatch.setattr(ServingBackbone, "embed", counting)
    engine = BatchedEngine.of(toy)
    for first, beside in ((0, []), (2, [(vplms[0], other)]), (4, [])):
        items = [(vplms[first], text), (vplms[first + 1], text), *beside]
        outputs = engine.run(MixedBatch.build([(vplm.loaded, one) for vplm, one in items]))
        assert_answers(outputs, items)
    assert computed == [(17,), (17,)], "the text itself once, and what came beside it"
    same_words = text_of(text.ids)
    engine.run(MixedBatch.build([(vplms[0].loaded, same_words)]))
    assert len(computed) == 3, "what another caller asked is not known"


@pytest.mark.parametrize("kind", SERVED)
def test_a_poisoned_module_changes_only_its_own_rows(toy: Backbone, kind: PetKind) -> None:
    items = mixed_items(toy)
    healthy = run(toy, items)
    spec = ModuleSpec(
        toy.name, toy.digest, pet_of(kind, first=0).placed(toy.shape), head_of(Task.EMBEDDING, 0)
    )
    if kind in (PetKind.NONE, PetKind.MASK_BERT):  # without a number to poison
        spec = ModuleSpec(toy.name, toy.digest, spec.pet, head_of(Task.SEQUENCE_CLASSIFICATION, 3))
    poison = {
        name: np.full_like(tensor, np.nan) if tensor.dtype.kind == "f" else tensor
        for name, tensor in random_tensors(spec, toy.shape, seed=0).items()
    }
    loaded = LoadedModule.load(spec, poison, toy)
    pairs = [(vplm.loaded, text) for vplm, text in items]
    for place in (20, 8, 3, 0):  # among rows of every kind
        pairs.insert(place, (loaded, items[place % len(items)][1]))
    outputs = BatchedEngine.of(toy).run(MixedBatch.build(pairs))
    sick = [output for output, (module, _) in zip(outputs, pairs, strict=True) if module is loaded]
    well = [
        output for output, (module, _) in zip(outputs, pairs, strict=True) if module is not loaded
    ]
    assert len(sick) == 4 and all(np.isnan(output.values).all() for output in sick)
    for output, expected in zip(well, healthy, strict=True):
        np.testing.assert_allclose(output.values, expected.values, rtol=0, atol=TOLERANCE)


def test_one_weight_copy_serves_all_rows_of_a_vplm(toy: Backbone) -> None:
    source = random.Random(0)
    vplm = Vplm.make(toy, pet_of(PetKind.PFEIFFER), head_of(Task.SEQUENCE_CLASSIFICATION, 3), 0)
    batch = MixedBatch.build([(vplm.loaded, random_text(source, 9)) for _ in range(50)])
    (group,) = batch.groups
    assert vplm.loaded.pet is not None and vplm.loaded.head is not None
    assert group.members.rows == (vplm.loaded.pet.row,)
    (head,) = batch.heads
    assert head.members is not None and head.members.rows == (vplm.loaded.head.row,)


def test_a_module_takes_a_row_for_its_pet_and_one_for_its_head(toy: Backbone) -> None:
    pet = PetSpec(PetKind.PFEIFFER, 2, 16)
    vplm = Vplm.make(toy, pet, head_of(Task.SEQUENCE_CLASSIFICATION, 8), 0)
    decoder = Decoder(toy, torch.float32)
    assert decoder.row_bytes(vplm.spec) is None, "no module of this class was seen"
    decoded = decoder.decode(vplm.spec, vplm.tensors)
    per_layer = 2 * 16 * 32 + 16 + 32
    assert decoded.row_bytes == (4 * 2 * per_layer, 4 * (8 * 32 + 8) + 32)  # aligned to 64 bytes
    assert decoded.nbytes == sum(decoded.row_bytes)
    assert decoder.row_bytes(vplm.spec) == decoded.row_bytes


def test_modules_of_one_class_share_one_layout(toy: Backbone) -> None:
    decoder = Decoder(toy, torch.bfloat16)
    head = head_of(Task.SEQUENCE_CLASSIFICATION, 8)
    vplms = [
        Vplm.make(toy, PetSpec(PetKind.LORA, 2, r, 8.0, (Projection.KEY,)), head, r) for r in (5, 8)
    ]
    first, second = (decoder.decode(vplm.spec, vplm.tensors) for vplm in vplms)
    assert first.pet is not None and second.pet is not None
    assert first.pet.layout is second.pet.layout
    assert {field.dtype for field in first.pet.layout.fields.values()} == {torch.bfloat16}
    assert first.head is not None
    assert {field.dtype for field in first.head.layout.fields.values()} == {torch.float32}


def test_outputs_have_the_shapes_of_their_tasks(toy: Backbone) -> None:
    text = random_text(random.Random(0), 11)
    pet = PetSpec(PetKind.BITFIT)
    vplms = [Vplm.make(toy, pet, head_of(task, 5), 0) for task in Task]
    sequence, token, embedding = run(toy, [(vplm, text) for vplm in vplms])
    assert sequence.values.shape == (5,)
    assert token.values.shape == (11, 5)
    assert embedding.values.shape == (32,)
    assert np.linalg.norm(embedding.values) == pytest.approx(1, abs=1e-5)


def test_another_backbones_module_is_refused(toy: Backbone, minilm: Backbone) -> None:
    head = head_of(Task.SEQUENCE_CLASSIFICATION, 2)
    spec = ModuleSpec("toy", minilm.digest, PetSpec(PetKind.NONE).placed(toy.shape), head)
    tensors = random_tensors(spec, toy.shape, seed=0)
    with pytest.raises(FailedPrecondition, match=minilm.digest):
        LoadedModule.load(spec, tensors, toy)
    with pytest.raises(FailedPrecondition, match=minilm.digest):
        VplmModule(toy, spec, tensors)


def test_tensors_that_do_not_fit_their_spec_are_refused(toy: Backbone) -> None:
    vplm = Vplm.make(toy, pet_of(PetKind.LORA), head_of(Task.SEQUENCE_CLASSIFICATION, 2), 0)
    missing = {name: t for name, t in vplm.tensors.items() if name != "head.bias"}
    with pytest.raises(DataCorrupted, match=r"head\.bias"):
        LoadedModule.load(vplm.spec, missing, toy)
    wrong = vplm.tensors | {"head.bias": np.zeros(3, dtype=np.float16)}
    with pytest.raises(DataCorrupted, match=r"head\.bias.*\(2,\).*\(3,\)"):
        LoadedModule.load(vplm.spec, wrong, toy)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        MixedBatch.build([])
