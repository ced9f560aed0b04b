"""What is computed once per text and what goes on from there are together the module itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from smile.model.backbone import Backbone
from smile.model.entry import Entry, entry_of
from smile.model.frozen import FrozenPart
from smile.model.kernels import EAGER
from smile.model.packing import PackedTokens, pack
from smile.model.reference import VplmModule
from smile.model.specs import HeadSpec, PetKind, PetSpec, Pooling, Projection, Task
from tests.unit.model.test_vplm_module import KINDS, LABELS, module_of

HEADS = [
    HeadSpec(Task.TOKEN_CLASSIFICATION, LABELS),
    HeadSpec(Task.EMBEDDING),
    *(HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, pooling) for pooling in Pooling),
]
PETS = [
    *KINDS.values(),
    PetSpec(PetKind.PFEIFFER, 0, 8),
    PetSpec(PetKind.PFEIFFER, 3, 8),
    PetSpec(PetKind.HOULSBY, 3, 8),
    PetSpec(PetKind.LORA, 3, 4, 8.0, (Projection.KEY, Projection.OUTPUT)),
]


def texts() -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(1, 200, size).tolist() for size in (5, 30, 1, 31, 12, 2, 29)]


def learned(module: VplmModule, answer: Tensor) -> list[Tensor]:
    """The answer and its gradients; those that are nothing but rounding count as such."""
    parameters = list(module.parameters())
    weights = torch.linspace(-1, 1, answer.numel()).view(answer.shape)
    loss = (answer * weights).sum()
    found = torch.autograd.grad(loss, parameters, allow_unused=True) if parameters else ()
    return [answer, *(torch.zeros(1) if one is None else one for one in found)]


def name(value: object) -> str:
    if isinstance(value, PetSpec):
        return f"{value.kind}-{value.first_layer}"
    assert isinstance(value, HeadSpec)
    return f"{value.task}-{value.pooling}"


@pytest.mark.parametrize("head", HEADS, ids=name)
@pytest.mark.parametrize("pet", PETS, ids=name)
def test_answers_and_gradients_are_the_definitions(
    toy: Backbone, pet: PetSpec, head: HeadSpec
) -> None:
    module, packed = module_of(toy, pet, head), pack(texts())
    expected = learned(module, module(packed))
    frozen = FrozenPart.of(module).states(packed).clone()
    for states in (module.entry_states(packed), frozen):
        found = learned(module, module.forward_entered(states, packed))
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", [None, EAGER], ids=["machine", "eager"])
@pytest.mark.parametrize("kind", [PetKind.PFEIFFER, PetKind.HOULSBY, PetKind.LORA])
def test_frozen_states_are_the_definitions(toy: Backbone, kind: PetKind, kernels: object) -> None:
    module, packed = module_of(toy, KINDS[kind]), pack(texts())
    frozen = FrozenPart.of(module, kernels=EAGER if kernels is not None else None)
    torch.testing.assert_close(
        frozen.states(packed), module.entry_states(packed), rtol=1e-4, atol=1e-5
    )


def test_a_texts_states_do_not_depend_on_its_company(toy: Backbone) -> None:
    frozen = FrozenPart.of(module_of(toy, KINDS[PetKind.PFEIFFER]))
    packed = pack(texts())
    together = frozen.states(packed).split(packed.lengths)
    for one, states in zip(texts(), together, strict=True):
        assert torch.equal(frozen.states(pack([one])), states)


def test_nothing_below_the_entry_is_differentiated(toy: Backbone) -> None:
    """A bottleneck in the last layer alone leaves attention and feed-forward to what is kept."""
    module = module_of(toy, PetSpec(PetKind.PFEIFFER, 3, 8), HEADS[-1])
    packed = pack(texts())
    states = module.entry_states(packed)
    assert entry_of(PetKind.PFEIFFER) is Entry.FEEDFORWARD
    seen: list[str] = []
    with torch.profiler.profile() as profile:
        module.forward_entered(states, packed).sum().backward()
    seen = [event.key for event in profile.key_averages()]
    assert not any("attention" in key or "gelu" in key for key in seen)
    assert any("linear" in key for key in seen)


def test_only_first_tokens_pass_the_last_layers_end(toy: Backbone) -> None:
    """For heads that read nothing else; keys and values are still of all tokens."""
    rows: dict[Pooling, int] = {}
    for pooling in (Pooling.MEAN, Pooling.CLS):
        head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS, pooling)
        module = module_of(toy, PetSpec(PetKind.LORA, 3, 4, 8.0, (Projection.QUERY,)), head)
        rows[pooling] = _normed(module, pack(texts()))
    assert rows == {Pooling.MEAN: 110, Pooling.CLS: 7}


def _normed(module: VplmModule, packed: PackedTokens) -> int:
    """Rows of the last layer's last norm."""
    seen: list[int] = []
    last = module.backbone.layers[-1]
    before = torch.nn.functional.layer_norm

    def watched(x: Tensor, *rest: object, **named: object) -> Tensor:
        seen.append(x.shape[0])
        return before(x, *rest, **named)  # type: ignore[arg-type]

    assert last.output_norm is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "layer_norm", watched)
        module.forward_entered(module.entry_states(packed), packed)
    return seen[-1]
