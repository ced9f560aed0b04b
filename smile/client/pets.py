"""The PET kinds, as people write them: `smile.Pfeiffer(rank=24)`."""

from __future__ import annotations

from collections.abc import Sequence

from smile.codec.modules import ADAPTER_RANK_DEFAULT, DENSITIES_DEFAULT, LORA_RANK_DEFAULT
from smile.errors import InvalidSpec
from smile.model.specs import PetKind, PetSpec, Projection

LORA_TARGETS_DEFAULT = (Projection.QUERY, Projection.VALUE)


def NoPet() -> PetSpec:
    """No module: the plain backbone with a head."""
    return PetSpec(PetKind.NONE)


def Pfeiffer(rank: int = ADAPTER_RANK_DEFAULT, *, first_layer: int | None = None) -> PetSpec:
    """One bottleneck adapter of width `rank` per layer, from `first_layer` upwards (default: half
    of the backbone's layers). Pfeiffer et al. 2021."""
    return PetSpec(PetKind.PFEIFFER, first_layer, rank)


def Houlsby(rank: int = ADAPTER_RANK_DEFAULT, *, first_layer: int | None = None) -> PetSpec:
    """Two bottleneck adapters of width `rank` per layer. Houlsby et al. 2019."""
    return PetSpec(PetKind.HOULSBY, first_layer, rank)


def LoRA(
    rank: int = LORA_RANK_DEFAULT,
    *,
    alpha: float | None = None,
    targets: Sequence[Projection | str] = LORA_TARGETS_DEFAULT,
    first_layer: int | None = None,
) -> PetSpec:
    """Low-rank updates of the `targets`, scaled by `alpha / rank` (alpha's default: twice the
    rank). Hu et al. 2022.

    Raises:
        InvalidSpec: a target is not a projection, or a number is out of range.
    """
    known = list(Projection)
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise InvalidSpec(
            f"target projections are {', '.join(known)}; got {', '.join(map(repr, unknown))}"
        )
    chosen = sorted((Projection(target) for target in targets), key=known.index)
    scale = 2.0 * rank if alpha is None else alpha
    return PetSpec(PetKind.LORA, first_layer, rank, scale, tuple(chosen))


def BitFit(*, first_layer: int | None = None) -> PetSpec:
    """Bias terms only. Ben Zaken et al. 2022."""
    return PetSpec(PetKind.BITFIT, first_layer)


def DiffPruning(
    density: float = DENSITIES_DEFAULT[PetKind.DIFF_PRUNING], *, first_layer: int | None = None
) -> PetSpec:
    """Sparse updates of a share `density` of every projection's weights, drawn from the seed, and
    bias terms. After Guo et al. 2021."""
    return PetSpec(PetKind.DIFF_PRUNING, first_layer, density=density)


def MaskBert(
    density: float = DENSITIES_DEFAULT[PetKind.MASK_BERT], *, first_layer: int | None = None
) -> PetSpec:
    """Every projection's weights as they are, but for a share of at most `density` that training
    masks to zero. Zhao et al. 2020."""
    return PetSpec(PetKind.MASK_BERT, first_layer, density=density)
