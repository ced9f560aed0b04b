"""Any value in any field of a stranger's configuration ends in a module or in an error of ours."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smile.errors import DataCorrupted, Internal, SmileError
from smile.formats import ExportFormat
from smile.model import port
from smile.model.backbone import Backbone
from smile.model.port import ImportedModule, Target
from smile.model.specs import (
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Pooling,
    Projection,
    Task,
)
from tests.unit.model.port.port_world import exported

HEAD = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b"), Pooling.CLS)
MODULES = {
    ExportFormat.PEFT: PetSpec(PetKind.LORA, 2, 2, 4.0, (Projection.QUERY,)),
    ExportFormat.ADAPTERHUB: PetSpec(PetKind.PFEIFFER, 2, 2),
    ExportFormat.HUGGINGFACE: PetSpec(PetKind.BITFIT, 2),
    ExportFormat.SMILE: PetSpec(PetKind.HOULSBY, 2, 2),
}
FILES = ("adapter_config.json", "head_config.json", "config.json", "smile.json", "tokenizer.json")
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from(["query", "(", "relu", "tanh", "SEQ_CLS", "LORA", "bert", 10**400]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """A stranger's expression may warn on its way to being refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def folders(
    base: Backbone, base_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[ExportFormat, Path]:
    made = {}
    for kind, pet in MODULES.items():
        spec = ModuleSpec("toy", base.digest, pet, HEAD, DType.FLOAT16)
        made[kind] = tmp_path_factory.mktemp("fuzz") / "out"
        port.write(exported(base, spec, base_path), made[kind], kind)
    return made


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict):
        for key in list(value)[:40]:
            yield from _paths(value[key], (*at, key))


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.parametrize("kind", list(MODULES))
def test_no_value_in_no_field_surprises(
    folders: dict[ExportFormat, Path],
    target: Target,
    tmp_path: Path,
    kind: ExportFormat,
    data: st.DataObject,
) -> None:
    folder = tmp_path / "in"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders[kind], folder)
    file = data.draw(st.sampled_from([name for name in FILES if (folder / name).is_file()]))
    raw = json.loads((folder / file).read_text())
    path = data.draw(st.sampled_from(sorted(_paths(raw), key=str)))
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[path[-1]] = data.draw(VALUES)
    else:
        del inner[path[-1]]
    (folder / file).write_text(json.dumps(raw))
    with suppress(SmileError):
        assert isinstance(port.read(folder, target), ImportedModule)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.parametrize("kind", list(MODULES))
def test_damaged_tensors_are_told_in_our_words(
    folders: dict[ExportFormat, Path],
    target: Target,
    tmp_path: Path,
    kind: ExportFormat,
    data: st.DataObject,
) -> None:
    folder = tmp_path / "in"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders[kind], folder)
    file = data.draw(st.sampled_from(sorted(folder.glob("*.safetensors"))))
    damaged = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, min(len(damaged), 4000) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.sampled_from([len(damaged), len(damaged) - 1, at]))
    file.write_bytes(damaged[:cut])
    try:
        port.read(folder, target)
    except SmileError as error:
        assert not isinstance(error, DataCorrupted | Internal), "it is their folder that is wrong"
