"""LoRA from PEFT and to it: the same numbers and the same answers as the library itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from smile.errors import FailedPrecondition, InvalidArgument, InvalidSpec, SmileError
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
    Projection,
    Task,
)
from tests.unit.model.port.port_world import (
    TEXTS,
    answers,
    assert_close,
    assert_same,
    exported,
    imported_answers,
    sent_round,
    target_of,
    theirs,
)

LABELS = ("a", "b", "c")
SEQUENCE = HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.POOLER)
EVERY = tuple(Projection)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """What transformers and PEFT deprecate of themselves is not ours to fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def model_of(base_path: Path, task: str, labels: int = 3) -> Any:
    from transformers import (
        AutoModel,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    torch.manual_seed(1)
    if task == "FEATURE_EXTRACTION":
        return AutoModel.from_pretrained(base_path)
    kind = {"SEQ_CLS": AutoModelForSequenceClassification}.get(
        task, AutoModelForTokenClassification
    )
    return kind.from_pretrained(base_path, num_labels=labels)


def trained(base_path: Path, task: str = "SEQ_CLS", **options: Any) -> nn.Module:
    """A PEFT model that training has moved: no tensor of LoRA's is zero."""
    from peft import LoraConfig, get_peft_model

    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    config = LoraConfig(task_type=task, **(fields | options))
    model = get_peft_model(model_of(base_path, task), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


def saved(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


CASES: dict[str, dict[str, Any]] = {
    "names": {},
    "upper layers": {"layers_to_transform": [2, 3]},
    "one layer": {"layers_to_transform": 1, "layers_pattern": "layer"},
    "layers apart": {"layers_to_transform": [0, 2]},
    "expression": {"target_modules": r".*layer\.[13]\.(attention\.self\.key|intermediate\.dense)"},
    "all linear": {"target_modules": "all-linear"},
    "dense, with the pooler": {"target_modules": ["dense"]},
    "excluded": {"target_modules": ["query", "dense"], "exclude_modules": ["pooler.dense"]},
    "rank-stabilised": {"use_rslora": True, "r": 3},
    "rank pattern": {"rank_pattern": {"layer.3.attention.self.query": 7}},
    "alpha pattern": {"alpha_pattern": {"value": 5.0}},
    "both patterns": {"rank_pattern": {"query": 2}, "alpha_pattern": {"layer.2.*query": 3.0}},
    "gaussian start": {"init_lora_weights": "gaussian"},
    "own pooler": {"modules_to_save": ["classifier", "pooler"]},
}


@pytest.mark.parametrize("case", CASES)
def test_a_classifier_of_pefts_answers_alike(
    base: Backbone, base_path: Path, target: Target, tmp_path: Path, case: str
) -> None:
    model = trained(base_path, **CASES[case])
    module = port.read(saved(model, tmp_path / "peft"), replace(target, labels=LABELS))
    assert module.spec.pet.kind is PetKind.LORA and module.spec.head == SEQUENCE
    merged = "head.pooler.weight: LoRA on the pooler is multiplied out into it"
    assert (merged in module.remarks) == (case in ("all linear", "dense, with the pooler"))
    assert_close(imported_answers(base, module), theirs(model))


def test_a_tagger_of_pefts_answers_alike(
    base: Backbone, base_path: Path, target: Target, tmp_path: Path
) -> None:
    model = trained(base_path, "TOKEN_CLS")
    module = port.read(saved(model, tmp_path / "peft"), target)
    assert module.spec.head == HeadSpec(
        Task.TOKEN_CLASSIFICATION, ("LABEL_0", "LABEL_1", "LABEL_2")
    )
    assert_close(imported_answers(base, module), theirs(model))


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.CLS])
def test_an_encoder_of_pefts_embeds_alike(
    base: Backbone, base_path: Path, target: Target, tmp_path: Path, pooling: Pooling
) -> None:
    model = trained(base_path, "FEATURE_EXTRACTION")
    module = port.read(saved(model, tmp_path / "peft"), replace(target, pooling=pooling))
    assert module.spec.head == HeadSpec(Task.EMBEDDING, pooling=pooling)
    states = theirs(model, "last_hidden_state")
    pooled = [one.mean(0) if pooling is Pooling.MEAN else one[0] for one in states]
    assert_close(imported_answers(base, module), [one / one.norm() for one in pooled])


def test_a_roberta_classifier_of_pefts_answers_alike(roberta_path: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    roberta = Backbone.load(roberta_path, "roberta")
    start = AutoModelForSequenceClassification.from_pretrained(roberta_path)
    config = LoraConfig(r=2, target_modules=["query", "dense"], task_type="SEQ_CLS")
    model = get_peft_model(start, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    module = port.read(saved(model, tmp_path / "peft"), target_of(roberta, None))
    assert module.spec.head.pooling is Pooling.POOLER
    assert_close(imported_answers(roberta, module), theirs(model))


def test_the_numbers_are_pefts_own_to_the_bit(
    base_path: Path, target: Target, tmp_path: Path
) -> None:
    folder = saved(trained(base_path), tmp_path / "peft")
    module = port.read(folder, target)
    stored = load_file(folder / "adapter_model.safetensors")
    assert module.spec.dtype is DType.FLOAT32 and module.remarks == ()
    for layer in range(4):
        path = f"base_model.model.bert.encoder.layer.{layer}.attention.self.query.lora"
        for half in "AB":
            ours = module.tensors[f"layers.{layer}.query.lora.{half.lower()}"]
            assert np.array_equal(ours, stored[f"{path}_{half}.weight"].numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(
    base_path: Path, target: Target, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = saved(trained(base_path, "TOKEN_CLS"), tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    halves = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(halves, file)
    module = port.read(folder, target)
    name = "base_model.model.bert.encoder.layer.1.attention.self.value.lora_A.weight"
    ours = module.tensors["layers.1.value.lora.a"]
    assert np.array_equal(ours.astype(np.float32), halves[name].float().numpy())
    if dtype is torch.float16:
        assert module.spec.dtype is DType.FLOAT16


def test_rounding_is_told(base_path: Path, target: Target, tmp_path: Path) -> None:
    folder = saved(trained(base_path), tmp_path / "peft")
    module = port.read(folder, replace(target, precision=DType.FLOAT16))
    assert module.spec.dtype is DType.FLOAT16
    assert any("layers.0.query.lora.a: 1" in remark for remark in module.remarks)
    assert all("rounded by at most" in remark for remark in module.remarks)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "dora": ({"use_dora": True}, "use_dora is True"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
    "changed base": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "tokens": ({"trainable_token_indices": [1, 2]}, r"trainable_token_indices is \[1, 2\]"),
    "future": ({"use_novelty": {"a": 1}}, r"use_novelty is \{'a': 1\}"),
    "another task": ({"task_type": "CAUSAL_LM"}, "task_type is 'CAUSAL_LM'"),
    "rank": ({"r": 5}, "rank of 'bert.encoder.layer.0.attention.self.query' is 5"),
    "no rank": ({"r": "4"}, "r must be a number, got '4'"),
    "no alpha": ({"lora_alpha": 0}, "must be positive, got 4 and 0"),
    "more targets": ({"target_modules": ["query", "value", "key"]}, "include 'bert.*key'"),
    "fewer targets": ({"target_modules": ["query"]}, "leave out 'bert.*value'"),
    "fewer layers": ({"layers_to_transform": [0]}, "leave out 'bert.encoder.layer.1"),
    "bad expression": ({"target_modules": "(query"}, "must be a regular expression"),
    "targets": ({"target_modules": 3}, "an expression or a list of names, got 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_field_and_value(
    base_path: Path, target: Target, tmp_path: Path, case: str
) -> None:
    folder = saved(trained(base_path), tmp_path / "peft")
    changes, message = REFUSED[case]
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InvalidArgument, match=message) as raised:
        port.read(folder, target)
    assert raised.value.reason in ("IMPORT_UNSUPPORTED", "IMPORT_MALFORMED")
    assert str(file) in raised.value.message or "adapter_model" in raised.value.message


def _without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "half": (_without("layer.1.attention.self.query.lora_A"), "only one of lora_A and lora_B"),
    "no lora": (_without("lora"), "has no tensor of LoRA"),
    "no head": (_without("classifier"), "has no 'classifier.bias'"),
    "stranger": (
        lambda t: t | {"x.embed.weight": torch.zeros(2)},
        "'x.embed.weight' belongs to no",
    ),
    "nan": (lambda t: {n: x * torch.nan for n, x in t.items()}, "not finite"),
    "integers": (lambda t: {n: x.int() for n, x in t.items()}, "is I32, must be one of"),
    "widths": (lambda t: {n: x[:, :9] if "lora_A" in n else x for n, x in t.items()}, "A .4, 9."),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tensors_are_refused(
    base_path: Path, target: Target, tmp_path: Path, case: str
) -> None:
    folder = saved(trained(base_path), tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    change, message = BROKEN[case]
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)
    with pytest.raises(InvalidArgument, match=message):
        port.read(folder, target)


def test_a_pickle_is_never_read(base_path: Path, target: Target, tmp_path: Path) -> None:
    folder = saved(trained(base_path), tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidArgument, match="save it as adapter_model") as raised:
        port.read(folder, target)
    assert raised.value.reason == "PICKLE_REFUSED"


def test_a_frozen_pooler_needs_the_backbones_files(
    base_path: Path, target: Target, tmp_path: Path
) -> None:
    folder = saved(trained(base_path), tmp_path / "peft")
    with pytest.raises(FailedPrecondition, match="backbone_path") as raised:
        port.read(folder, replace(target, folder=None))
    assert raised.value.reason == "BACKBONE_FILES_MISSING"


def test_labels_must_be_as_many_as_classes(base_path: Path, target: Target, tmp_path: Path) -> None:
    folder = saved(trained(base_path), tmp_path / "peft")
    with pytest.raises(InvalidSpec, match="3 classes, got 2 labels"):
        port.read(folder, replace(target, labels=("a", "b")))


HEADS = {
    "pooler": SEQUENCE,
    "cls": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.CLS),
    "mean": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.MEAN),
    "tokens": HeadSpec(Task.TOKEN_CLASSIFICATION, LABELS),
    "embedding": HeadSpec(Task.EMBEDDING, pooling=Pooling.CLS),
}
PETS = {
    "defaults": PetSpec(PetKind.LORA, 2, 4, 8.0, (Projection.QUERY, Projection.VALUE)),
    "everything": PetSpec(PetKind.LORA, 0, 3, 4.5, EVERY),
    "output alone": PetSpec(PetKind.LORA, 1, 5, 5.0, (Projection.OUTPUT,)),
}


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pet", PETS)
def test_export_and_import_give_the_same_module_to_the_bit(
    base: Backbone, target: Target, tmp_path: Path, pet: str, head: str, dtype: DType
) -> None:
    spec = ModuleSpec("toy", base.digest, PETS[pet], HEADS[head], dtype)
    module, back = sent_round(base, spec, target, tmp_path / "out", ExportFormat.PEFT)
    assert back.spec == spec
    assert_same(back.tensors, module.tensors)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pet", PETS)
def test_peft_loads_an_export_and_answers_alike(
    base: Backbone, base_path: Path, tmp_path: Path, pet: str, head: str
) -> None:
    from peft import PeftModel

    spec = ModuleSpec("toy", base.digest, PETS[pet], HEADS[head], DType.FLOAT16)
    module = exported(base, spec, base_path)
    port.write(module, tmp_path / "out", ExportFormat.PEFT)
    task = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"]
    model = PeftModel.from_pretrained(model_of(base_path, task), tmp_path / "out")
    assert_close(_as_ours(spec.head, model), answers(base, spec, module.tensors))


def test_pefts_auto_class_loads_an_export(base: Backbone, base_path: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification

    spec = ModuleSpec("toy", base.digest, PETS["defaults"], HEADS["cls"], DType.FLOAT16)
    module = exported(base, spec, base_path)
    port.write(module, tmp_path / "out", ExportFormat.PEFT)
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=3)
    assert_close(theirs(model), answers(base, spec, module.tensors))


def test_only_lora_is_exported(base: Backbone, base_path: Path, tmp_path: Path) -> None:
    spec = ModuleSpec("toy", base.digest, PetSpec(PetKind.BITFIT, 2), SEQUENCE, DType.FLOAT16)
    with pytest.raises(InvalidArgument, match="its format is huggingface") as raised:
        port.write(exported(base, spec, base_path), tmp_path / "out", ExportFormat.PEFT)
    assert raised.value.reason == "EXPORT_UNSUPPORTED"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(base: Backbone, base_path: Path, tmp_path: Path) -> None:
    spec = ModuleSpec("toy", base.digest, PETS["defaults"], SEQUENCE, DType.FLOAT16)
    module = exported(base, spec, base_path)
    port.write(module, tmp_path / "out", ExportFormat.PEFT)
    with pytest.raises(SmileError, match="nothing is overwritten") as raised:
        port.write(module, tmp_path / "out", ExportFormat.PEFT)
    assert raised.value.reason == "FOLDER_EXISTS"


def _as_ours(head: HeadSpec, model: nn.Module) -> list[torch.Tensor]:
    """A loaded model's answers, pooled as the card of the export says."""
    if head.task is Task.EMBEDDING:
        states = [one[0] for one in theirs(model, "last_hidden_state")]
        return [one / one.norm() for one in states]
    if head.task is Task.SEQUENCE_CLASSIFICATION and head.pooling is Pooling.MEAN:
        assert len(TEXTS) == 3
        return [one.mean(0) for one in theirs(model)]
    return theirs(model)
