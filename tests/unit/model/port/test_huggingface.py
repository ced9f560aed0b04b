"""Whole models in and out: what transformers loads answers alike, what it saves is understood."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
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

from smile.errors import FailedPrecondition, InvalidArgument, InvalidSpec
from smile.formats import ExportFormat
from smile.model import port
from smile.model.backbone import Backbone
from smile.model.packing import pack
from smile.model.port import Target
from smile.model.reference import VplmModule
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
HEADS = {
    "pooler": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.POOLER),
    "cls": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.CLS),
    "mean": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.MEAN),
    "tokens": HeadSpec(Task.TOKEN_CLASSIFICATION, LABELS),
    "embedding": HeadSpec(Task.EMBEDDING, pooling=Pooling.CLS),
}
PETS = {
    "none": PetSpec(PetKind.NONE, 2),
    "lora": PetSpec(PetKind.LORA, 1, 4, 8.0, tuple(Projection)),
    "bitfit": PetSpec(PetKind.BITFIT, 1),
    "diff-pruning": PetSpec(PetKind.DIFF_PRUNING, 2, density=0.01),
    "mask-bert": PetSpec(PetKind.MASK_BERT, 0, density=0.04),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What transformers deprecates of itself is not ours to fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def loaded(folder: Path) -> Any:
    """The model that the folder's own configuration names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder)


def as_ours(head: HeadSpec, model: Any) -> list[Tensor]:
    """A loaded model's answers, pooled as the card of the export says."""
    if head.task is Task.EMBEDDING:
        states = [one[0] for one in theirs(model, "last_hidden_state")]
        return [one / one.norm() for one in states]
    if head.task is Task.SEQUENCE_CLASSIFICATION and head.pooling is Pooling.MEAN:
        return [one.mean(0) for one in theirs(model)]
    return theirs(model)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pet", PETS)
def test_transformers_loads_a_merged_model_and_answers_alike(
    base: Backbone, base_path: Path, tmp_path: Path, pet: str, head: str
) -> None:
    spec = ModuleSpec("toy", base.digest, PETS[pet], HEADS[head], DType.FLOAT16)
    module = exported(base, spec, base_path)
    port.write(module, tmp_path / "out", ExportFormat.HUGGINGFACE)
    model = loaded(tmp_path / "out")
    if spec.head.labels:
        assert model.config.id2label == dict(enumerate(LABELS))
    assert_close(as_ours(spec.head, model), answers(base, spec, module.tensors))


@pytest.mark.parametrize("pet", ["lora", "bitfit"])
def test_a_merged_roberta_answers_alike(roberta_path: Path, tmp_path: Path, pet: str) -> None:
    roberta = Backbone.load(roberta_path, "roberta")
    for name in ("cls", "pooler", "tokens"):
        spec = ModuleSpec(
            "roberta", roberta.digest, replace(PETS[pet], first_layer=1), HEADS[name], DType.FLOAT16
        )
        module = exported(roberta, spec, roberta_path)
        port.write(module, tmp_path / name, ExportFormat.HUGGINGFACE)
        mine = answers(roberta, spec, module.tensors)
        assert_close(as_ours(spec.head, loaded(tmp_path / name)), mine)


