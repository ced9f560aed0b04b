"""Materialised states: the same bits whatever was found, and the torch reference's."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.kernels import EAGER, Kernels, kernels_for
from smile.model.loaded import LoadedModule
from smile.model.materialized import LookedUp, NoRows, RowView
from smile.model.ngram_rows import RowDtype, RowFormat, RowStore, RowStores
from smile.model.packing import PackedTokens, pack
from smile.model.reference import VplmModule
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import EncoderForm
from smile.model.skip.ngrams import ngram_keys, ngrams_from
from smile.model.skip.serving import ServingEncoder
from smile.model.specs import HeadSpec, ModuleSpec, PetKind, PetSpec, Pooling, Projection, Task
from smile.model.tokenizer import TokenizedText
from smile.model.toy_modules import random_tensors
from smile.representations.index import NgramIndex

CPU = torch.device("cpu")
BOUNDARY = 2
PETS = (
    PetSpec(PetKind.PFEIFFER, 2, rank=6),
    PetSpec(PetKind.LORA, 3, 4, 8.0, (Projection.QUERY, Projection.INTERMEDIATE)),
    PetSpec(PetKind.BITFIT, 2),
    PetSpec(PetKind.NONE),
)
HEADS = (
    HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b", "c"), Pooling.MEAN),
    HeadSpec(Task.TOKEN_CLASSIFICATION, ("a", "b")),
    HeadSpec(Task.EMBEDDING),
)
QUICK = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Rows:
    """A table in memory."""

    def __init__(self, keys: NDArray[np.int64], row_format: RowFormat, rows: NDArray[np.uint8]):
        self._index = NgramIndex.build(keys)
        self.stores = RowStores(row_format, (RowStore(rows),))

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        return self._index.find(keys)


class World:
    """A backbone, a local encoder over it, modules, and tables of any share of the rows."""

    def __init__(self, backbone: Backbone, kernels: Kernels, dtype: RowDtype) -> None:
        torch.manual_seed(7)
        form = EncoderForm(BOUNDARY, backbone.shape.hidden, first=24, middle=32, after=16)
        self.backbone = backbone
        self.local = LocalEncoder(form, backbone)
        self.encoder = ServingEncoder.of(self.local, kernels, CPU, torch.float32)
        # Torch's products depend on how many rows they have, and may be rounded to the next half.
        self.noise = 0.0 if kernels is not EAGER else 2e-3
        self.engine = BatchedEngine.of(backbone, kernels=kernels)
        self.format = RowFormat(dtype, backbone.shape.hidden)
        self.modules = []
        self.references = []
        for number, pet in enumerate(PETS):
            head = HEADS[number % len(HEADS)]
            spec = ModuleSpec(backbone.name, backbone.digest, pet.placed(backbone.shape), head)
            tensors = random_tensors(spec, backbone.shape, seed=number)
            self.modules.append(LoadedModule.load(spec, tensors, backbone))
            self.references.append(VplmModule(backbone, spec, tensors))

    @torch.no_grad()
    def packed_rows(self, keys: NDArray[np.int64]) -> NDArray[np.uint8]:
        rows = self.encoder.rows(ngrams_from(torch.from_numpy(keys)))
        return self.format.pack(rows.numpy())

    def rows(self, texts: Sequence[TokenizedText], share: float, seed: int) -> RowView:
        """A table of about `share` of the texts' n-grams."""
        keys = np.unique(ngram_keys(pack([text.ids for text in texts]), self.local.outside))
        kept = keys[np.random.default_rng(seed).random(len(keys)) < share]
        return Rows(kept, self.format, self.packed_rows(kept)) if len(kept) else NoRows(self.format)

    @torch.no_grad()
    def expected(self, module: int, text: TokenizedText) -> NDArray[np.float32]:
        """The local encoder's states from rows as tables store them, then the reference."""
        packed = pack([text.ids])
        keys = ngram_keys(packed, self.local.outside).numpy()
        rows = torch.from_numpy(self.format.unpack(self.packed_rows(keys)))
        states = self.local.merge(rows, packed)
        reference = self.references[module]
        first, layers = reference.boundary, self.backbone.shape.layers
        states = self.backbone.forward_layers(states, packed, BOUNDARY, min(first, layers))
        values: NDArray[np.float32] = reference.forward_from(states, packed).numpy()
        return values if reference.spec.head.task is Task.TOKEN_CLASSIFICATION else values[0]

    def look_up(self, batch: MixedBatch, rows: RowView) -> LookedUp:
        return LookedUp.of(batch.different.packed, self.encoder, rows)

    def run(self, batch: MixedBatch, rows: RowView) -> list[NDArray[np.float32]]:
        return [one.values for one in self.engine.run(batch, self.look_up(batch, rows))]


