"""Sparse updates of the six projections, as they are served: what diff-pruning and masks share.

y += x S for a sparse S [inputs, outputs]: PetS (Zhou et al., USENIX ATC 2022) serves both so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model.backbone import BareOps
from smile.model.layout import served_count
from smile.model.pet.method import LayerGroup
from smile.model.specs import PetSpec, Projection


def sparse_name(layer: int, projection: Projection) -> str:
    """Prefix of a projection's served tensors; `.indices` and `.values` follow."""
    return f"layers.{layer}.{projection}.sparse"


@dataclass(frozen=True, slots=True)
class SparseUpdate:
    """Entries of a projection's matrix [outputs, inputs] and what is added to each.

    Attributes:
        entries: int64 [n], strictly ascending: `output * inputs + input`.
        values: float32 [n].
        matrix: (outputs, inputs).
    """

    entries: Tensor
    values: Tensor
    matrix: tuple[int, int]

    def served(self, pet: PetSpec, layer: int, projection: Projection) -> dict[str, Tensor]:
        """`input << 16 | output` as int32 and the values, by output, then input; padded with zeros
        to the length of the shape class."""
        outputs, inputs = self.matrix
        length = served_count(pet, outputs * inputs)
        count = len(self.entries)
        indices = torch.zeros(length, dtype=torch.int32)
        indices[:count] = ((self.entries % inputs) << 16 | self.entries // inputs).to(torch.int32)
        values = torch.zeros(length)
        values[:count] = self.values
        prefix = sparse_name(layer, projection)
        return {f"{prefix}.indices": indices, f"{prefix}.values": values}


@dataclass(frozen=True, slots=True)
class GroupedSparse(BareOps):
    """Every row's own sparse update, in place."""

    group: LayerGroup

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        group = self.group
        prefix = sparse_name(group.layer, name)
        group.kernels.grouped.add_sparse(
            group.part(x), group.part(y), group.members, f"{prefix}.indices", f"{prefix}.values"
        )
        return y
