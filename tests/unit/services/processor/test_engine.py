"""The engine: backbones that are there, modules that fit them, outputs in order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.processor.engine import Engine
from services.processor.materialize.options import INCLUDED, StandInPlace
from services.processor.options import Device, EngineOptions
from services.processor.requests import Batch, Chunk, FloatArray, ModuleKey
from smile.errors import DataCorrupted, FailedPrecondition
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.initial import initial_tensors
from smile.model.loaded import LoadedModule
from smile.model.sources import BackboneSource, SourceKind
from smile.model.specs import DType, HeadSpec, ModuleSpec, PetKind, PetSpec, Task
from smile.model.toy import write_toy_backbone
from smile.names import tenant_id
from smile.resources import Exactness


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    source = BackboneSource("toy", SourceKind.DIR, str(folder))
    engine = Engine(EngineOptions((source,), threads=1))
    engine.load()
    return engine


@pytest.fixture(scope="module")
def spec(folder: Path) -> ModuleSpec:
    backbone = Backbone.load(folder, "toy")
    pet = PetSpec(PetKind.BITFIT).placed(backbone.shape)
    return ModuleSpec(
        "toy", backbone.digest, pet, HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b", "c"))
    )


def chunk(engine: Engine, number: int, *texts: str) -> Chunk:
    tokens = tuple(engine.tokenizer("toy").encode(texts))
    return Chunk(
        number=number,
        request=number,
        tenant=tenant_id("acme"),
        backbone="toy",
        module=ModuleKey(tenant_id("acme"), str(number), ""),
        due=1.0,
        deadline=1.0,
        texts=tokens,
        tokens=sum(map(len, tokens)),
    )


def answers(
    engine: Engine, chunks: list[Chunk], modules: list[LoadedModule]
) -> list[tuple[FloatArray, ...]]:
    computed = engine.compute(engine.prepare(Batch.of("toy", chunks), modules))
    assert all(isinstance(one, tuple) for one in computed)
    return [one for one in computed if isinstance(one, tuple)]


def test_outputs_come_by_chunk_in_order(engine: Engine, spec: ModuleSpec) -> None:
    modules = [
        engine.load_module(
            spec, weights.encode(initial_tensors(spec, engine.shape("toy"), seed), spec)
        )
        for seed in (1, 2)
    ]
    chunks = [chunk(engine, 1, "red", "blue star"), chunk(engine, 2, "red")]
    outputs = answers(engine, chunks, modules)
    assert [len(values) for values in outputs] == [2, 1]
    assert all(values.shape == (3,) for one in outputs for values in one)
    alone = answers(engine, chunks[1:], modules[1:])
    np.testing.assert_allclose(outputs[1][0], alone[0][0], atol=1e-5)
    assert not np.allclose(outputs[0][0], outputs[1][0]), "each has its own weights"


def test_an_answer_that_is_not_finite_fails_its_own_chunk_alone(
    engine: Engine, spec: ModuleSpec
) -> None:
    tensors = initial_tensors(spec, engine.shape("toy"), 1)
    healthy = engine.load_module(spec, weights.encode(tensors, spec))
    float32 = replace(spec, dtype=DType.FLOAT32)
    huge = {name: np.full(tensor.shape, 3e38, np.float32) for name, tensor in tensors.items()}
    poisoned = engine.load_module(float32, weights.encode(huge, float32))
    chunks = [chunk(engine, number, "red", "blue star") for number in (1, 2, 3)]
    modules = [healthy, poisoned, healthy]
    first, second, third = engine.compute(engine.prepare(Batch.of("toy", chunks), modules))
    assert isinstance(second, DataCorrupted) and second.reason == "OUTPUT_NOT_FINITE"
    (alone,) = answers(engine, chunks[:1], modules[:1])
    assert isinstance(first, tuple) and isinstance(third, tuple)
    for one in (first, third):
        np.testing.assert_allclose(one, alone, atol=1e-5)


def test_a_module_says_what_it_takes(engine: Engine, spec: ModuleSpec) -> None:
    data = weights.encode(initial_tensors(spec, engine.shape("toy"), 0), spec)
    assert engine.decode(spec, data).nbytes >= len(data) / 2
    with pytest.raises(DataCorrupted):
        engine.decode(spec, data[:-1])


def test_modules_of_other_backbones_are_refused(engine: Engine, spec: ModuleSpec) -> None:
    with pytest.raises(FailedPrecondition, match="'other' is not served here; served are toy"):
        engine.check(replace(spec, backbone="other"))
    with pytest.raises(FailedPrecondition, match=f"digest {'0' * 64}; served here is") as caught:
        engine.check(replace(spec, backbone_digest="0" * 64))
    assert caught.value.reason == "BACKBONE_MISMATCH"
    engine.check(spec)


def test_loading_again_goes_on_where_it_failed(tmp_path: Path, folder: Path) -> None:
    late = tmp_path / "late"
    sources = (
        BackboneSource("toy", SourceKind.DIR, str(folder)),
        BackboneSource("late", SourceKind.DIR, str(late)),
    )
    engine = Engine(EngineOptions(sources, threads=1))
    assert engine.text_tokens_max == 1
    with pytest.raises(FailedPrecondition, match="no directory"):
        engine.load()
    assert list(engine.backbones) == ["toy"]
    write_toy_backbone(late, seed=1)
    engine.load()
    assert list(engine.backbones) == ["toy", "late"]
    assert engine.text_tokens_max == 128


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_such_device(folder: Path) -> None:
    source = BackboneSource("toy", SourceKind.DIR, str(folder))
    with pytest.raises(FailedPrecondition, match="no CUDA device"):
        Engine(EngineOptions((source,), device=Device.CUDA)).load()


def test_a_backbone_for_which_no_local_encoder_comes_along_is_exact(folder: Path) -> None:
    source = BackboneSource("toy", SourceKind.DIR, str(folder))
    engine = Engine(EngineOptions((source,), threads=1, stand_ins={"toy": StandInPlace(INCLUDED)}))
    engine.load()
    assert engine.backbones == ("toy",)
    spec = ModuleSpec("toy", engine.digest("toy"), PetSpec(PetKind.NONE), HeadSpec(Task.EMBEDDING))
    engine.check(spec, Exactness.EXACT)
    with pytest.raises(FailedPrecondition) as caught:
        engine.check(spec, Exactness.MATERIALIZED)
    assert caught.value.reason == "NOT_MATERIALIZED"