def test_the_tokenizer_goes_along(base: Backbone, base_path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    spec = ModuleSpec("toy", base.digest, PETS["bitfit"], HEADS["cls"], DType.FLOAT16)
    port.write(exported(base, spec, base_path), tmp_path / "out", ExportFormat.HUGGINGFACE)
    text = "Shares rose in London, did not in Paris"
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"]
    assert tokens == base.tokenizer.encode([text], truncate=False)[0].ids


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.CLS])
def test_sentence_transformers_loads_an_embedding(
    base: Backbone, base_path: Path, tmp_path: Path, pooling: Pooling
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    head = HeadSpec(Task.EMBEDDING, pooling=pooling)
    spec = ModuleSpec("toy", base.digest, PETS["lora"], head, DType.FLOAT16)
    module = exported(base, spec, base_path)
    port.write(module, tmp_path / "out", ExportFormat.HUGGINGFACE)
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    text = "Shares rose in London"
    ids = base.tokenizer.encode([text], truncate=False)[0].ids
    with torch.no_grad():
        mine = VplmModule(base, spec, module.tensors)(pack([ids]))[0]
    got = torch.tensor(model.encode([text])[0])
    torch.testing.assert_close(got, mine, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pet", ["none", "bitfit", "diff-pruning", "mask-bert"])
def test_what_was_merged_is_found_again(
    base: Backbone, target: Target, tmp_path: Path, pet: str, head: str, dtype: DType
) -> None:
    spec = ModuleSpec("toy", base.digest, PETS[pet], HEADS[head], dtype)
    module, back = sent_round(base, spec, target, tmp_path / "out", ExportFormat.HUGGINGFACE)
    assert back.source is ExportFormat.HUGGINGFACE
    assert (back.spec.pet, back.spec.head) == (spec.pet, spec.head)
    heads = {name for name in module.tensors if name.startswith("head.")}
    assert_same(*({n: t[n] for n in heads} for t in (back.tensors, module.tensors)))
    assert_close(imported_answers(base, back), answers(base, spec, module.tensors))


@pytest.mark.parametrize("pet", ["none", "bitfit", "diff-pruning", "mask-bert"])
def test_what_was_merged_is_merged_again_within_one_rounding(
    base: Backbone, base_path: Path, target: Target, tmp_path: Path, pet: str
) -> None:
    """The second export of a re-imported first is the first; what is not to the bit was told."""
    spec = ModuleSpec("toy", base.digest, PETS[pet], HEADS["pooler"], DType.FLOAT32)
    port.write(exported(base, spec, base_path), tmp_path / "one", ExportFormat.HUGGINGFACE)
    back = port.read(tmp_path / "one", target)
    again = replace(exported(base, spec, base_path), spec=back.spec, tensors=back.tensors, data=b"")
    port.write(again, tmp_path / "two", ExportFormat.HUGGINGFACE)
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert first.keys() == second.keys()
    for name, array in first.items():
        ulps = np.abs(array.view(np.int32).astype(np.int64) - second[name].view(np.int32))
        assert ulps.max() <= 1, name
        told = [remark for remark in back.remarks if name.removeprefix("bert.") in remark]
        assert bool(told) == bool(ulps.any()), name
        assert not told or f": {np.count_nonzero(ulps)} of" in told[0]


def saved(base_path: Path, folder: Path, change: Callable[[Any], None], name: str = "") -> Path:
    """A fine-tuned model as transformers saves it."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(5)
    model = BertForSequenceClassification.from_pretrained(
        base_path, num_labels=2, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}
    )
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_path).save_pretrained(folder)
    return folder


def head_only(model: Any) -> None:
    model.classifier.weight.normal_()
    model.bert.pooler.dense.weight.normal_()


def biases(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "encoder.layer.3" in name and name.endswith("bias"):
            parameter.normal_()


def few_weights(model: Any) -> None:
    for layer in model.bert.encoder.layer[2:]:
        layer.output.dense.weight[0, :20] += 0.5
        layer.attention.self.query.weight[3, 4] = 0.25
        layer.output.dense.bias[1] = 2.0


def zeroed(model: Any) -> None:
    model.bert.encoder.layer[1].intermediate.dense.weight[5, :30] = 0


FINE_TUNED: dict[str, tuple[Callable[[Any], None], PetKind, int]] = {
    "head": (head_only, PetKind.NONE, 2),
    "biases": (biases, PetKind.BITFIT, 3),
    "few weights": (few_weights, PetKind.DIFF_PRUNING, 2),
    "zeros": (zeroed, PetKind.MASK_BERT, 1),
}


@pytest.mark.parametrize("case", FINE_TUNED)
def test_a_fine_tuned_model_is_recognised_and_answers_alike(
    base: Backbone, base_path: Path, target: Target, tmp_path: Path, case: str
) -> None:
    change, kind, first = FINE_TUNED[case]
    folder = saved(base_path, tmp_path / "in", change)
    module = port.read(folder, target)
    assert (module.spec.pet.kind, module.spec.pet.first_layer) == (kind, first)
    assert module.spec.head == HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("no", "yes"), Pooling.POOLER)
    assert all("within one rounding of float32" in remark for remark in module.remarks)
    assert_close(imported_answers(base, module), theirs(loaded(folder)))


def dense(model: Any) -> None:
    model.bert.encoder.layer[0].output.dense.weight += 1e-3


def embeddings(model: Any) -> None:
    model.bert.embeddings.word_embeddings.weight[7, 0] += 0.5
    model.bert.embeddings.LayerNorm.bias[0] += 0.25
    model.bert.encoder.layer[0].output.LayerNorm.weight[1] += 0.125
    model.bert.encoder.layer[2].output.LayerNorm.weight[:2] += 1


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "dense": (
        dense,
        "'encoder.layer.0.output.dense.weight' in 20.. of 2048 numbers by up to 0.001",
    ),
    "embeddings": (
        embeddings,
        "'embeddings.word_embeddings.weight' in 1 of [0-9]+ numbers by up to 0.5; "
        "'embeddings.LayerNorm.bias' in 1 of 32 numbers by up to 0.25; "
        "'encoder.layer.0.output.LayerNorm.weight' in 1 of 32 numbers by up to 0.125 and 1 more",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_kind_changes_is_refused_by_tensor_and_amount(
    base_path: Path, target: Target, tmp_path: Path, case: str
) -> None:
    change, message = REFUSED[case]
    with pytest.raises(InvalidArgument, match=message) as raised:
        port.read(saved(base_path, tmp_path / "in", change), target)
    assert raised.value.reason == "IMPORT_UNSUPPORTED"


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architectures": ["BertForMaskedLM"]}, r"architectures is \['BertForM"),
    "several": ({"problem_type": "multi_label_classification"}, "problem_type is 'multi_label"),
    "layers": ({"num_hidden_layers": 3}, "layers is 3, the backbone has 4"),
    "activation": ({"hidden_act": "relu"}, "activation is relu, the backbone has gelu"),
    "labels": ({"id2label": {"0": "no"}}, "a label for each of 2 classes"),
    "repeated labels": ({"id2label": {"0": "no", "1": "no"}}, "labels repeat"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_other_models_are_refused_by_field_and_value(
    base_path: Path, target: Target, tmp_path: Path, case: str
) -> None:
    changes, message = CONFIGS[case]
    folder = saved(base_path, tmp_path / "in", head_only)
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    if "id2label" in changes:
        del raw["label2id"]
    file.write_text(json.dumps(raw | changes))
    with pytest.raises((InvalidArgument, InvalidSpec), match=message):
        port.read(folder, target)


def test_another_vocabulary_is_refused(base_path: Path, target: Target, tmp_path: Path) -> None:
    folder = saved(base_path, tmp_path / "in", head_only)
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text())
    vocabulary = raw["model"]["vocab"]
    vocabulary["london"], vocabulary["paris"] = vocabulary["paris"], vocabulary["london"]
    file.write_text(json.dumps(raw))
    with pytest.raises(InvalidArgument, match=r"'(london|paris)' otherwise"):
        port.read(folder, target)


def test_another_normalisation_is_refused(base_path: Path, target: Target, tmp_path: Path) -> None:
    folder = saved(base_path, tmp_path / "in", head_only)
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text())
    raw["normalizer"]["lowercase"] = False
    file.write_text(json.dumps(raw))
    with pytest.raises(InvalidArgument, match="normalizer is"):
        port.read(folder, target)


def test_a_folder_without_tokenizer_is_told(
    base_path: Path, target: Target, tmp_path: Path
) -> None:
    folder = saved(base_path, tmp_path / "in", head_only)
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    assert port.read(folder, target).remarks == (
        "the folder has no tokenizer: the backbone's is used",
    )


def test_weights_must_be_there_and_whole(base_path: Path, target: Target, tmp_path: Path) -> None:
    folder = saved(base_path, tmp_path / "in", head_only)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if n != "classifier.bias"}, file)
    with pytest.raises(InvalidArgument, match=r"has no 'classifier\.bias'"):
        port.read(folder, target)
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidArgument, match="not a safetensors file"):
        port.read(folder, target)
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidArgument, match="is a pickle and is never read"):
        port.read(folder, target)


def test_the_backbones_files_are_needed(base: Backbone, base_path: Path, tmp_path: Path) -> None:
    nowhere = target_of(base, None)
    with pytest.raises(FailedPrecondition, match="backbone_path") as raised:
        port.read(saved(base_path, tmp_path / "in", head_only), nowhere)
    assert raised.value.reason == "BACKBONE_FILES_MISSING"
    spec = ModuleSpec("toy", base.digest, PETS["bitfit"], HEADS["cls"], DType.FLOAT16)
    with pytest.raises(FailedPrecondition, match="backbone_path"):
        port.write(exported(base, spec, None), tmp_path / "out", ExportFormat.HUGGINGFACE)


@pytest.mark.parametrize("kind", [PetKind.PFEIFFER, PetKind.HOULSBY])
def test_adapters_cannot_be_merged(
    base: Backbone, base_path: Path, tmp_path: Path, kind: PetKind
) -> None:
    spec = ModuleSpec("toy", base.digest, PetSpec(kind, 2, 4), HEADS["cls"], DType.FLOAT16)
    with pytest.raises(InvalidArgument, match=r"cannot be merged .* adapterhub") as raised:
        port.write(exported(base, spec, base_path), tmp_path / "out", ExportFormat.HUGGINGFACE)
    assert raised.value.reason == "EXPORT_UNSUPPORTED"


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_few_changes_are_found_to_the_bit(
    base: Backbone,
    base_path: Path,
    target: Target,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    """The module's entries are those that changed, its values how much; all others are 0."""
    start = load_file(base_path / "model.safetensors")
    now = {name: array.copy() for name, array in start.items()}
    layer = data.draw(st.integers(0, 3))
    place = data.draw(st.sampled_from(["output.dense", "attention.self.key", "intermediate.dense"]))
    name = f"encoder.layer.{layer}.{place}.weight"
    size = now[name].size
    entries = sorted(
        data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=int(0.05 * size)))
    )
    now[name].reshape(-1)[entries] += np.float32(0.5)
    folder = tmp_path_factory.mktemp("few")
    save_file(now, folder / "model.safetensors")
    (folder / "config.json").write_bytes((base_path / "config.json").read_bytes())
    module = port.read(folder, target)
    assert (module.spec.pet.kind, module.spec.pet.first_layer) == (PetKind.DIFF_PRUNING, layer)
    places = {"output.dense": "output", "attention.self.key": "key"}
    prefix = f"layers.{layer}.{places.get(place, 'intermediate')}.delta"
    indices, values = module.tensors[f"{prefix}.indices"], module.tensors[f"{prefix}.values"]
    assert list(indices[values != 0]) == entries
    found = start[name].reshape(-1)[entries] + values[values != 0].astype(np.float32)
    np.testing.assert_array_max_ulp(found, now[name].reshape(-1)[entries], maxulp=1)


def test_folders_of_no_known_format_are_refused(target: Target, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="has neither adapter_config"):
        port.read(tmp_path, target)
    with pytest.raises(InvalidArgument, match="is no folder"):
        port.read(tmp_path / "gone", target)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InvalidArgument, match="is not a JSON object"):
        port.read(tmp_path, target)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidArgument, match="is not JSON"):
        port.read(tmp_path, target)
