"""Passes over one engine: what they share, and what they must not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.kernels import EAGER, kernels_for
from smile.model.kernels.rows import own_row
from smile.model.loaded import Decoder, LoadedModule
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

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
Item = tuple[LoadedModule, TokenizedText]


def pets(backbone: Backbone) -> list[PetSpec]:
    found = []
    for first, kind in itertools.product((0, 2), SERVED):
        if kind is PetKind.NONE:
            found.append(PetSpec(kind))
        elif kind is PetKind.BITFIT:
            found.append(PetSpec(kind, first))
        elif kind in SPARSE:
            found.append(PetSpec(kind, first, density=0.02))
        elif kind is PetKind.LORA:
            targets = (Projection.QUERY, Projection.INTERMEDIATE)
            found.append(PetSpec(kind, first, 4, 8.0, targets))
            found.append(PetSpec(kind, first, 4, 8.0, (Projection.VALUE,)))
        else:
            found.append(PetSpec(kind, first, 4))
    return [pet.placed(backbone.shape) for pet in found]


def items_of(backbone: Backbone, dtype: torch.dtype, seed: int = 0) -> list[Item]:
    source, decoder, found = random.Random(seed), Decoder(backbone, dtype), []
    heads = itertools.cycle(itertools.product(Task, (Pooling.MEAN, Pooling.CLS)))
    for number, (pet, (task, pooling)) in enumerate(zip(pets(backbone), heads, strict=False)):
        labels = () if task is Task.EMBEDDING else ("a", "b", "c")
        head = HeadSpec(task, labels, pooling)
        spec = ModuleSpec(backbone.name, backbone.digest, pet, head)
        decoded = decoder.decode(spec, random_tensors(spec, backbone.shape, seed=number))
        module = decoded.place([own_row(size) for size in decoded.row_bytes])
        ids = [source.randrange(200) for _ in range(source.choice([1, 7, 20, 45]))]
        found.append((module, TokenizedText(ids)))
    return found


def engine_of(backbone: Backbone, dtype: torch.dtype) -> BatchedEngine:
    kernels = kernels_for(CPU, dtype)
    if kernels is EAGER:
        pytest.skip("torch's products depend on the number of rows")
    return BatchedEngine.of(backbone, dtype=dtype, kernels=kernels)


def answers(engine: BatchedEngine, items: Sequence[Item]) -> list[NDArray[np.float32]]:
    return [output.values for output in engine.run(MixedBatch.build(items))]


def same(found: Sequence[NDArray[np.float32]], truth: Sequence[NDArray[np.float32]]) -> bool:
    return all(map(np.array_equal, found, truth)) and len(found) == len(truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_answer_is_the_same_to_the_bit_whoever_is_beside_it(
    toy: Backbone, dtype: torch.dtype
) -> None:
    engine, items = engine_of(toy, dtype), items_of(toy, dtype)
    together = answers(engine, items)
    alone = [answers(engine, [item])[0] for item in items]
    assert same(together, alone)
    for seed in range(3):
        some = random.Random(seed).sample(range(len(items)), 5)
        assert same(answers(engine, [items[at] for at in some]), [alone[at] for at in some])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_later_passes_leave_earlier_answers_as_they_are(toy: Backbone, dtype: torch.dtype) -> None:
    engine, items = engine_of(toy, dtype), items_of(toy, dtype)
    first = answers(engine, items[:3])
    before = [values.copy() for values in first]
    large = answers(engine, items * 4)
    again = answers(engine, items[:3])
    assert same(first, before) and same(again, before)
    assert same(large[:3], before) and same(large[len(items) :][:3], before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_run_passes_at_once(toy: Backbone, dtype: torch.dtype) -> None:
    """Four threads, batches of all sizes, texts that are known from one batch to the next."""
    engine, items = engine_of(toy, dtype), items_of(toy, dtype)
    text = items[3][1]
    items += [(module, text) for module, _ in items]
    truth = [answers(BatchedEngine.of(toy, dtype=dtype), [item])[0] for item in items]

    def work(seed: int) -> bool:
        source = random.Random(seed)
        for _ in range(12):
            some = source.sample(range(len(items)), source.choice([1, 2, 9, 24]))
            if not same(answers(engine, [items[at] for at in some]), [truth[at] for at in some]):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
