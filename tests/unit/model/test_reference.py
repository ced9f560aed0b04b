"""The trainable definition against transformers, PEFT and AdapterHub's placement; gradients too."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from smile.model import layout, losses
from smile.model.backbone import Backbone
from smile.model.layout import Block, Norm
from smile.model.packing import pack
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
from smile.model.toy_modules import random_tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and peft

TOLERANCE = 1e-5
LABELS = ("a", "b", "c")
TOKENS = HeadSpec(Task.TOKEN_CLASSIFICATION, LABELS)
SEQUENCE = HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS)
HF_PLACES: dict[Projection | Norm, str] = {
    Projection.QUERY: "attention.self.query",
    Projection.KEY: "attention.self.key",
    Projection.VALUE: "attention.self.value",
    Projection.ATTENTION_OUTPUT: "attention.output.dense",
    Projection.INTERMEDIATE: "intermediate.dense",
    Projection.OUTPUT: "output.dense",
    Norm.ATTENTION: "attention.output.LayerNorm",
    Norm.OUTPUT: "output.LayerNorm",
}


@dataclass(frozen=True)
class Subject:
    """A backbone in both implementations."""

    backbone: Backbone
    model: nn.Module  # transformers' BertModel
    texts: list[list[int]]

    def layer(self, index: int) -> nn.Module:
        return self.model.get_submodule(f"encoder.layer.{index}")


@pytest.fixture(params=["toy", "minilm"])
def subject(request: pytest.FixtureRequest) -> Subject:
    backbone: Backbone = request.getfixturevalue(request.param)
    path: Path = request.getfixturevalue(f"{request.param}_path")
    return subject_of(backbone, path)


@pytest.fixture
def small(toy: Backbone, toy_path: Path) -> Subject:
    return subject_of(toy, toy_path)


def subject_of(backbone: Backbone, path: Path) -> Subject:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    source = random.Random(0)
    texts = [[source.randrange(200) for _ in range(length)] for length in (9, 1, 30, 17)]
    return Subject(backbone, model, texts)


def spec_of(
    backbone: Backbone, pet: PetSpec, head: HeadSpec, dtype: DType = DType.FLOAT32
) -> ModuleSpec:
    return ModuleSpec(backbone.name, backbone.digest, pet.placed(backbone.shape), head, dtype)


def module_of(backbone: Backbone, pet: PetSpec, head: HeadSpec = TOKENS) -> VplmModule:
    spec = spec_of(backbone, pet, head)
    return VplmModule(backbone, spec, random_tensors(spec, backbone.shape, seed=1))


def hf_states(model: nn.Module, texts: list[list[int]]) -> Tensor:
    """Last states of texts computed one at a time, end to end: [tokens, H]."""
    return torch.cat([model(torch.tensor([ids])).last_hidden_state[0] for ids in texts])


def head_of(module: VplmModule, states: Tensor) -> Tensor:
    """The module's head as a plain linear layer of torch's."""
    tensors = module.export()
    linear = nn.Linear(states.shape[1], len(LABELS))
    linear.weight.data = torch.tensor(tensors[layout.HEAD_WEIGHT])
    linear.bias.data = torch.tensor(tensors[layout.HEAD_BIAS])
    answer: Tensor = linear(states)
    return answer


def assert_equals(module: VplmModule, model: nn.Module, texts: list[list[int]]) -> None:
    with torch.no_grad():
        got = module(pack(texts))
        expected = head_of(module, hf_states(model, texts))
        bare = VplmModule(
            module.backbone,
            spec_of(module.backbone, PetSpec(PetKind.NONE), TOKENS),
            {n: t for n, t in module.export().items() if n.startswith("head.")},
        )(pack(texts))
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    assert (got - bare).abs().max() > 0.05, "the PET module does something"


def peft_model(subject: Subject, module: VplmModule) -> nn.Module:
    """PEFT's LoRA with the module's tensors."""
    from peft import LoraConfig, get_peft_model

    pet = module.spec.pet
    layers = "|".join(str(layer) for layer in layers_of(module))
    places = "|".join(HF_PLACES[target] for target in pet.targets).replace(".", r"\.")
    config = LoraConfig(
        r=pet.rank,
        lora_alpha=pet.alpha,  # type: ignore[arg-type]
        target_modules=rf".*layer\.({layers})\.({places})",
    )
    tensors = module.export()
    model = get_peft_model(copy.deepcopy(subject.model), config).eval()
    for layer in layers_of(module):
        for target in pet.targets:
            for half in "ab":
                weight = lora_weight(model, layer, target, half)
                name = f"{layout.lora_name(layer, target)}.{half}"
                assert weight.shape == tensors[name].shape
                weight.data = torch.tensor(tensors[name])
    return model


def lora_weight(model: nn.Module, layer: int, target: Projection, half: str) -> nn.Parameter:
    place = f"base_model.model.encoder.layer.{layer}.{HF_PLACES[target]}"
    return model.get_parameter(f"{place}.lora_{half.upper()}.default.weight")


def layers_of(module: VplmModule) -> range:
    return layout.pet_layers(module.spec.pet, module.backbone.shape)


@pytest.mark.parametrize("rank", [1, 5, 16])
@pytest.mark.parametrize(
    "targets", [(Projection.QUERY, Projection.VALUE), tuple(Projection)], ids=["two", "all"]
)
def test_lora_equals_peft(subject: Subject, rank: int, targets: tuple[Projection, ...]) -> None:
    pet = PetSpec(PetKind.LORA, None, rank, alpha=rank, targets=targets)
    module = module_of(subject.backbone, pet)
    assert_equals(module, peft_model(subject, module), subject.texts)


@pytest.mark.parametrize("target", list(Projection))
def test_lora_of_each_projection_equals_peft(small: Subject, target: Projection) -> None:
    pet = PetSpec(PetKind.LORA, 1, 3, alpha=6, targets=(target,))
    module = module_of(small.backbone, pet)
    assert_equals(module, peft_model(small, module), small.texts)


def bitfit_model(subject: Subject, module: VplmModule) -> nn.Module:
    """transformers' model with the module's deltas added to its biases."""
    model = copy.deepcopy(subject.model)
    for layer in layers_of(module):
        for place, path in HF_PLACES.items():
            bias = model.get_parameter(f"encoder.layer.{layer}.{path}.bias")
            bias.data += torch.tensor(module.export()[layout.bias_name(layer, place)])
    return model


@pytest.mark.parametrize("first", [0, 2])
def test_bitfit_equals_changed_biases(subject: Subject, first: int) -> None:
    module = module_of(subject.backbone, PetSpec(PetKind.BITFIT, first))
    assert_equals(module, bitfit_model(subject, module), subject.texts)


def sparse_model(subject: Subject, module: VplmModule) -> nn.Module:
    """transformers' model with dense weights: the module's updates added, what it masks zero."""
    diff = module.spec.pet.kind is PetKind.DIFF_PRUNING
    model = bitfit_model(subject, module) if diff else copy.deepcopy(subject.model)
    tensors = module.export()
    for layer in layers_of(module):
        for projection in Projection:
            weight = model.get_parameter(f"encoder.layer.{layer}.{HF_PLACES[projection]}.weight")
            flat = weight.data.numpy().reshape(-1)
            if diff:
                prefix = layout.delta_name(layer, projection)
                flat[tensors[f"{prefix}.indices"]] += tensors[f"{prefix}.values"]
            else:
                bits = np.unpackbits(tensors[layout.mask_name(layer, projection)].astype(np.uint8))
                flat[bits[: flat.size].astype(bool)] = 0
    return model


@pytest.mark.parametrize("kind", [PetKind.DIFF_PRUNING, PetKind.MASK_BERT])
@pytest.mark.parametrize("first", [0, 2])
def test_sparse_kinds_equal_changed_weights(subject: Subject, kind: PetKind, first: int) -> None:
    module = module_of(subject.backbone, PetSpec(kind, first, density=0.05))
    assert_equals(module, sparse_model(subject, module), subject.texts)


def bottleneck(
    module: VplmModule, layer: int, block: Block, activation: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    tensors = {name: torch.tensor(tensor) for name, tensor in module.export().items()}
    name = layout.adapter_name(layer, block)

    def adapter(x: Tensor) -> Tensor:
        down = activation(x @ tensors[f"{name}.down.weight"].T + tensors[f"{name}.down.bias"])
        return down @ tensors[f"{name}.up.weight"].T + tensors[f"{name}.up.bias"]

    return adapter


@pytest.mark.parametrize("rank", [1, 24])
def test_houlsby_equals_adapters_after_both_dense_products(subject: Subject, rank: int) -> None:
    module = module_of(subject.backbone, PetSpec(PetKind.HOULSBY, 1, rank))
    places = {Block.ATTENTION: "attention.output.dense", Block.FEEDFORWARD: "output.dense"}
    model = copy.deepcopy(subject.model)
    for layer in layers_of(module):
        for block, place in places.items():
            adapter = bottleneck(module, layer, block, functional.silu)
            dense = model.get_submodule(f"encoder.layer.{layer}.{place}")
            dense.register_forward_hook(lambda _module, _inputs, y, adapter=adapter: y + adapter(y))
    assert_equals(module, model, subject.texts)


@pytest.mark.parametrize("rank", [1, 24])
def test_pfeiffer_equals_an_adapter_over_the_normed_block(subject: Subject, rank: int) -> None:
    """AdapterHub: out = up(relu(down(LN(h + x)))) + h, then LN(out + x); its hook sees h + x."""
    module = module_of(subject.backbone, PetSpec(PetKind.PFEIFFER, 1, rank))
    model = copy.deepcopy(subject.model)
    for layer in layers_of(module):
        adapter = bottleneck(module, layer, Block.FEEDFORWARD, functional.relu)
        norm = model.get_submodule(f"encoder.layer.{layer}.output.LayerNorm")
        plain = copy.deepcopy(norm)  # without the hook
        norm.register_forward_pre_hook(
            lambda _module, inputs, adapter=adapter, plain=plain: (
                inputs[0] + adapter(plain(inputs[0])),
            )
        )
    assert_equals(module, model, subject.texts)


@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_sequence_head_is_a_linear_layer_over_pooled_states(
    subject: Subject, pooling: Pooling
) -> None:
    head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, pooling)
    module = module_of(subject.backbone, PetSpec(PetKind.NONE), head)
    with torch.no_grad():
        pooled = torch.stack(
            [
                states.mean(0) if pooling is Pooling.MEAN else states[0]
                for states in (hf_states(subject.model, [ids]) for ids in subject.texts)
            ]
        )
        if pooling is Pooling.POOLER:
            weight, bias = (
                torch.tensor(module.export()[name], dtype=torch.float32)
                for name in (layout.POOLER_WEIGHT, layout.POOLER_BIAS)
            )
            pooled = (pooled @ weight.T + bias).tanh()
        got, expected = module(pack(subject.texts)), head_of(module, pooled)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def test_an_embedding_is_the_normalised_mean(subject: Subject) -> None:
    module = module_of(subject.backbone, PetSpec(PetKind.NONE), HeadSpec(Task.EMBEDDING))
    with torch.no_grad():
        got = module(pack(subject.texts))
        for row, ids in zip(got, subject.texts, strict=True):
            mean = hf_states(subject.model, [ids]).mean(0)
            torch.testing.assert_close(row, mean / mean.norm(), rtol=0, atol=TOLERANCE)


def gradients(loss: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(weights, found, strict=True))


def token_targets(texts: list[list[int]]) -> Tensor:
    return torch.tensor([token % 3 for ids in texts for token in ids])


def module_gradients(module: VplmModule, texts: list[list[int]]) -> dict[str, Tensor]:
    weights = {name.replace("/", "."): weight for name, weight in module.named_parameters()}
    return gradients(losses.token_loss(module(pack(texts)), token_targets(texts)), weights)


def assert_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_of_lora_equal_pefts(small: Subject) -> None:
    pet = PetSpec(PetKind.LORA, 1, 4, alpha=8, targets=tuple(Projection))
    module = module_of(small.backbone, pet)
    model = peft_model(small, module)
    weights: dict[str, Tensor] = {
        f"{layout.lora_name(layer, target)}.{half}": lora_weight(model, layer, target, half)
        for layer in layers_of(module)
        for target in pet.targets
        for half in "ab"
    }
    assert_gradients(
        module_gradients(module, small.texts), hf_gradients(small, model, module, weights)
    )


def test_gradients_of_bitfit_equal_those_of_the_biases(small: Subject) -> None:
    module = module_of(small.backbone, PetSpec(PetKind.BITFIT, 1))
    model = bitfit_model(small, module)
    weights: dict[str, Tensor] = {
        layout.bias_name(layer, place): model.get_parameter(f"encoder.layer.{layer}.{path}.bias")
        for layer in layers_of(module)
        for place, path in HF_PLACES.items()
    }
    expected = hf_gradients(small, model, module, weights)
    got = module_gradients(module, small.texts)
    for layer in layers_of(module):
        # A bias of the keys shifts all scores of a query alike: its true gradient is zero.
        name = layout.bias_name(layer, Projection.KEY)
        assert got.pop(name).abs().max() < 1e-6
        assert expected.pop(name).abs().max() < 1e-6
    assert_gradients(got, expected)


@pytest.mark.parametrize("kind", [PetKind.DIFF_PRUNING, PetKind.MASK_BERT])
def test_gradients_of_sparse_kinds_are_those_of_the_weights(small: Subject, kind: PetKind) -> None:
    """A value's is its weight's; a score's, straight through the mask, W times the weight's."""
    module = module_of(small.backbone, PetSpec(kind, 1, density=0.05))
    model = sparse_model(small, module)
    weights: dict[str, Tensor] = {
        f"{layer}.{projection}": model.get_parameter(
            f"encoder.layer.{layer}.{HF_PLACES[projection]}.weight"
        )
        for layer in layers_of(module)
        for projection in Projection
    }
    dense = hf_gradients(small, model, module, weights)
    got, tensors = module_gradients(module, small.texts), module.export()
    for layer in layers_of(module):
        for projection in Projection:
            expected = dense[f"{layer}.{projection}"].flatten()
            name = layout.mask_name(layer, projection)
            if kind is PetKind.DIFF_PRUNING:
                name = f"{layout.delta_name(layer, projection)}.values"
                chosen = tensors[name.replace("values", "indices")]
                expected = expected[torch.tensor(chosen, dtype=torch.int64)]
            else:
                expected = (
                    expected * small.backbone.layers[layer].projections[projection].weight.flatten()
                )
            assert_gradients({name: got[name]}, {name: expected})


def hf_gradients(
    subject: Subject, model: nn.Module, module: VplmModule, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    head = {
        name: torch.tensor(module.export()[name], requires_grad=True)
        for name in (layout.HEAD_WEIGHT, layout.HEAD_BIAS)
    }
    states = hf_states(model, subject.texts)
    logits = functional.linear(states, head[layout.HEAD_WEIGHT], head[layout.HEAD_BIAS])
    targets = token_targets(subject.texts)
    return gradients(functional.cross_entropy(logits, targets), weights | head)
