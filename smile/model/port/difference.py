"""How a whole model differs from its backbone, and which PET kind that is.

Nothing differs: `none`. Biases of layers alone: `bitfit`. Few entries of matrices, all of them zero
now: `mask-bert`. Few entries of matrices, and any biases of layers: `diff-pruning`. Anything else
is refused with the tensors that are in the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smile.model.checkpoint import PLACES
from smile.model.initial import StoredArray, packed_bits
from smile.model.layout import (
    Norm,
    bias_name,
    chosen_count,
    delta_name,
    mask_name,
    pet_layers,
    projection_shape,
)
from smile.model.port.places import BIASED
from smile.model.port.values import FloatArray, Target, unsupported
from smile.model.specs import DENSITY_MAX, PetKind, PetSpec, Projection

SHOWN_MAX = 3
_INSIDE = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", re.ASCII)
_PROJECTIONS = {place: projection for projection, place in PLACES.items()}
_BIASED = {there: place for place, there in BIASED.items()}


@dataclass(frozen=True, slots=True)
class Change:
    """One tensor of the encoder that is not the backbone's.

    Attributes:
        name: Its name, without a family's prefix.
        entries: Which of its numbers differ, row by row, ascending.
        values: What they are now.
        deltas: What they are more than the backbone's, float32.
        size: Of the tensor.
        rounded: How many the backbone's number and the delta do not add up to in float32.
    """

    name: str
    entries: NDArray[np.int64]
    values: FloatArray
    deltas: FloatArray
    size: int
    rounded: int

    def __str__(self) -> str:
        most = float(np.abs(self.deltas).max())
        return f"'{self.name}' in {len(self.entries)} of {self.size} numbers by up to {most:.3g}"


def change(name: str, mine: FloatArray, frozen: FloatArray) -> Change | None:
    """The change of one tensor; None where there is none."""
    now, was = (array.astype(np.float32, copy=False).ravel() for array in (mine, frozen))
    entries = np.flatnonzero(now != was)
    if not len(entries):
        return None
    values = now[entries]
    deltas = values - was[entries]
    rounded = int(np.count_nonzero(was[entries] + deltas != values))
    return Change(name, entries, values, deltas, now.size, rounded)


@dataclass(frozen=True, slots=True)
class _At:
    """Where in the layers a tensor is."""

    layer: int
    place: Projection | Norm
    matrix: bool


class Differences:
    """All changes, and what they are.

    Raises:
        InvalidArgument: no PET kind can express them.
    """

    def __init__(self, changes: Sequence[Change], target: Target) -> None:
        self._target = target
        self._at: dict[_At, Change] = {}
        foreign = [one for one in changes if self._place(one) is None]
        if foreign:
            raise unsupported(_told(foreign, "no PET kind changes those"))
        self._matrices = [one for at, one in self._at.items() if at.matrix]

    def _place(self, one: Change) -> _At | None:
        """Where it is; None for norms' weights, embeddings and the like."""
        found = _INSIDE.fullmatch(one.name)
        if found is None:
            return None
        matrix = found[3] == "weight"
        places: Mapping[str, Projection | Norm] = _PROJECTIONS if matrix else _BIASED
        if found[2] not in places:
            return None
        at = _At(int(found[1]), places[found[2]], matrix)
        self._at[at] = one
        return at

    def pet(self, hint: PetSpec | None) -> PetSpec:
        """The spec that expresses them: an export's own where it still does."""
        kind = self._kind()
        if kind is PetKind.NONE:
            return hint if hint is not None and hint.kind is kind else PetSpec(kind)
        first = min(at.layer for at in self._at)
        if hint is not None and hint.kind is kind and self._holds(hint, first):
            return hint
        sparse = kind in (PetKind.DIFF_PRUNING, PetKind.MASK_BERT)
        return PetSpec(kind, first, density=self._density() if sparse else 0.0)

    def remarks(self, pet: PetSpec) -> list[str]:
        """Where numbers come back rounded: deltas are added in float32. Masks are exact."""
        if pet.kind is PetKind.MASK_BERT:
            return []
        return [
            f"'{one.name}': {one.rounded} of {len(one.entries)} changed numbers come back within "
            "one rounding of float32"
            for one in self._at.values()
            if one.rounded
        ]

    def _kind(self) -> PetKind:
        if not self._at:
            return PetKind.NONE
        if not self._matrices:
            return PetKind.BITFIT
        dense = [one for one in self._matrices if len(one.entries) > DENSITY_MAX * one.size]
        if dense:
            raise unsupported(
                _told(dense, f"a sparse update changes at most {DENSITY_MAX:.0%} of a matrix")
            )
        zeros = all(not one.values.any() for one in self._matrices)
        alone = len(self._matrices) == len(self._at)
        return PetKind.MASK_BERT if zeros and alone else PetKind.DIFF_PRUNING

    def _holds(self, pet: PetSpec, first: int) -> bool:
        """Whether a spec has room for all changes."""
        if pet.first_layer is None or pet.first_layer > first:
            return False
        return all(len(one.entries) <= chosen_count(pet, one.size) for one in self._matrices)

    def _density(self) -> float:
        """The least that lets every matrix change as many entries as it does."""
        half_more = max((len(one.entries) + 0.5) / one.size for one in self._matrices)
        return min(half_more, DENSITY_MAX)

    def tensors(self, pet: PetSpec) -> dict[str, StoredArray]:
        """The module's tensors, by the layout's names, numbers in float32."""
        found: dict[str, StoredArray] = {}
        for layer in pet_layers(pet, self._target.shape):
            found |= _MAKERS[pet.kind](self, pet, layer)
        return found

    def _biases(self, pet: PetSpec, layer: int) -> dict[str, StoredArray]:
        shape = self._target.shape
        sizes: dict[Projection | Norm, int] = {
            projection: projection_shape(projection, shape)[0] for projection in Projection
        }
        sizes |= {norm: shape.hidden for norm in Norm}
        found: dict[str, StoredArray] = {}
        for place, size in sizes.items():
            delta = np.zeros(size, np.float32)
            if (one := self._at.get(_At(layer, place, False))) is not None:
                delta[one.entries] = one.deltas
            found[bias_name(layer, place)] = delta
        return found

    def _sparse(self, pet: PetSpec, layer: int) -> dict[str, StoredArray]:
        """Entries that change, and as many more, by zero, as the spec's number."""
        found: dict[str, StoredArray] = {}
        for projection, size, one in self._of_layer(layer):
            count = chosen_count(pet, size)
            entries = np.zeros(0, np.int64) if one is None else one.entries
            spare = np.setdiff1d(np.arange(count), entries)[: count - len(entries)]
            indices = np.union1d(entries, spare)
            values = np.zeros(count, np.float32)
            if one is not None:
                values[np.searchsorted(indices, entries)] = one.deltas
            prefix = delta_name(layer, projection)
            found[f"{prefix}.indices"] = indices.astype(np.int32)
            found[f"{prefix}.values"] = values
        return found | self._biases(pet, layer)

    def _masks(self, pet: PetSpec, layer: int) -> dict[str, StoredArray]:
        return {
            mask_name(layer, projection): packed_bits(
                np.zeros(0, np.int64) if one is None else one.entries, size
            )
            for projection, size, one in self._of_layer(layer)
        }

    def _of_layer(self, layer: int) -> Iterable[tuple[Projection, int, Change | None]]:
        """Every projection, the entries of its matrix, and its change."""
        for projection in Projection:
            outputs, inputs = projection_shape(projection, self._target.shape)
            yield projection, outputs * inputs, self._at.get(_At(layer, projection, True))


_MAKERS: Mapping[PetKind, Callable[[Differences, PetSpec, int], dict[str, StoredArray]]] = {
    PetKind.BITFIT: Differences._biases,
    PetKind.DIFF_PRUNING: Differences._sparse,
    PetKind.MASK_BERT: Differences._masks,
}


def _told(changes: Sequence[Change], why: str) -> str:
    more = f" and {len(changes) - SHOWN_MAX} more" if len(changes) > SHOWN_MAX else ""
    listed = "; ".join(map(str, changes[:SHOWN_MAX]))
    return f"the model differs from its backbone in {listed}{more}: {why}; nothing was imported"
