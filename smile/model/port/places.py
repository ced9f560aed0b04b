"""Where a transformer layer's dense products and norms are in transformers' BERT and RoBERTa."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from smile.model.checkpoint import NORM_PLACES, PLACES, Family
from smile.model.layout import Norm
from smile.model.specs import Projection

BIASED: Mapping[Projection | Norm, str] = {
    place: PLACES[place] if isinstance(place, Projection) else NORM_PLACES[place]
    for place in (*Projection, *Norm)
}
POOLER = "pooler.dense"
_PROJECTIONS = {place: projection for projection, place in PLACES.items()}
_DENSE = re.compile(r"encoder\.layer\.(\d+)\.(.+)", re.ASCII)


class Dense(NamedTuple):
    """One dense product of the encoder."""

    layer: int
    projection: Projection


def dense_at(path: str, layers: int) -> Dense | None:
    """The dense product at a path inside the encoder; None where there is none."""
    found = _DENSE.fullmatch(path)
    if found is None or found[2] not in _PROJECTIONS or int(found[1]) >= layers:
        return None
    return Dense(int(found[1]), _PROJECTIONS[found[2]])


def without_family(path: str) -> str:
    """A path without its `bert.` or `roberta.` in front."""
    for family in Family:
        path = path.removeprefix(f"{family}.")
    return path