@pytest.fixture(params=["native", "eager"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return EAGER if request.param == "eager" else kernels_for(CPU, torch.float32)


@pytest.fixture(params=list(RowDtype))
def world(toy: Backbone, kernels: Kernels, request: pytest.FixtureRequest) -> World:
    return World(toy, kernels, request.param)


def random_text(source: random.Random, tokens: int) -> TokenizedText:
    ids = [source.randrange(40) for _ in range(tokens)]  # few words: n-grams come up again
    return TokenizedText(ids)


def random_batch(world: World, source: random.Random) -> tuple[MixedBatch, list[TokenizedText]]:
    count = source.randrange(1, 12)
    texts = [random_text(source, source.choice([1, 2, 3, 7, 20, 60])) for _ in range(count)]
    items = [(source.choice(world.modules), source.choice(texts)) for _ in range(count)]
    return MixedBatch.build(items), [text for _, text in items]


@QUICK
@given(seed=st.integers(0, 10_000))
def test_answers_have_the_same_bits_whatever_was_found(world: World, seed: int) -> None:
    source = random.Random(seed)
    batch, texts = random_batch(world, source)
    computed = world.run(batch, world.rows(texts, 0.0, seed))
    for share in (0.3, 0.7, 1.0):
        found = world.run(batch, world.rows(texts, share, seed))
        for one, other in zip(computed, found, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=world.noise)


@QUICK
@given(seed=st.integers(0, 10_000))
def test_answers_are_the_references(world: World, seed: int) -> None:
    source = random.Random(seed)
    count = source.randrange(1, 8)
    texts = [random_text(source, source.choice([1, 2, 5, 30])) for _ in range(count)]
    asked = [source.randrange(len(world.modules)) for _ in texts]
    items = [(world.modules[m], text) for m, text in zip(asked, texts, strict=True)]
    rows = world.rows(texts, source.choice([0.0, 0.5, 1.0]), seed)
    for values, m, text in zip(world.run(MixedBatch.build(items), rows), asked, texts, strict=True):
        np.testing.assert_allclose(values, world.expected(m, text), rtol=0, atol=1e-5 + world.noise)


def test_what_was_found_is_told_of_each_text(world: World) -> None:
    source = random.Random(1)
    texts = [random_text(source, tokens) for tokens in (5, 1, 9)]
    items = [(world.modules[n], texts[n % 2]) for n in (0, 1, 2)] + [(world.modules[0], texts[2])]
    batch = MixedBatch.build(items)
    all_of_it = world.look_up(batch, world.rows(texts, 1.0, 0))
    assert all_of_it.found_of(batch).tolist() == [5, 1, 5, 9]
    assert all_of_it.lengths_of(batch).tolist() == [5, 1, 5, 9]
    assert not len(all_of_it.missing)
    first = world.look_up(batch, world.rows(texts[:1], 1.0, 0))
    told = first.found_of(batch).tolist()
    assert told[0] == told[2] == 5 and told[3] < 9
    nothing = world.look_up(batch, NoRows(world.format))
    assert nothing.found_of(batch).tolist() == [0, 0, 0, 0]
    assert len(nothing.numbers) == 15 >= len(nothing.missing)


def test_texts_share_no_ngram(world: World) -> None:
    together: PackedTokens = pack([[3, 4], [5, 6]])
    apart = [ngram_keys(pack([ids]), 0) for ids in ([3, 4], [5, 6])]
    assert torch.equal(ngram_keys(together, 0), torch.cat(apart))
