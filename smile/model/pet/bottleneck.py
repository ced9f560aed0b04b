"""Bottleneck adapters: down to a narrow width, a non-linearity, up again, added to the state.

Pfeiffer et al. 2021 (arXiv 2005.00247): one per layer, after the feed-forward block. It reads the
state as the block's own residual and layer norm make it. ReLU.
Houlsby et al. 2019 (arXiv 1902.00751): one after attention, one after the feed-forward block. They
read the block's output as it is. SiLU.

Placement and non-linearities are AdapterHub's defaults (`SeqBnConfig`, `DoubleSeqBnConfig`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from smile.model.backbone import BareOps, Layer, LayerNorm, LayerOps
from smile.model.kernels.activation import Activation
from smile.model.kernels.dense import ACTIVATIONS
from smile.model.kernels.grouped import BottleneckFields, padded_width, zero_padded
from smile.model.kernels.workspace import Slot
from smile.model.layout import ADAPTED_BLOCKS, Block, adapter_name
from smile.model.pet.method import LayerGroup, Weights
from smile.model.specs import PetKind, PetSpec


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A family of adapters.

    Attributes:
        kind: Pfeiffer or Houlsby; decides the adapted blocks.
        activation: The non-linearity. Must map 0 to 0, for the zero padding to stay zero.
        normed_input: Whether the adapter reads norm(y + residual) instead of y.
    """

    kind: PetKind
    activation: Activation
    normed_input: bool

    def reference(self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer) -> LayerOps:
        return _ReferenceOps(self, layer, weights)

    def serving(
        self, pet: PetSpec, layer: int, weights: Weights, frozen: Layer
    ) -> dict[str, Tensor]:
        width = padded_width(pet.rank)
        served: dict[str, Tensor] = {}
        for block in ADAPTED_BLOCKS[self.kind]:
            name = adapter_name(layer, block)
            down, up = weights[f"{name}.down.weight"], weights[f"{name}.up.weight"]
            served[f"{name}.down.weight"] = zero_padded(down.T, down.shape[1], width)
            served[f"{name}.down.bias"] = zero_padded(weights[f"{name}.down.bias"], width)
            served[f"{name}.up.weight"] = zero_padded(up.T, width, up.shape[0])
            served[f"{name}.up.bias"] = weights[f"{name}.up.bias"]
        return served

    def grouped(self, group: LayerGroup) -> LayerOps:
        return _GroupedOps(self, group)

    def adapts(self, block: Block) -> bool:
        return block in ADAPTED_BLOCKS[self.kind]


@dataclass(frozen=True, slots=True)
class _ReferenceOps(BareOps):
    method: Bottleneck
    layer: int
    weights: Weights

    def after_attention(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        return self._adapted(Block.ATTENTION, y, residual, norm)

    def after_feedforward(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        return self._adapted(Block.FEEDFORWARD, y, residual, norm)

    def _adapted(self, block: Block, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        if not self.method.adapts(block):
            return y
        x = norm(y + residual) if self.method.normed_input else y
        narrow = ACTIVATIONS[self.method.activation](
            self._linear(f"{adapter_name(self.layer, block)}.down", x)
        )
        return y + self._linear(f"{adapter_name(self.layer, block)}.up", narrow)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


@dataclass(frozen=True, slots=True)
class _GroupedOps(BareOps):
    method: Bottleneck
    group: LayerGroup

    def after_attention(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        return self._adapted(Block.ATTENTION, y, residual, norm)

    def after_feedforward(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        return self._adapted(Block.FEEDFORWARD, y, residual, norm)

    def _adapted(self, block: Block, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        if not self.method.adapts(block):
            return y
        group = self.group
        part = x = group.part(y)
        if self.method.normed_input:
            out = group.kernels.room.take(Slot.NORMED, part.shape[0], part.shape[1], part.dtype)
            x = group.kernels.dense.add_norm(part, group.part(residual), norm, out)
        prefix = adapter_name(group.layer, block)
        fields = BottleneckFields(
            f"{prefix}.down.weight",
            f"{prefix}.down.bias",
            f"{prefix}.up.weight",
            f"{prefix}.up.bias",
        )
        group.kernels.grouped.add_bottleneck(x, part, group.members, fields, self.method.activation)
        return y
