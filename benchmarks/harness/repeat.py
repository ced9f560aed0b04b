"""Repetitions: compared variants take turns, so that a drifting machine meets all alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import TypeVar

T = TypeVar("T")


def turns(variants: Sequence[str], repetitions: int) -> Iterator[tuple[int, str]]:
    """(repetition, variant): every variant once a repetition, in rotating order."""
    for repetition in range(repetitions):
        shift = repetition % len(variants)
        for variant in (*variants[shift:], *variants[:shift]):
            yield repetition, variant


def interleaved(
    variants: Mapping[str, Callable[[], T]], repetitions: int, done: Callable[[], None]
) -> dict[str, list[T]]:
    """What each variant gave, `repetitions` times; `done` is called after each."""
    found: dict[str, list[T]] = {name: [] for name in variants}
    for _, name in turns(tuple(variants), repetitions):
        found[name].append(variants[name]())
        done()
    return found


async def interleaved_async(
    variants: Mapping[str, Callable[[int], Awaitable[T]]],
    repetitions: int,
    done: Callable[[], None],
) -> dict[str, list[T]]:
    """As `interleaved`; a variant hears which repetition it is, for its seed."""
    found: dict[str, list[T]] = {name: [] for name in variants}
    for repetition, name in turns(tuple(variants), repetitions):
        found[name].append(await variants[name](repetition))
        done()
    return found


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in found.items()}


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of values measured in the same repetition."""
    return median(a / b for a, b in zip(above, below, strict=True))
