"""What a scenario did and found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

QUICK_FAULTS = 1  # of each operation, where not all are asked for
QUICK_OPERATIONS = 3  # of those that are struck where a fault takes long
STEPS_MAX = 500


@dataclass(frozen=True, slots=True)
class Selection:
    """Which steps of an operation are struck: all, or a few drawn by `seed`."""

    everything: bool = False
    seed: int = 0
    faults: int = QUICK_FAULTS

    def of(self, steps: int, what: str) -> list[int]:
        """Numbers of steps, from 1; `what` makes the draws of scenarios differ."""
        numbers = range(1, steps + 1)
        if self.everything:
            return list(numbers)
        return sorted(self._random(what).sample(numbers, min(self.faults, steps)))

    def among(self, operations: list[str], what: str) -> list[str]:
        """Operations to strike."""
        if self.everything:
            return operations
        return self._random(what).sample(operations, QUICK_OPERATIONS)

    def _random(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what}")


@dataclass
class Tally:
    """Counts of one guarantee under one kind of fault.

    Attributes:
        faults: Blows that fell.
        steps: Names of the steps at which they did.
        acknowledged: Times that something acknowledged was looked for afterwards, and compared.
        checked: Things that the judge read whole.
        lost: What was acknowledged and is not there, or not as it was.
        torn: What is visible and not whole, or was done twice, or refused when repeated.
        cleared: Orphans that a sweep removed.
    """

    guarantee: str
    fault: str
    faults: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    checked: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def expect(self, kept: bool, what: str) -> None:
        """Something that was acknowledged must be there."""
        self.acknowledged += 1
        if not kept:
            self.lost.append(what)

    def whole(self, right: bool, what: str) -> None:
        """Something visible must be whole."""
        self.checked += 1
        if not right:
            self.torn.append(what)

    @property
    def faultless(self) -> bool:
        return not self.lost and not self.torn

    def row(self) -> dict[str, object]:
        return {
            "guarantee": self.guarantee,
            "fault": self.fault,
            "faults": self.faults,
            "steps": len(self.steps),
            "acknowledged": self.acknowledged,
            "checked": self.checked,
            "lost": len(self.lost),
            "torn": len(self.torn),
            "seconds": round(self.seconds, 1),
        }


def numbered(selection: Selection, what: str, counted: int) -> Iterator[int]:
    """Steps to strike. With all asked for it goes on past the count, until the caller, having seen
    no blow fall, breaks off: the count is only a first guess where steps depend on time."""
    yield from selection.of(counted, what)
    if selection.everything:
        yield from range(counted + 1, STEPS_MAX)
