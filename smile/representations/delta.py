"""A domain's delta table: n-grams that are frequent there and whose rows differ enough to matter.

Which are frequent is HMI's rule: the shortest prefix, by descending count, that covers a share
alpha of all occurrences (arXiv 2504.17449; its prototype has 0.5 and 0.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smile.errors import InvalidArgument
from smile.model.ngram_rows import RowFormat
from smile.representations.build import (
    ROWS_BATCH,
    OnProgress,
    Step,
    TableWish,
    check_absent,
    ignore_progress,
    write,
)
from smile.representations.counting import CorpusCounter, NgramCounts
from smile.representations.domains import EffectiveRows
from smile.representations.manifest import GENERAL, DeltaFacts, TableManifest
from smile.representations.rows import RowEncoder

ALPHA = 0.5

# Of a row's length. Learning moves all rows: over a parent that knew the field nine in ten by 0.19
# to 0.28, to no gain; over one that did not by 0.28 to 0.43, and agreement with exact answers
# begins to fall where those below 0.35 are left out (`benchmarks.domains`).
DIFFERENCE_MIN = 0.3


@dataclass(frozen=True, slots=True)
class DeltaRules:
    """Which n-grams of a domain get a row.

    Attributes:
        alpha: Share of the domain's tokens that frequent n-grams cover, above 0 to 1.
        difference_min: Length of a row's difference from its parent's, in lengths of the parent's.

    Raises:
        InvalidArgument: a number is out of range.
    """

    alpha: float = ALPHA
    difference_min: float = DIFFERENCE_MIN

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha <= 1.0:
            raise InvalidArgument(f"alpha must be above 0 and at most 1, got {self.alpha}")
        if not 0.0 <= self.difference_min < float("inf"):
            raise InvalidArgument(f"difference_min must be at least 0, got {self.difference_min}")


@dataclass(frozen=True, slots=True)
class Encoders:
    """Whose rows a domain gets, and whose it had.

    Attributes:
        own: The domain's local encoder.
        parent: The rows that its parent's texts get.
    """

    own: RowEncoder
    parent: EffectiveRows


def build_delta(
    output: Path,
    counted: tuple[CorpusCounter, NgramCounts],
    encoders: Encoders,
    wish: TableWish,
    rules: DeltaRules,
    on_progress: OnProgress = ignore_progress,
) -> TableManifest:
    """Writes a domain's delta table to `output`, a new folder; the least frequent n-grams are left
    out where the budget is short. Domain and parent are the wish's.

    Args:
        counted: The domain's corpus; see `count_texts`.

    Raises:
        InvalidArgument: a bad name, no room for a row, or none that differs.
        AlreadyExists, FailedPrecondition: as `write`.
    """
    check_absent(output)
    check_wish(wish)
    counter, counts = counted
    frequent = counts.covering(rules.alpha)
    off = differences(frequent.keys, encoders, wish.format, on_progress)
    matter = off >= rules.difference_min
    chosen = NgramCounts(frequent.keys[matter], frequent.counts[matter]).first(wish.rows_max)
    if len(chosen) == 0:
        raise InvalidArgument(
            f"the domain's rows must differ from its parent's by {rules.difference_min:g} of their "
            f"length somewhere, they do so by at most {off.max(initial=0.0):.3g}"
        )
    facts = DeltaFacts(
        rules.alpha, rules.difference_min, len(frequent), encoders.parent.table_digest
    )
    over = encoders.parent.origin.encoder_digest
    wanted = replace(wish, delta=facts, parent_encoder=over)
    return write(
        output, chosen, counter.facts(len(counts), chosen.total), encoders.own, wanted, on_progress
    )


def check_wish(wish: TableWish) -> None:
    """Raises `InvalidArgument` if no delta can be that."""
    if wish.domain in ("", GENERAL) or wish.parent in ("", wish.domain):
        raise InvalidArgument(
            f"a domain must have a name of its own and a parent, got '{wish.domain}' "
            f"under '{wish.parent}'"
        )
    if wish.rows_max < 1:
        least = int(wish.entry_bytes) + 1
        raise InvalidArgument(
            f"budget must be at least {least} bytes, one row, got {wish.budget_bytes}"
        )


def differences(
    keys: NDArray[np.int64],
    encoders: Encoders,
    row_format: RowFormat,
    on_progress: OnProgress = ignore_progress,
) -> NDArray[np.float32]:
    """How far each row is from its parent's, in lengths of the parent's: [n]."""
    found = np.empty(len(keys), np.float32)
    for start in range(0, len(keys), ROWS_BATCH):
        some = keys[start : start + ROWS_BATCH]
        own, parent = (
            row_format.unpack(encoder.packed(some, row_format))
            for encoder in (encoders.own, encoders.parent)
        )
        found[start : start + len(some)] = relative_difference(own, parent)
        on_progress(Step.COMPARE, start + len(some), len(keys))
    return found


def relative_difference(
    own: NDArray[np.float32], parent: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How far rows [n, width] are from their parent's, in lengths of the parent's: [n]."""
    length = np.linalg.norm(parent, axis=1)
    off = np.linalg.norm(own - parent, axis=1)
    return np.asarray(off / np.maximum(length, np.finfo(np.float32).tiny), np.float32)
