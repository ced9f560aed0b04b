"""How close a local encoder came, on texts that it never saw.

By layer: the squared error of each layer's output over that output's variance, and its cosine, both
a mean over tokens. Where texts have labels: a linear probe, trained on the ordinary backbone's mean
states of one half of the documents and asked of the other half, once as the ordinary backbone has
them and once as they come out of the encoder. That is how serving uses it: modules and heads are
trained on the one and answer on the other. Where shorter n-grams serve for missing ones they do so
here, too, as with a table of all that was learned from.
"""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from smile.model.packing import PackedTokens, pack
from smile.model.skip.distill.corpus import Pieces
from smile.model.skip.distill.teacher import Teacher, in_batches
from smile.model.skip.form import EncoderForm

PROBE_STEPS = 60
PROBE_DECAY = 3e-2
SPREAD_MIN = 1e-3  # of a feature: some never change


class Below(Protocol):
    """What stands in for the lower layers."""

    @property
    def form(self) -> EncoderForm: ...

    def __call__(self, packed: PackedTokens, keys: Tensor | None = None, /) -> Tensor:
        """States at the boundary, [tokens, H]."""
        ...


@torch.no_grad()
def measure(
    encoder: Below,
    teacher: Teacher,
    pieces: Pieces,
    seed: int,
    keys: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """Measures by name: `error_layer_3` is of the boundary's states if that is 3, and so on.

    Args:
        keys: [tokens] of the pieces, one after the other: the n-gram that serves each; None: its
            own trigram.
    """
    ends = np.cumsum([0, *map(len, pieces.ids)])
    outputs, width = teacher.outputs, teacher.hidden
    squares, cosines = torch.zeros(outputs), torch.zeros(outputs)
    sums, sums_of_squares = torch.zeros(outputs, width), torch.zeros(outputs, width)
    ordinary, local = torch.zeros(2, len(pieces.ids), width)
    for texts in in_batches(pieces):
        packed = pack([pieces.ids[index] for index in texts])
        wanted = teacher.states(packed).float()
        serving = None
        if keys is not None:
            own = [keys[ends[index] : ends[index + 1]] for index in texts]
            serving = torch.from_numpy(np.concatenate(own))
        found = teacher.above(encoder(packed, serving), packed).float()
        squares += (found - wanted).square().mean(dim=2).sum(dim=0)
        cosines += functional.cosine_similarity(found, wanted, dim=2).sum(dim=0)
        sums += wanted.sum(dim=0)
        sums_of_squares += wanted.square().sum(dim=0)
        for index, a, b in zip(
            texts, wanted.split(packed.lengths), found.split(packed.lengths), strict=True
        ):
            ordinary[index], local[index] = a[:, -1].mean(dim=0), b[:, -1].mean(dim=0)
    tokens = pieces.tokens
    variances = (sums_of_squares / tokens - (sums / tokens).square()).mean(dim=1)
    measures: dict[str, float] = {}
    for output in range(outputs):
        layer = encoder.form.boundary + output
        measures[f"error_layer_{layer}"] = float(squares[output] / tokens / variances[output])
        measures[f"cosine_layer_{layer}"] = float(cosines[output] / tokens)
    measures["cosine_text"] = float(functional.cosine_similarity(ordinary, local).mean())
    measures |= probes(ordinary, local, pieces, seed)
    return {name: round(value, 6) for name, value in measures.items()}


def probes(ordinary: Tensor, local: Tensor, pieces: Pieces, seed: int) -> dict[str, float]:
    """Accuracies of linear probes; none without two labels at least.

    Args:
        ordinary, local: [texts, H] of the pieces.
    """
    names = sorted(set(pieces.labels))
    if len(names) < 2:
        return {}
    classes = torch.tensor([names.index(label) for label in pieces.labels])
    numbers = sorted(set(pieces.documents))
    random.Random(seed).shuffle(numbers)  # noqa: S311 -- a split, not a secret
    first = set(numbers[: len(numbers) // 2])
    half = torch.tensor([number in first for number in pieces.documents])
    found = _accuracies(ordinary, local, classes, half)
    measures = {"probe_exact": found[0], "probe_materialized": found[1]}
    for index, name in enumerate(names if len(names) > 2 else []):
        one = _accuracies(ordinary, local, (classes == index).long(), half)
        measures |= {f"probe_exact_{name}": one[0], f"probe_materialized_{name}": one[1]}
    return measures


def _accuracies(
    ordinary: Tensor, local: Tensor, classes: Tensor, half: Tensor
) -> tuple[float, float]:
    """Of a probe trained on `half` of `ordinary`: asked of the rest of it, and of `local`."""
    mean, spread = ordinary[half].mean(dim=0), ordinary[half].std(dim=0).clamp(min=SPREAD_MIN)
    weight, bias = _fit((ordinary[half] - mean) / spread, classes[half])
    answers = [
        functional.linear((states[~half] - mean) / spread, weight, bias).argmax(dim=1)
        for states in (ordinary, local)
    ]
    right = [float((answer == classes[~half]).float().mean()) for answer in answers]
    return right[0], right[1]


@torch.enable_grad()
def _fit(features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """A multinomial regression: weight [classes, H] and bias."""
    count = int(classes.max()) + 1
    weight = torch.zeros(count, features.shape[1], requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(features, weight, bias), classes)
        loss = loss + PROBE_DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
