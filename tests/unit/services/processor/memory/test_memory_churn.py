"""Real modules through memory too small for them: no answer comes from somebody else's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from services.processor.engine import Engine
from services.processor.memory.hierarchy import Hierarchy
from services.processor.memory.residency import ModuleState, Residency
from services.processor.options import Device, EngineOptions, Eviction, MemoryOptions
from services.processor.requests import Batch, Chunk, ModuleKey
from smile.limits import KIB
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.loaded import LoadedModule
from smile.model.sources import BackboneSource, SourceKind
from smile.model.specs import HeadSpec, ModuleSpec, PetKind, PetSpec, Projection, Task
from smile.model.toy import write_toy_backbone
from smile.model.toy_modules import random_tensors
from tests.unit.services.processor.conftest import key
from tests.unit.services.processor.test_engine import chunk as chunk_of

PETS = (
    PetSpec(PetKind.NONE),
    PetSpec(PetKind.PFEIFFER, rank=8),
    PetSpec(PetKind.HOULSBY, rank=8),
    PetSpec(PetKind.LORA, rank=4, alpha=8.0, targets=(Projection.QUERY, Projection.VALUE)),
    PetSpec(PetKind.BITFIT),
    PetSpec(PetKind.DIFF_PRUNING, density=0.05),
    PetSpec(PetKind.MASK_BERT, density=0.05),
)
HEADS = (
    HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b", "c")),
    HeadSpec(Task.TOKEN_CLASSIFICATION, tuple("abcdefghij")),
)
MODULES = 20


class Fleet:
    """Modules of many kinds, each with its answer when alone."""

    def __init__(self, folder: Path) -> None:
        self.engine = Engine(
            EngineOptions((BackboneSource("toy", SourceKind.DIR, str(folder)),), threads=1)
        )
        self.engine.load()
        backbone = Backbone.load(folder, "toy")
        self.specs: list[ModuleSpec] = []
        self.stored: list[bytes] = []
        for number in range(MODULES):
            pet = PETS[number % len(PETS)].placed(backbone.shape)
            spec = ModuleSpec("toy", backbone.digest, pet, HEADS[number % len(HEADS)])
            tensors = random_tensors(spec, backbone.shape, seed=number)
            self.specs.append(spec)
            self.stored.append(weights.encode(tensors, spec))
        alone = [
            self.engine.load_module(spec, data)
            for spec, data in zip(self.specs, self.stored, strict=True)
        ]
        self.sizes = [sum(row.bytes.nbytes for row in module.rows) for module in alone]
        self.answers = [self.answer([number], [module])[0] for number, module in enumerate(alone)]

    def chunk(self, number: int) -> Chunk:
        return chunk_of(self.engine, number, "red star")

    def answer(
        self, numbers: Sequence[int], modules: Sequence[LoadedModule]
    ) -> list[NDArray[np.float32]]:
        batch = Batch.of("toy", [self.chunk(number) for number in numbers])
        answers = []
        for texts in self.engine.compute(self.engine.prepare(batch, modules)):
            assert isinstance(texts, tuple)
            answers.append(texts[0])
        return answers


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(write_toy_backbone(tmp_path_factory.mktemp("toy")))


def name(number: int) -> ModuleKey:
    return key(str(number))


@pytest.mark.parametrize("eviction", Eviction)
@pytest.mark.parametrize("seed", range(2))
def test_answers_are_those_of_the_module_alone(fleet: Fleet, seed: int, eviction: Eviction) -> None:
    chance = Random(seed)
    largest = max(fleet.sizes) + 8 * KIB
    options = MemoryOptions(4 * largest, 3 * largest, pinned_share=0.3, eviction=eviction)
    hierarchy = Hierarchy.build(options, Device.CPU)
    residency = Residency(hierarchy.memory, failed_s=1.0)
    flying: list[dict[int, LoadedModule]] = []

    def load(number: int) -> None:
        if not residency.begin(name(number), 0.0):
            return
        decoded = fleet.engine.decode(fleet.specs[number], fleet.stored[number])
        slots = residency.reserve(name(number), decoded.row_bytes)
        if slots is None:
            land()  # what is in use makes room
            slots = residency.reserve(name(number), decoded.row_bytes)
        assert slots is not None
        residency.publish(name(number), decoded.place(hierarchy.host.rows(slots)), 0.0)

    def take_off() -> None:
        batch: dict[int, LoadedModule] = {}
        for number in chance.sample(range(MODULES), 3):
            if residency.state(name(number), 0.0) is ModuleState.READY:
                module = residency.acquire(name(number), 0.0)
                if module is not None:
                    batch[number] = module
        if batch:
            flying.append(batch)

    def land() -> None:
        while flying:
            batch = flying.pop(0)
            answers = fleet.answer(list(batch), list(batch.values()))
            for number, answer in zip(batch, answers, strict=True):
                np.testing.assert_allclose(answer, fleet.answers[number], atol=1e-5)
                residency.release(name(number))

    for turn in range(120):
        load(chance.randrange(MODULES))
        for _ in range(chance.randrange(3)):
            take_off()
        if chance.random() < 0.3:
            residency.unload(name(chance.randrange(MODULES)))
        if chance.random() < 0.5:
            land()
        if turn % 50 == 49:
            residency.sweep(1.0, idle_s=0.5)
    land()
    assert residency.host.counters.evictions > 10, "memory was too small"
    residency.sweep(1.0, idle_s=0.5)
    assert residency.host.space.nbytes == residency.device.space.nbytes == 0
