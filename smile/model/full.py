"""A whole model of one tenant's own: every weight of the backbone trains, and the head.

What is stored is the difference from the backbone, so float16 rounds the small changes and not the
weights themselves: what is put together again is nearer to what was trained than a float16 copy.
Never served: it shares nothing with others.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from smile.model import heads, stored
from smile.model.backbone import Backbone, Dense, Embeddings, Layer, LayerNorm
from smile.model.initial import StoredArray
from smile.model.layout import (
    TABLES_NORM_BIAS,
    TABLES_NORM_WEIGHT,
    TABLES_WEIGHT,
    Norm,
    bias_name,
    weight_name,
)
from smile.model.packing import PackedTokens
from smile.model.reference import check_backbone
from smile.model.specs import ModuleSpec, PetKind, Projection

TABLES = ("embeddings.word", "embeddings.position", "embeddings.segment")
HEAD_PREFIX = "head."


class FullModule(nn.Module):
    """All weights of an encoder and a head, trainable; `parameters()` are they, in float32.

    Args:
        backbone: Where the weights begin; it stays as it is.
        spec: Of kind full; its `backbone_digest` must be the backbone's.
        tensors: Stored differences by the layout's names.

    Raises:
        FailedPrecondition: the differences are from another backbone.
        DataCorrupted: the tensors are not those of the spec.
    """

    def __init__(
        self, backbone: Backbone, spec: ModuleSpec, tensors: Mapping[str, StoredArray]
    ) -> None:
        super().__init__()
        assert spec.pet.kind is PetKind.FULL, f"kind {spec.pet.kind} is a module's"
        check_backbone(spec, backbone)
        self.spec = spec
        self._shape = backbone.shape
        self._frozen = frozen_weights(backbone)
        self._weights: dict[str, nn.Parameter] = {}
        differences = stored.to_torch(tensors, spec, backbone.shape)
        tables = differences.pop(TABLES_WEIGHT)
        rows = [len(self._frozen[name]) for name in TABLES]
        for name, part in zip(TABLES, tables.split(rows), strict=True):
            self._register(name, self._frozen[name] + part)
        for name, difference in differences.items():
            is_head = name.startswith(HEAD_PREFIX)
            self._register(name, difference if is_head else self._frozen[name] + difference)
        self._embeddings = self._as_embeddings(backbone.embeddings)
        self._layers = [self._as_layer(index, layer) for index, layer in enumerate(backbone.layers)]

    def forward(self, packed: PackedTokens) -> Tensor:
        """The head's output; see `heads.answer` for its shape. Of the last layer, a head that reads
        first tokens gets those alone."""
        states, last = self._embeddings(packed), len(self._layers) - 1
        firsts = heads.reads_firsts(self.spec.head)
        for index, layer in enumerate(self._layers):
            states = layer.forward(states, packed, firsts=firsts and index == last)
        if firsts:
            return heads.answer_pooled(self.spec.head, states, self._weights)
        return heads.answer(self.spec.head, states, packed, self._weights)

    def forward_entered(self, states: Tensor, packed: PackedTokens) -> Tensor:
        """As `forward`. Nothing lies in front of what is trained, so `states` are none."""
        return self(packed)  # type: ignore[no-any-return]

    @torch.no_grad()
    def export(self) -> dict[str, StoredArray]:
        """Tensors by the layout's names as they are stored: differences, rounded to the spec's
        dtype; the head as it is."""
        moved = {
            name: weight if name.startswith(HEAD_PREFIX) else weight - self._frozen[name]
            for name, weight in self._weights.items()
        }
        moved[TABLES_WEIGHT] = torch.cat([moved.pop(name) for name in TABLES])
        return stored.to_stored(moved, self.spec, self._shape)

    def _register(self, name: str, weight: Tensor) -> None:
        parameter = nn.Parameter(weight.clone())
        self.register_parameter(name.replace(".", "/"), parameter)
        self._weights[name] = parameter

    def _as_embeddings(self, frozen: Embeddings) -> Embeddings:
        word, position, segment = (self._weights[name] for name in TABLES)
        weight, bias = self._weights[TABLES_NORM_WEIGHT], self._weights[TABLES_NORM_BIAS]
        norm = LayerNorm(weight, bias, frozen.norm.epsilon)
        return Embeddings(word, position, segment, norm, frozen.position_offset)

    def _as_layer(self, index: int, frozen: Layer) -> Layer:
        return Layer(
            {name: Dense(*self._pair(index, name)) for name in Projection},
            LayerNorm(*self._pair(index, Norm.ATTENTION), frozen.attention_norm.epsilon),
            LayerNorm(*self._pair(index, Norm.OUTPUT), frozen.output_norm.epsilon),
            frozen.heads,
            frozen.activation,
        )

    def _pair(self, layer: int, place: Projection | Norm) -> tuple[Tensor, Tensor]:
        return self._weights[weight_name(layer, place)], self._weights[bias_name(layer, place)]


def frozen_weights(backbone: Backbone) -> dict[str, Tensor]:
    """The backbone's own weights by the layout's names; its tables apart, by those of `TABLES`."""
    tables = backbone.embeddings
    found = dict(zip(TABLES, (tables.word, tables.position, tables.segment), strict=True))
    found |= {TABLES_NORM_WEIGHT: tables.norm.weight, TABLES_NORM_BIAS: tables.norm.bias}
    for index, layer in enumerate(backbone.layers):
        places: dict[Projection | Norm, Dense | LayerNorm] = dict(layer.projections.items())
        places |= {Norm.ATTENTION: layer.attention_norm, Norm.OUTPUT: layer.output_norm}
        for place, held in places.items():
            found[weight_name(index, place)] = held.weight
            found[bias_name(index, place)] = held.bias
    return found
