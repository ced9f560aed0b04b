"""One vPLM, trainable: the definition every faster path is tested against."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from smile.errors import FailedPrecondition
from smile.model import heads, stored
from smile.model.backbone import Backbone, LayerOps
from smile.model.entry import Entry, entered, entry_of, left
from smile.model.initial import StoredArray
from smile.model.layout import pet_layers
from smile.model.masking import scores_of
from smile.model.packing import PackedTokens
from smile.model.pet import METHODS
from smile.model.specs import ModuleSpec


class VplmModule(nn.Module):
    """A PET module and a head over a frozen backbone.

    `parameters()` are the PET module's and the head's alone, in float32: of a mask its scores, of a
    sparse update its values; which entries those belong to is fixed. Layers below the first PET
    layer are never differentiated: `boundary_states` computes them without autograd.

    A trainer wants more of that, and less of what follows: `entry_states` reach to the first op
    itself, so it may compute them once for a whole data set, and `forward_entered` in every epoch
    goes on from there to what the head reads, and computes nothing else.

    Args:
        backbone: The frozen encoder, shared.
        spec: The module's spec; its `backbone_digest` must be the backbone's.
        tensors: Stored tensors by the layout's names.

    Raises:
        FailedPrecondition: the module was made for another backbone.
        DataCorrupted: the tensors are not those of the spec.
    """

    def __init__(
        self, backbone: Backbone, spec: ModuleSpec, tensors: Mapping[str, StoredArray]
    ) -> None:
        super().__init__()
        check_backbone(spec, backbone)
        self.backbone = backbone
        self.spec = spec
        self._weights: dict[str, Tensor] = {}
        for name, tensor in stored.to_torch(tensors, spec, backbone.shape).items():
            self._weights[name] = self._registered(name.replace(".", "/"), tensor)  # no dots
        self._layers = pet_layers(spec.pet, backbone.shape)
        self._ops: dict[int, LayerOps] = {
            layer: METHODS[spec.pet.kind].reference(
                spec.pet, layer, self._weights, backbone.layers[layer]
            )
            for layer in self._layers
        }

    @property
    def boundary(self) -> int:
        """Index of the first layer that carries a PET op; the number of layers if none does."""
        return self._layers.start

    @torch.no_grad()
    def boundary_states(self, packed: PackedTokens) -> Tensor:
        """States below layer `boundary` [tokens, H]: they depend on the texts alone."""
        return self.backbone.forward_layers(self.backbone.embed(packed), packed, 0, self.boundary)

    def forward_from(self, states: Tensor, packed: PackedTokens) -> Tensor:
        """The head's output for boundary states [tokens, H]; see `heads.answer` for its shape."""
        states = self.backbone.forward_layers(
            states, packed, self.boundary, self.backbone.shape.layers, self._ops
        )
        return heads.answer(self.spec.head, states, packed, self._weights)

    @torch.no_grad()
    def entry_states(self, packed: PackedTokens) -> Tensor:
        """What `Entry` says is kept of each token in front of the first op: it depends on the texts
        alone."""
        states = self.boundary_states(packed)
        if self.boundary == self.backbone.shape.layers:
            return states
        layer = self.backbone.layers[self.boundary]
        return entered(entry_of(self.spec.pet.kind), layer, states, packed)

    def forward_entered(self, states: Tensor, packed: PackedTokens) -> Tensor:
        """The head's output for entry states; see `heads.answer` for its shape. Of the last layer,
        a head that reads first tokens gets those alone."""
        layers, entry = self.backbone.layers, entry_of(self.spec.pet.kind)
        last, start = len(layers) - 1, self.boundary
        if start > last:
            return heads.answer(self.spec.head, states, packed, self._weights)
        firsts = heads.reads_firsts(self.spec.head)
        if entry is not Entry.LAYER:
            if firsts and start == last:
                states = states.index_select(0, packed.offsets[:-1])
            states = left(entry, layers[start], states, self._ops[start])
            start += 1
        for index in range(start, len(layers)):
            states = layers[index].forward(
                states, packed, self._ops[index], firsts=firsts and index == last
            )
        if firsts:
            return heads.answer_pooled(self.spec.head, states, self._weights)
        return heads.answer(self.spec.head, states, packed, self._weights)

    def forward(self, packed: PackedTokens) -> Tensor:
        """The head's output; see `heads.answer` for its shape."""
        return self.forward_from(self.boundary_states(packed), packed)

    def export(self) -> dict[str, StoredArray]:
        """Tensors by the layout's names as they are stored, numbers rounded to the spec's dtype."""
        return stored.to_stored(self._weights, self.spec, self.backbone.shape)

    def _registered(self, name: str, tensor: Tensor) -> Tensor:
        """A stored tensor as training knows it: moved, or if it holds indices, only kept."""
        if tensor.dtype is torch.int64:
            self.register_buffer(name, tensor)
            return tensor
        weight = nn.Parameter(scores_of(tensor) if tensor.dtype is torch.bool else tensor)
        self.register_parameter(name, weight)
        return weight


def check_backbone(spec: ModuleSpec, backbone: Backbone) -> None:
    """Raises FailedPrecondition if the module was made for another backbone."""
    if spec.backbone_digest != backbone.digest:
        raise FailedPrecondition(
            f"the module was made for backbone '{spec.backbone}' with digest "
            f"{spec.backbone_digest}, this is '{backbone.name}' with digest {backbone.digest}",
            reason="BACKBONE_MISMATCH",
        )
