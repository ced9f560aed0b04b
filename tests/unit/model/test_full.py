"""Whole models: gradients, steps and answers are those of transformers' own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smile.errors import DataCorrupted, InvalidSpec
from smile.formats import ExportFormat
from smile.limits import FULL_BYTES_MAX, MODULE_BYTES_MAX
from smile.model import checkpoint, layout, losses, port, weights
from smile.model.backbone import Backbone
from smile.model.checkpoint import Family
from smile.model.full import TABLES, FullModule
from smile.model.initial import StoredArray, initial_tensors
from smile.model.packing import pack
from smile.model.reference import VplmModule
from smile.model.specs import (
    BackboneShape,
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Pooling,
    Task,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers

FULL = PetSpec(PetKind.FULL, 0)
LABELS = ("a", "b", "c")
POOLER = HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.POOLER)
HEADS = {
    "pooler": POOLER,
    "cls": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.CLS),
    "mean": HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, Pooling.MEAN),
    "tokens": HeadSpec(Task.TOKEN_CLASSIFICATION, LABELS),
    "embedding": HeadSpec(Task.EMBEDDING, pooling=Pooling.CLS),
}
TEXTS = [[2, 45, 77, 101, 3], [2, 99, 3], [2, 120, 121, 45, 46, 150, 3]]
TARGETS = [0, 2, 1]
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def spec_of(backbone: Backbone, head: HeadSpec, dtype: DType = DType.FLOAT16) -> ModuleSpec:
    return ModuleSpec("toy", backbone.digest, FULL, head, dtype)


def moved(spec: ModuleSpec, shape: BackboneShape, seed: int = 5) -> dict[str, StoredArray]:
    """Tensors as training might leave them: small differences everywhere."""
    random = np.random.default_rng(seed)
    return {
        name: (0.02 * random.standard_normal(tensor.shape)).astype(
            np.float16 if spec.dtype is DType.FLOAT16 else np.float32
        )
        for name, tensor in layout.tensors(spec, shape).items()
    }


def test_every_number_of_the_backbone_is_a_parameter(toy: Backbone) -> None:
    for head in HEADS.values():
        spec = spec_of(toy, head)
        module = FullModule(toy, spec, initial_tensors(spec, toy.shape, 0))
        heads = sum(p.numel() for n, p in module.named_parameters() if n.startswith("head/"))
        assert sum(p.numel() for p in module.parameters()) == toy.shape.parameters + heads
        stored = layout.bytes_total(spec, toy.shape)
        assert stored == 2 * (toy.shape.parameters + heads)


def test_untrained_it_answers_as_the_bare_backbone(toy: Backbone) -> None:
    bare = replace(spec_of(toy, POOLER), pet=PetSpec(PetKind.NONE).placed(toy.shape))
    tensors = initial_tensors(spec_of(toy, POOLER), toy.shape, 7)
    heads = {name: t for name, t in tensors.items() if name.startswith("head.")}
    packed = pack(TEXTS)
    with torch.no_grad():
        mine = FullModule(toy, spec_of(toy, POOLER), tensors)(packed)
        assert torch.allclose(mine, VplmModule(toy, bare, heads)(packed), atol=1e-6)


@pytest.mark.parametrize("dtype", DType)
def test_export_gives_back_what_was_stored(toy: Backbone, dtype: DType) -> None:
    """Differences are added to weights and taken from them again: what that rounds is far below
    what float16 holds of them."""
    spec = spec_of(toy, POOLER, dtype)
    tensors = moved(spec, toy.shape)
    back = FullModule(toy, spec, tensors).export()
    assert back.keys() == tensors.keys()
    for name, array in back.items():
        np.testing.assert_allclose(array, tensors[name], atol=4e-7, rtol=2e-3)
    again = FullModule(toy, spec, back)
    once = dict(FullModule(toy, spec, tensors).named_parameters())
    for name, weight in again.named_parameters():
        assert torch.allclose(weight, once[name], atol=2e-5), name


def test_the_backbone_stays_as_it_is(toy: Backbone) -> None:
    before = toy.layers[0].projections
    copies = {name: dense.weight.clone() for name, dense in before.items()}
    spec = spec_of(toy, POOLER)
    module = FullModule(toy, spec, initial_tensors(spec, toy.shape, 0))
    module(pack(TEXTS)).sum().backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    for name, dense in toy.layers[0].projections.items():
        assert torch.equal(dense.weight, copies[name])
        assert not dense.weight.requires_grad


def test_first_steps_are_those_of_transformers(toy: Backbone, toy_path: Path) -> None:
    """Loss, every gradient and every weight after AdamW's steps, to 1e-5."""
    module, theirs = _twins(toy, toy_path)
    mine_of = dict(_named(module, theirs, toy))
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
                {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=1e-3,
            eps=1e-5,  # where softmax cancels a gradient, rounding is not blown up to a whole step
        )
        for model in (module, theirs)
    ]
    for _ in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        mine = losses.sequence_loss(module(pack(TEXTS)), torch.tensor(TARGETS))
        width = max(map(len, TEXTS))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in TEXTS])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in TEXTS])
        their = theirs(input_ids=ids, attention_mask=mask, labels=torch.tensor(TARGETS)).loss
        assert mine.item() == pytest.approx(their.item(), abs=TOLERANCE)
        mine.backward()
        their.backward()
        for name, parameter in theirs.named_parameters():
            mine_grad, their_grad = mine_of[name].grad, parameter.grad
            assert mine_grad is not None and their_grad is not None
            assert torch.allclose(mine_grad, their_grad, atol=TOLERANCE), name
        for optimizer in optimizers:
            optimizer.step()
        for name, parameter in theirs.named_parameters():
            assert torch.allclose(mine_of[name], parameter, atol=TOLERANCE), name


