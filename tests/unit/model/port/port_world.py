"""Modules on their way out, and answers of ours and of theirs to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from smile.formats import ExportFormat
from smile.model import port, weights
from smile.model.backbone import Backbone
from smile.model.initial import StoredArray
from smile.model.packing import pack
from smile.model.port import ExportedModule, ImportedModule, Target
from smile.model.reference import VplmModule
from smile.model.specs import ModuleSpec
from smile.model.toy_modules import random_tensors

TOLERANCE = 1e-5
TEXTS = ((2, 70, 71, 72, 3), (2, 90, 3), (2, *range(60, 110), 3))


def target_of(backbone: Backbone, folder: Path | None) -> Target:
    info = backbone.info
    return Target(backbone.name, info.digest, info.family, info.shape, folder)


def exported(
    backbone: Backbone, spec: ModuleSpec, folder: Path | None, seed: int = 3
) -> ExportedModule:
    """A module of random numbers, as storage would hold it."""
    tensors = random_tensors(spec, backbone.shape, seed=seed)
    data = weights.encode(tensors, spec)
    name = "tenants/acme/vplms/topic/versions/2"
    info = backbone.info
    return ExportedModule(name, spec, data, tensors, info.shape, info.family, folder)


def sent_round(
    backbone: Backbone, spec: ModuleSpec, target: Target, folder: Path, format: ExportFormat
) -> tuple[ExportedModule, ImportedModule]:
    """A module of random numbers as it went out to `folder`, and as it came back from there."""
    module = exported(backbone, spec, target.folder)
    port.write(module, folder, format)
    return module, port.read(folder, target)


def answers(
    backbone: Backbone, spec: ModuleSpec, tensors: Mapping[str, StoredArray]
) -> list[Tensor]:
    """What the definition says to each of TEXTS."""
    module = VplmModule(backbone, spec, tensors)
    with torch.no_grad():
        return [module(pack([list(ids)])) for ids in TEXTS]


def imported_answers(backbone: Backbone, module: ImportedModule) -> list[Tensor]:
    return answers(backbone, module.spec, module.tensors)


def theirs(model: torch.nn.Module, key: str = "logits") -> list[Tensor]:
    """What a transformers model says to each of TEXTS."""
    model.eval()
    with torch.no_grad():
        return [getattr(model(input_ids=torch.tensor([ids])), key)[0] for ids in TEXTS]


def assert_close(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(got) == len(expected) == len(TEXTS)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.reshape(other.shape), other, rtol=0, atol=TOLERANCE)


def assert_same(got: Mapping[str, StoredArray], expected: Mapping[str, StoredArray]) -> None:
    """To the bit."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype and got[name].tobytes() == array.tobytes(), name
