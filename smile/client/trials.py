"""What a sweep tries: hyper-parameters by name, as `AsyncClient.sweep` takes them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Trial: TypeAlias = Mapping[str, object]


def grid(**axes: Sequence[object]) -> list[dict[str, object]]:
    """Every combination of values: `grid(learning_rate=(1e-3, 2e-3), batch_size=(16, 32))` is four.

    The last axis changes fastest.
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sample(trials: Sequence[Trial], count: int, seed: int = 0) -> list[Trial]:
    """So many of the trials, drawn without repetition; all of them where there are fewer."""
    chosen = random.Random(seed).sample(range(len(trials)), min(count, len(trials)))  # noqa: S311
    return [trials[place] for place in sorted(chosen)]
