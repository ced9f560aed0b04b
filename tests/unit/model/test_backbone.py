"""The encoder against transformers, layer by layer; its promises on neighbours and gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smile.model import checkpoint
from smile.model.backbone import Backbone, BareOps
from smile.model.layout import Norm
from smile.model.packing import pack
from smile.model.specs import Projection

TEXTS = [
    "the movie was good",
    "x",
    "trains are slow and the river is very cold today, my friend! " * 3,
    "London markets: 12% up.",
    "story " * 41,
    "bad",
]
TOLERANCE = 1e-5


def reference_states(path: Path, texts: list[str]) -> list[list[Tensor]]:
    """What transformers computes on one padded batch: [layer][text] -> [tokens, H]."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    batch = AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    sizes = batch["attention_mask"].sum(1).tolist()
    return [[row[:size] for row, size in zip(layer, sizes, strict=True)] for layer in states]


def states(backbone: Backbone, ids: list[list[int]]) -> list[list[Tensor]]:
    packed = pack(ids)
    with torch.no_grad():
        x = backbone.embed(packed)
        layers = [x]
        for index in range(backbone.shape.layers):
            x = backbone.forward_layers(x, packed, index, index + 1)
            layers.append(x)
    return [list(layer.split(packed.lengths)) for layer in layers]


def assert_parity(backbone: Backbone, path: Path, texts: list[str]) -> None:
    expected = reference_states(path, texts)
    got = states(backbone, [text.ids for text in backbone.tokenizer.encode(texts)])
    assert len(got) == len(expected) == backbone.shape.layers + 1
    for ours, theirs in zip(got, expected, strict=True):
        for mine, reference in zip(ours, theirs, strict=True):
            assert mine.shape == reference.shape
            assert (mine - reference).abs().max() <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["toy", "minilm", "roberta"])
def test_every_layer_equals_transformers(family: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(f"{family}_path")
    assert_parity(Backbone.load(path, family), path, [text[:120] for text in TEXTS])


@pytest.mark.filterwarnings("ignore")
def test_minilm_equals_transformers_up_to_its_longest_text(
    minilm: Backbone, minilm_path: Path
) -> None:
    long = "word " * 510
    assert len(minilm.tokenizer.encode([long])[0]) == 512
    assert_parity(minilm, minilm_path, ["short one", long, "another, less short, text"])


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu"])
@pytest.mark.filterwarnings("ignore")
def test_other_activations_equal_transformers(
    activation: str, toy_path: Path, tmp_path: Path
) -> None:
    for file in toy_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"hidden_act": activation}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_parity(Backbone.load(tmp_path, "toy"), tmp_path, TEXTS[:3])


@pytest.mark.filterwarnings("ignore")
def test_names_of_the_first_releases_and_half_precision_are_read(
    toy_path: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for file in toy_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor.half()
        for name, tensor in load_file(toy_path / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    backbone = Backbone.load(tmp_path, "toy")
    assert backbone.embeddings.word.dtype is torch.float32
    word = tensors["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(backbone.embeddings.word, word.float())


def test_a_text_does_not_depend_on_its_neighbours(minilm: Backbone) -> None:
    texts = [text.ids for text in minilm.tokenizer.encode(TEXTS)]
    together = states(minilm, texts)[-1]
    backwards = states(minilm, texts[::-1])[-1][::-1]
    for index, ids in enumerate(texts):
        alone = states(minilm, [ids])[-1][0]
        assert (together[index] - alone).abs().max() <= TOLERANCE
        assert (together[index] - backwards[index]).abs().max() <= TOLERANCE


def test_the_same_batch_gives_the_same_bits(toy: Backbone) -> None:
    texts = [text.ids for text in toy.tokenizer.encode(TEXTS)]
    for first, second in zip(states(toy, texts)[-1], states(toy, texts)[-1], strict=True):
        assert torch.equal(first, second)


def test_weights_are_mapped_from_the_file_not_copied(minilm: Backbone) -> None:
    assert _mapped(minilm.embeddings.word.data_ptr())
    assert _mapped(minilm.layers[5].projections[Projection.OUTPUT].weight.data_ptr())
    assert not _mapped(torch.zeros(1_000_000).data_ptr())


def _mapped(address: int) -> bool:
    """Whether an address lies in a mapping of the weights file (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.endswith(checkpoint.WEIGHTS_FILE)
    return False


class AddingOps(BareOps):
    """Adds a trainable shift at every hook and remembers which hooks ran."""

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift
        self.seen: list[str] = []

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        self.seen.append(name)
        return y + self.shift

    def after_attention(
        self, y: Tensor, residual: Tensor, norm: Callable[[Tensor], Tensor]
    ) -> Tensor:
        self.seen.append("after_attention")
        return y + self.shift * norm(y + residual)

    def after_feedforward(
        self, y: Tensor, residual: Tensor, norm: Callable[[Tensor], Tensor]
    ) -> Tensor:
        self.seen.append("after_feedforward")
        return y + self.shift * norm(y + residual)

    def norm(self, name: Norm, y: Tensor) -> Tensor:
        self.seen.append(name)
        return y + self.shift


def test_every_hook_runs_once_a_layer_in_the_stated_order(toy: Backbone) -> None:
    packed = pack([[2, 10, 11, 3]])
    ops = AddingOps(torch.zeros(()))
    toy.forward_layers(toy.embed(packed), packed, 0, 3, {1: ops})
    assert ops.seen == [
        "query",
        "key",
        "value",
        "attention_output",
        "after_attention",
        "attention_norm",
        "intermediate",
        "output",
        "after_feedforward",
        "output_norm",
    ]


def test_gradients_through_padded_groups_are_exact(toy: Backbone) -> None:
    """The derivative by a shift at every hook of two layers, against central differences."""
    packed = pack([[2, 10, 11, 12, 3], [2, 40, 3], [2, 50, 51, 3]])
    assert any(group.mask is not None for group in packed.plan.groups)
    weights = torch.randn(packed.tokens, toy.shape.hidden, generator=torch.manual_seed(0))

    def loss(shift: Tensor) -> Tensor:
        ops = AddingOps(shift)
        x = toy.forward_layers(toy.embed(packed), packed, 1, 4, {2: ops, 3: ops})
        return (x * weights).sum()

    shift = torch.full((), 0.1, requires_grad=True)
    loss(shift).backward()
    with torch.no_grad():
        step = 1e-2
        slope = (loss(torch.tensor(0.1 + step)) - loss(torch.tensor(0.1 - step))) / (2 * step)
    assert shift.grad is not None
    assert shift.grad.isfinite()
    assert shift.grad.item() == pytest.approx(slope.item(), rel=1e-2)
    assert not toy.embeddings.word.requires_grad


def test_states_can_start_at_a_boundary(toy: Backbone) -> None:
    packed = pack([[2, 10, 11, 3], [2, 9, 3]])
    with torch.no_grad():
        whole = toy.forward_layers(toy.embed(packed), packed, 0, 4)
        below = toy.forward_layers(toy.embed(packed), packed, 0, 2)
        assert torch.equal(whole, toy.forward_layers(below, packed, 2, 4))
