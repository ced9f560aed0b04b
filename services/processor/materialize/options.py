"""What is learned from traffic about n-grams."""

from __future__ import annotations

from dataclasses import dataclass, field

from smile import limits
from smile.representations.traffic import CountRules
from smile.standins import INCLUDED, StandInPlace, parse_places

__all__ = ["INCLUDED", "LearningOptions", "StandInPlace", "parse_places"]


@dataclass(frozen=True, slots=True)
class LearningOptions:
    """What is learned from traffic.

    Attributes:
        on: Whether anything is.
        bytes_max: Memory for rows beside the table's.
        rounds_s: Seconds from one round of learning to the next.
        rules: What is counted and what may be told.
    """

    on: bool = True
    bytes_max: int = 64 * limits.MIB
    rounds_s: float = 5.0
    rules: CountRules = field(default_factory=CountRules)
