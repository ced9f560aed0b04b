"""What lies below a module's first op, by this machine's kernels: computed once per text.

The layers below a boundary may be stood in for by rows of n-grams, as in materialised answers. A
text's states do not depend on the texts it is computed with, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model.backbone import Backbone
from smile.model.batch import CPU
from smile.model.batched import Lower
from smile.model.entry import Entry, entry_of
from smile.model.kernels import Kernels, kernels_for
from smile.model.kernels.dense import EmbeddingTables
from smile.model.packing import PackedTokens
from smile.model.reference import VplmModule
from smile.model.serving import ServingBackbone, ServingLayer


@dataclass(frozen=True, slots=True)
class FrozenPart:
    """The layers below a first op, and those blocks of its own layer that come before it.

    Attributes:
        below: The whole layers, those alone from the boundary on where there is a `lower`.
        own: The first op's layer; None where nothing of it comes before the op.
        entry: Where in `own` the op is.
        lower: Stands in for the layers below its boundary; None: they are computed.
    """

    below: ServingBackbone
    own: ServingLayer | None
    entry: Entry
    lower: Lower | None = None

    @classmethod
    def of(
        cls,
        module: VplmModule,
        *,
        dtype: torch.dtype = torch.float32,
        kernels: Kernels | None = None,
        lower: Lower | None = None,
    ) -> FrozenPart:
        """What lies below the first op of `module`, and of every other one of its spec.

        Args:
            lower: In `dtype`, with a boundary at or below the module's first layer.
        """
        kernels = kernels or kernels_for(CPU, dtype)
        backbone, entry = module.backbone, entry_of(module.spec.pet.kind)
        partly = entry is not Entry.LAYER
        start = 0 if lower is None else lower.boundary
        assert start <= module.boundary, f"the module begins below layer {start}"
        layers = tuple(
            ServingLayer.of(layer, kernels, CPU, dtype)
            for layer in backbone.layers[start : module.boundary + partly]
        )
        whole = layers[: module.boundary - start]
        below = ServingBackbone(_tables(backbone, dtype), whole, kernels)
        return cls(below, layers[-1] if partly else None, entry, lower)

    @property
    def cheap(self) -> bool:
        """Whether it is embeddings alone: sooner computed than kept."""
        return self.own is None and not self.below.layers and self.lower is None

    @torch.inference_mode()
    def states(self, packed: PackedTokens) -> Tensor:
        """What `Entry` says is kept of each token."""
        if self.lower is None:
            x = self.below.embed(packed)
        else:
            x = self.lower.states(packed, self.below)
        x = self.below.forward_layers(x, packed, 0, [None] * len(self.below.layers))
        return x if self.own is None else self._entered(self.own, x, packed)

    def _entered(self, layer: ServingLayer, x: Tensor, packed: PackedTokens) -> Tensor:
        dense = self.below.kernels.dense
        mixed = dense.attend(dense.linear(x, layer.qkv), packed, layer.heads)
        y = dense.linear(mixed, layer.attention_output)
        if self.entry is Entry.ATTENTION:
            return torch.cat([y, x], dim=1)
        middle = dense.add_norm(y, x, layer.attention_norm)
        wide = dense.linear(middle, layer.intermediate, layer.activation)
        return dense.linear(wide, layer.output).add_(middle)


def _tables(backbone: Backbone, dtype: torch.dtype) -> EmbeddingTables:
    """The norm stays in float32, as kernels want it."""
    tables = backbone.embeddings
    return EmbeddingTables(
        tables.word.to(dtype),
        tables.position.to(dtype),
        tables.segment.to(dtype),
        tables.norm,
        tables.position_offset,
    )
