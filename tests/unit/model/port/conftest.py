"""A backbone with all that other libraries read of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smile.model.backbone import Backbone
from smile.model.port import Target
from smile.model.toy import write_toy_backbone
from tests.unit.model.port.port_world import target_of


@pytest.fixture(scope="session")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy BERT with a pooler of its own."""
    folder = write_toy_backbone(tmp_path_factory.mktemp("port") / "toy")
    file = folder / "model.safetensors"
    random = np.random.default_rng(7)
    tensors = load_file(file)
    tensors["pooler.dense.weight"] = (random.standard_normal((32, 32)) / 6).astype(np.float32)
    tensors["pooler.dense.bias"] = random.standard_normal(32).astype(np.float32)
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def base(base_path: Path) -> Backbone:
    return Backbone.load(base_path, "toy")


@pytest.fixture
def target(base: Backbone, base_path: Path) -> Target:
    return target_of(base, base_path)
