"""Every pair of PET kinds in one batch, by native and by eager kernels, in either precision: a row
equals running its vPLM alone.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smile.errors import FailedPrecondition
from smile.model.answers import Output
from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.kernels import KernelChoice, kernels_for
from smile.model.kernels.rows import own_row
from smile.model.loaded import Decoder
from smile.model.specs import SERVED, PetKind, Pooling, Task
from smile.model.tokenizer import TokenizedText
from tests.unit.model.test_batched import (
    Vplm,
    assert_answers,
    head_of,
    pet_of,
    random_text,
)

CPU = torch.device("cpu")
PAIRS = list(itertools.combinations_with_replacement(SERVED, 2))
HEADS = list(itertools.product(Task, Pooling))
RANKS = (4, 5, 9)  # smaller ones would scale LoRA by more than 2, and float32's rounding with it
LENGTHS = (1, 2, 3, 17, 64, 128)
ROUNDING_BF16 = 0.05  # of an answer's largest number: products are summed in another order
MARGIN_BF16 = 0.1  # where the best is that far ahead, rounding does not choose another

Items = list[tuple[Vplm, TokenizedText]]


def engine_of(backbone: Backbone, choice: KernelChoice, dtype: torch.dtype) -> BatchedEngine:
    try:
        kernels = kernels_for(CPU, dtype, choice)
    except FailedPrecondition as error:
        pytest.skip(error.message)
    return BatchedEngine.of(backbone, dtype=dtype, kernels=kernels)


def items_of(backbone: Backbone, pair: tuple[PetKind, PetKind], source: random.Random) -> Items:
    """Texts of all lengths, for two vPLMs of each kind with heads of any task, in any order."""
    vplms = []
    for seed, kind in enumerate(pair * 2):
        task, pooling = source.choice(HEADS)
        pet = pet_of(kind, first=source.randrange(4), rank=source.choice(RANKS))
        vplms.append(Vplm.make(backbone, pet, head_of(task, source.randint(2, 20), pooling), seed))
    items = [
        (vplm, random_text(source, source.choice(LENGTHS))) for vplm in vplms for _ in range(3)
    ]
    source.shuffle(items)
    return items


def run(engine: BatchedEngine, items: Sequence[tuple[Vplm, TokenizedText]]) -> list[Output]:
    return engine.run(MixedBatch.build([(vplm.loaded, text) for vplm, text in items]))


def cast(items: Items, backbone: Backbone, dtype: torch.dtype) -> Items:
    """The same vPLMs, loaded in another precision."""
    decoder = Decoder(backbone, dtype)
    loaded: dict[int, Vplm] = {}
    for vplm, _ in items:
        if id(vplm) not in loaded:
            decoded = decoder.decode(vplm.spec, vplm.tensors)
            assert decoder.row_bytes(vplm.spec) == decoded.row_bytes, "known from then on"
            module = decoded.place([own_row(size) for size in decoded.row_bytes])
            loaded[id(vplm)] = replace(vplm, loaded=module)
    return [(loaded[id(vplm)], text) for vplm, text in items]


@pytest.mark.parametrize("choice", [KernelChoice.NATIVE, KernelChoice.EAGER])
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
@settings(
    deadline=None,
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 10_000))
def test_a_pair_of_kinds_equals_each_alone(
    toy: Backbone, pair: tuple[PetKind, PetKind], choice: KernelChoice, seed: int
) -> None:
    items = items_of(toy, pair, random.Random(seed))
    engine = engine_of(toy, choice, torch.float32)
    together = run(engine, items)
    assert_answers(together, items)
    for output, item in zip(together, items, strict=True):
        (alone,) = run(engine, [item])
        np.testing.assert_allclose(output.values, alone.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("choice", [KernelChoice.NATIVE, KernelChoice.EAGER])
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_pair_in_bfloat16_equals_each_alone_but_for_rounding(
    toy: Backbone, pair: tuple[PetKind, PetKind], choice: KernelChoice
) -> None:
    items = cast(items_of(toy, pair, random.Random(11)), toy, torch.bfloat16)
    engine = engine_of(toy, choice, torch.bfloat16)
    for output, item in zip(run(engine, items), items, strict=True):
        (alone,) = run(engine, [item])
        largest = float(np.abs(alone.values).max())
        np.testing.assert_allclose(
            output.values, alone.values, rtol=0, atol=ROUNDING_BF16 * largest
        )
        if item[0].spec.head.task is not Task.EMBEDDING:
            assert_same_choice(output, alone, MARGIN_BF16 * largest)


def assert_same_choice(output: Output, alone: Output, margin: float) -> None:
    """Both prefer the same label wherever one is clearly ahead."""
    found, expected = np.atleast_2d(output.values), np.atleast_2d(alone.values)
    best = np.sort(expected, axis=-1)
    clear = best[:, -1] - best[:, -2] > margin
    np.testing.assert_array_equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])