def _twins(toy: Backbone, path: Path) -> tuple[FullModule, Any]:
    """A whole model with BERT's own head, in both implementations, without dropout."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    theirs: Any = BertForSequenceClassification.from_pretrained(
        path, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    theirs.train()
    spec = spec_of(toy, POOLER, DType.FLOAT32)
    tensors = initial_tensors(spec, toy.shape, 3)
    pairs = {
        layout.HEAD_WEIGHT: theirs.classifier.weight,
        layout.HEAD_BIAS: theirs.classifier.bias,
        layout.POOLER_WEIGHT: theirs.bert.pooler.dense.weight,
        layout.POOLER_BIAS: theirs.bert.pooler.dense.bias,
    }
    for name, weight in pairs.items():
        tensors[name] = weight.detach().numpy().copy()
    return FullModule(toy, spec, tensors), theirs


def _named(module: FullModule, theirs: nn.Module, toy: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Our parameter by the name that transformers gives it."""
    mine: Mapping[str, Tensor] = dict(module.named_parameters())
    tables = zip(checkpoint.TABLES, TABLES, strict=True)
    names = {f"bert.{there}": here for there, here in tables}
    names |= {f"bert.{checkpoint.TABLES_NORM}.{half}": f"embeddings.norm.{half}"
              for half in ("weight", "bias")}  # fmt: skip
    for layer in range(toy.shape.layers):
        for place, path in (*checkpoint.PLACES.items(), *checkpoint.NORM_PLACES.items()):
            for half in ("weight", "bias"):
                there = f"bert.{checkpoint.path_of(layer, path)}.{half}"
                names[there] = f"layers.{layer}.{place}.{half}"
    names |= {
        "bert.pooler.dense.weight": layout.POOLER_WEIGHT,
        "bert.pooler.dense.bias": layout.POOLER_BIAS,
        "classifier.weight": layout.HEAD_WEIGHT,
        "classifier.bias": layout.HEAD_BIAS,
    }
    assert names.keys() == {name for name, _ in theirs.named_parameters()}
    return ((there, mine[here.replace(".", "/")]) for there, here in names.items())


@pytest.mark.parametrize("head", HEADS)
def test_exported_it_answers_as_it_was_trained(
    toy: Backbone, toy_path: Path, tmp_path: Path, head: str
) -> None:
    import transformers

    spec = spec_of(toy, HEADS[head])
    tensors = moved(spec, toy.shape)
    data = weights.encode(tensors, spec)
    module = port.ExportedModule(
        name="tenants/acme/vplms/mail/versions/2",
        spec=spec,
        data=data,
        tensors=weights.decode(data, spec, toy.shape),
        shape=toy.shape,
        family=Family.BERT,
        folder=toy_path,
    )
    assert port.natural(PetKind.FULL) is ExportFormat.HUGGINGFACE
    port.write(module, tmp_path / "out", ExportFormat.HUGGINGFACE)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    theirs = getattr(transformers, config.architectures[0]).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        mine = FullModule(toy, spec, tensors)(pack(TEXTS))
        for index, text in enumerate(TEXTS):
            found = theirs(input_ids=torch.tensor([text]))
            assert torch.allclose(
                _ours(spec.head, mine, index), _theirs(spec.head, found), atol=1e-5
            )


def _ours(head: HeadSpec, answers: Tensor, index: int) -> Tensor:
    if head.task is Task.TOKEN_CLASSIFICATION:
        part: Tensor = answers.split([len(text) for text in TEXTS])[index]
        return part
    return answers[index]


def _theirs(head: HeadSpec, found: Any) -> Tensor:
    if head.task is Task.EMBEDDING:
        first: Tensor = found.last_hidden_state[0, 0]
        unit: Tensor = first / first.norm()
        return unit
    logits: Tensor = found.logits[0]
    mean = head.task is Task.SEQUENCE_CLASSIFICATION and head.pooling is Pooling.MEAN
    return logits.mean(0) if mean else logits


def test_only_whole_models_may_be_large(minilm: Backbone) -> None:
    spec = replace(spec_of(minilm, POOLER), backbone="minilm")
    size = layout.bytes_total(spec, minilm.shape)
    assert size > MODULE_BYTES_MAX / 2 and weights.bytes_max(PetKind.FULL) == FULL_BYTES_MAX
    for kind in PetKind:
        if kind is not PetKind.FULL:
            assert weights.bytes_max(kind) == MODULE_BYTES_MAX


def test_what_is_no_whole_model_is_refused(toy: Backbone) -> None:
    spec = spec_of(toy, POOLER)
    data = weights.encode(moved(spec, toy.shape), spec)
    with pytest.raises(DataCorrupted, match="exactly the"):
        weights.decode(data, replace(spec, pet=PetSpec(PetKind.BITFIT, 0)), toy.shape)
    with pytest.raises(InvalidSpec, match="every layer from 0, got first_layer 2"):
        PetSpec(PetKind.FULL, 2)
    odd = replace(toy.shape, parameters=toy.shape.parameters + 1)
    with pytest.raises(InvalidSpec, match="are not those of an encoder of 4 layers"):
        layout.tensors(spec, odd)
    assert PetSpec(PetKind.FULL).placed(toy.shape).first_layer == 0
