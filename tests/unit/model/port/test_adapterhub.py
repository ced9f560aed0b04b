"""Adapters from AdapterHub and to it: the same numbers and the same answers as its library.

The library needs transformers 4, so it is asked in a Python of its own where there is one
(`benchmarks` makes it), and its recorded answers are in `golden/`.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch import Tensor

from smile.errors import FailedPrecondition, InvalidArgument
from smile.formats import ExportFormat
from smile.model import port
from smile.model.backbone import Backbone
from smile.model.port import Target
from smile.model.specs import (
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Pooling,
    Task,
)
from tests.unit.model.port import adapterhub_python
from tests.unit.model.port.port_world import (
    answers,
    assert_close,
    assert_same,
    exported,
    imported_answers,
    sent_round,
)

GOLDEN = Path(__file__).parent / "golden"
LABELS = ("a", "b", "c")
HEADS = {
    "pooler": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.POOLER),
    "cls": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.CLS),
    "mean": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.MEAN),
    "tokens": HeadSpec(Task.TOKEN_CLASSIFICATION, LABELS),
    "embedding": HeadSpec(Task.EMBEDDING, pooling=Pooling.CLS),
}
PETS = {
    "pfeiffer": PetSpec(PetKind.PFEIFFER, 2, 8),
    "pfeiffer, odd width": PetSpec(PetKind.PFEIFFER, 0, 7),
    "houlsby": PetSpec(PetKind.HOULSBY, 1, 5),
}
FOUND = {
    "pfeiffer": (PetSpec(PetKind.PFEIFFER, 2, 8), Pooling.CLS, ("no", "yes")),
    "houlsby": (PetSpec(PetKind.HOULSBY, 0, 4), Pooling.POOLER, ("LABEL_0", "LABEL_1", "LABEL_2")),
    "scaled": (PetSpec(PetKind.PFEIFFER, 0, 2), Pooling.CLS, ()),
    "feedforward": (PetSpec(PetKind.HOULSBY, 0, 2), Pooling.POOLER, ("LABEL_0", "LABEL_1")),
    "tagger": (PetSpec(PetKind.PFEIFFER, 0, 2), Pooling.MEAN, ("LABEL_0", "LABEL_1", "LABEL_2")),
    "static": (PetSpec(PetKind.PFEIFFER, 0, 2), Pooling.POOLER, ("LABEL_0", "LABEL_1")),
}


def recorded(name: str) -> list[Tensor]:
    told = json.loads((GOLDEN / "answers.json").read_text())
    return [torch.tensor(one) for one in told[name]]


@pytest.mark.parametrize("name", FOUND)
def test_recorded_adapters_answer_alike(base: Backbone, target: Target, name: str) -> None:
    module = port.read(GOLDEN / name, replace(target, pooling=Pooling.CLS))
    pet, pooling, labels = FOUND[name]
    assert (module.spec.pet, module.spec.head.labels) == (pet, labels)
    assert module.spec.head.pooling is pooling
    expected = recorded(name)
    if name == "scaled":  # no head: last states
        expected = [states[0] / states[0].norm() for states in expected]
    assert_close(imported_answers(base, module), expected)


def test_what_is_not_as_it_was_is_told(target: Target) -> None:
    told = {name: port.read(GOLDEN / name, target).remarks for name in FOUND}
    assert told["pfeiffer"] == told["tagger"] == ()
    assert "layers.1.feedforward.adapter: not in the folder, zeros here" in told["scaled"]
    assert "layers.0.feedforward.adapter: scaling 0.7 is multiplied into up" in told["scaled"]
    assert "layers.3.attention.adapter: not in the folder, zeros here" in told["feedforward"]


def test_the_numbers_are_the_librarys_own_to_the_bit(target: Target) -> None:
    module = port.read(GOLDEN / "pfeiffer", target)
    stored = load_file(GOLDEN / "pfeiffer" / "adapter.safetensors")
    there = "bert.encoder.layer.3.output.adapters.pfeiffer.adapter_up.weight"
    assert np.array_equal(module.tensors["layers.3.feedforward.adapter.up.weight"], stored[there])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "non-linearity": ({"non_linearity": "gelu"}, "non_linearity is 'gelu'"),
    "own norm before": ({"ln_before": True}, "ln_before is True"),
    "own norm after": ({"ln_after": True}, "ln_after is True"),
    "parallel": ({"is_parallel": True}, "is_parallel is True"),
    "gate": ({"use_gating": True}, "use_gating is True"),
    "learned scale": ({"scaling": "learned"}, "scaling is 'learned'"),
    "compacter": ({"phm_layer": True}, "phm_layer is True"),
    "invertible": ({"inv_adapter": "nice"}, "inv_adapter is 'nice'"),
    "no norm after": ({"original_ln_after": False}, "original_ln_after is False"),
    "residual": ({"residual_before_ln": "post_add"}, "residual_before_ln is 'post_add'"),
    "both, normed": ({"mh_adapter": True}, "mh_adapter is True"),
    "other method": ({"architecture": "lora"}, "architecture is 'lora'"),
    "future": ({"twist": 3}, "twist is 3"),
    "left out": ({"leave_out": "0"}, "leave_out must be a list of layers"),
    "more layers": ({"leave_out": [0]}, "has no adapter in layer 1 after feedforward"),
    "fewer layers": ({"leave_out": [0, 1, 2]}, "has an unexpected adapter in layer 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_field_and_value(
    target: Target, tmp_path: Path, case: str
) -> None:
    changes, message = REFUSED[case]
    _changed(tmp_path, "adapter_config.json", changes)
    with pytest.raises(InvalidArgument, match=message) as raised:
        port.read(tmp_path / "in", target)
    assert raised.value.reason in ("IMPORT_UNSUPPORTED", "IMPORT_MALFORMED")


HEADS_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"head_type": "causal_lm"}, "head_type is 'causal_lm'"),
    "layers": ({"layers": 3}, "layers is 3"),
    "activation": ({"layers": 2, "activation_function": "relu"}, "activation_function is 'relu'"),
    "two poolers": ({"layers": 2, "use_pooler": True}, "use_pooler is True"),
    "other tensors": ({"layers": 2}, "must hold 1.bias, 1.weight, 4.bias"),
    "labels": ({"label2id": {"a": 0, "b": 2}}, "a label for each of 2 classes"),
}


@pytest.mark.parametrize("case", HEADS_REFUSED)
def test_heads_that_no_vplm_has_are_refused(target: Target, tmp_path: Path, case: str) -> None:
    changes, message = HEADS_REFUSED[case]
    _changed(tmp_path, "head_config.json", changes)
    with pytest.raises(InvalidArgument, match=message):
        port.read(tmp_path / "in", target)


def _changed(tmp_path: Path, file: str, changes: dict[str, Any]) -> None:
    shutil.copytree(GOLDEN / "pfeiffer", tmp_path / "in")
    place = tmp_path / "in" / file
    whole = json.loads(place.read_text())
    place.write_text(json.dumps(whole | {"config": whole["config"] | changes}))


Tensors = dict[str, Any]
BROKEN: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "stranger": (lambda t: t | {"bert.embed": np.zeros(2, np.float32)}, "'bert.embed' is no part"),
    "other name": (
        lambda t: {name.replace("pfeiffer", "x"): a for name, a in t.items()},
        "no part of a bottleneck adapter 'pfeiffer'",
    ),
    "incomplete": (
        lambda t: {
            n: a for n, a in t.items() if "layer.2.output.adapters.pfeiffer.adapter_up.b" not in n
        },
        "has no up.bias",
    ),
    "width": (
        lambda t: {n: a[:, :9].copy() if a.shape == (8, 32) else a for n, a in t.items()},
        "down.weight in layer 2 after feedforward is .8, 9.",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tensors_are_refused(target: Target, tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    shutil.copytree(GOLDEN / "pfeiffer", tmp_path / "in")
    file = tmp_path / "in" / "adapter.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(InvalidArgument, match=message):
        port.read(tmp_path / "in", target)


def test_a_pickle_is_never_read(target: Target, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "pfeiffer", tmp_path / "in")
    (tmp_path / "in" / "adapter.safetensors").rename(tmp_path / "in" / "pytorch_adapter.bin")
    with pytest.raises(InvalidArgument, match="is a pickle") as raised:
        port.read(tmp_path / "in", target)
    assert raised.value.reason == "PICKLE_REFUSED"


@pytest.mark.parametrize("name", ["static", "feedforward"])
def test_a_frozen_pooler_needs_the_backbones_files(target: Target, name: str) -> None:
    with pytest.raises(FailedPrecondition, match="backbone_path"):
        port.read(GOLDEN / name, replace(target, folder=None))


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pet", PETS)
def test_export_and_import_give_the_same_module_to_the_bit(
    base: Backbone, target: Target, tmp_path: Path, pet: str, head: str, dtype: DType
) -> None:
    spec = ModuleSpec("toy", base.digest, PETS[pet], HEADS[head], dtype)
    module, back = sent_round(base, spec, target, tmp_path / "out", ExportFormat.ADAPTERHUB)
    assert back.spec == spec
    assert_same(back.tensors, module.tensors)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from([PetKind.PFEIFFER, PetKind.HOULSBY]),
    first=st.integers(0, 3),
    rank=st.integers(1, 32),
    labels=st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=9, unique=True),
    seed=st.integers(0, 99),
)
def test_any_adapter_comes_back(
    base: Backbone,
    target: Target,
    tmp_path_factory: pytest.TempPathFactory,
    kind: PetKind,
    first: int,
    rank: int,
    labels: list[str],
    seed: int,
) -> None:
    head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, tuple(labels), Pooling.CLS)
    spec = ModuleSpec("toy", base.digest, PetSpec(kind, first, rank), head, DType.FLOAT16)
    module = exported(base, spec, None, seed)
    out = tmp_path_factory.mktemp("any") / "out"
    port.write(module, out, ExportFormat.ADAPTERHUB)
    back = port.read(out, target)
    assert back.spec == spec
    assert_same(back.tensors, module.tensors)


def test_the_library_loads_every_export_and_answers_alike(
    base: Backbone, base_path: Path, tmp_path: Path
) -> None:
    python = adapterhub_python.found()
    if python is None:
        pytest.skip(adapterhub_python.WHY_NOT)
    cases = list(itertools.product(PETS, HEADS))
    folders, ours = [], []
    for number, (pet, head) in enumerate(cases):
        spec = ModuleSpec("toy", base.digest, PETS[pet], HEADS[head], DType.FLOAT16)
        module = exported(base, spec, base_path)
        folders.append(tmp_path / str(number))
        port.write(module, folders[-1], ExportFormat.ADAPTERHUB)
        ours.append(answers(base, spec, module.tensors))
    script = Path(__file__).parent / "adapterhub_library.py"
    told = subprocess.run(
        [python, script, "answer", base_path, *folders],
        capture_output=True,
        check=False,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    for (_, head), mine, found in zip(cases, ours, json.loads(told.stdout), strict=True):
        theirs = [torch.tensor(one) for one in found]
        if head == "embedding":
            theirs = [states[0] / states[0].norm() for states in theirs]
        elif head == "mean":
            theirs = [logits.mean(0) for logits in theirs]
        assert_close(mine, theirs)


def test_only_bottleneck_adapters_are_exported(
    base: Backbone, base_path: Path, tmp_path: Path
) -> None:
    spec = ModuleSpec("toy", base.digest, PetSpec(PetKind.BITFIT, 2), HEADS["cls"], DType.FLOAT16)
    with pytest.raises(InvalidArgument, match="its format is huggingface") as raised:
        port.write(exported(base, spec, base_path), tmp_path / "out", ExportFormat.ADAPTERHUB)
    assert raised.value.reason == "EXPORT_UNSUPPORTED"
