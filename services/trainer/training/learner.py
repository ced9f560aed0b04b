"""What a run trains: a module over a frozen backbone, or a whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from services.trainer.data.corpus import TokenIds
from services.trainer.training.precision import Precision
from services.trainer.training.states import DTYPES
from smile.model.backbone import Backbone
from smile.model.full import FullModule
from smile.model.initial import StoredArray
from smile.model.packing import PackedTokens, pack
from smile.model.reference import VplmModule
from smile.model.specs import ModuleSpec, PetKind

Learner: TypeAlias = VplmModule | FullModule


def learner(
    backbone: Backbone, spec: ModuleSpec, tensors: Mapping[str, StoredArray]
) -> VplmModule | FullModule:
    """What has the tensors of a spec. Raises what its class raises."""
    made = FullModule if spec.pet.kind is PetKind.FULL else VplmModule
    return made(backbone, spec, tensors)


@dataclass(frozen=True, slots=True)
class NoStates:
    """Nothing lies in front of what a whole model trains: texts are computed from their tokens."""

    texts: Sequence[TokenIds]
    precision: Precision

    @property
    def kept(self) -> int:
        return 0

    @property
    def bytes_kept(self) -> int:
        return 0

    def fill(self) -> Iterator[int]:
        """Computes nothing."""
        return iter(())

    def of(self, texts: Sequence[int]) -> tuple[Tensor, PackedTokens]:
        """[tokens, 0], and the tokens."""
        packed = pack([self.texts[text] for text in texts])
        return torch.empty(packed.tokens, 0, dtype=DTYPES[self.precision]), packed

    def close(self) -> None:
        """Nothing was kept."""
