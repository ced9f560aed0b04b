"""The backbone in serving form against its definition."""

from __future__ import annotations

import pytest
import torch

from smile.model.backbone import Backbone
from smile.model.kernels import EAGER, KernelChoice, kernels_for
from smile.model.packing import PackedTokens, pack
from smile.model.serving import ServingBackbone

CPU = torch.device("cpu")


def packed_texts() -> PackedTokens:
    source = torch.Generator().manual_seed(0)
    lengths = (1, 17, 3, 64, 17, 2)
    return pack([torch.randint(5, 190, (n,), generator=source).tolist() for n in lengths])


def states_of(backbone: ServingBackbone, packed: PackedTokens) -> torch.Tensor:
    with torch.inference_mode():
        states = backbone.embed(packed)
        return backbone.forward_layers(states, packed, 0, [None] * len(backbone.layers))


@pytest.mark.parametrize("choice", [KernelChoice.AUTO, KernelChoice.EAGER])
def test_float32_equals_the_definition(toy: Backbone, choice: KernelChoice) -> None:
    packed = packed_texts()
    kernels = kernels_for(CPU, torch.float32, choice)
    served = states_of(ServingBackbone.of(toy, kernels, CPU, torch.float32), packed)
    with torch.no_grad():
        expected = toy.forward_layers(toy.embed(packed), packed, 0, len(toy.layers))
    torch.testing.assert_close(served, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("choice", [KernelChoice.AUTO, KernelChoice.EAGER])
def test_bfloat16_stays_near_the_definition(minilm: Backbone, choice: KernelChoice) -> None:
    packed = packed_texts()
    kernels = kernels_for(CPU, torch.bfloat16, choice)
    served = states_of(ServingBackbone.of(minilm, kernels, CPU, torch.bfloat16), packed)
    assert served.dtype is torch.bfloat16
    with torch.no_grad():
        expected = minilm.forward_layers(minilm.embed(packed), packed, 0, len(minilm.layers))
    likeness = torch.nn.functional.cosine_similarity(served.float(), expected, dim=1)
    assert likeness.min() > 0.99


def test_the_middle_layers_alone(toy: Backbone) -> None:
    packed = packed_texts()
    served = ServingBackbone.of(toy, EAGER, CPU, torch.float32)
    with torch.inference_mode():
        x = toy.embed(packed)
        middle = served.forward_layers(x, packed, 1, [None, None])
    with torch.no_grad():
        expected = toy.forward_layers(x, packed, 1, 3)
    torch.testing.assert_close(middle, expected, rtol=0, atol=1e-5)


def test_no_tensor_stays_behind_on_another_device(toy: Backbone) -> None:
    """The meta device computes shapes only, and refuses a tensor that stayed on the CPU."""
    meta = torch.device("meta")
    packed = packed_texts().to(meta)
    states = states_of(ServingBackbone.of(toy, EAGER, meta, torch.float32), packed)
    assert states.device == meta and states.shape == (packed.tokens, toy.shape.hidden)
