"""Latency tables of a machine: measured once, kept in a file.

Sizes go up by twos until the time allowed is used up; what was not reached is extrapolated. Each is
the fastest of a few runs, as whatever disturbs one makes it longer. A file is used only for exactly
what it was measured on; one that is damaged or of another machine is measured anew, and one that
cannot be written costs a log line. What was measured while the machine was busy with something else
is used, and corrected by what is observed, but not kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from services.processor.scheduling.latency import Curve, LatencyTables
from smile.errors import DataCorrupted
from smile.logs import get_logger
from smile.model.specs import PetKind

FORMAT = 2
RUNS = 5
TOKENS_MIN = 16
TEXT_TOKENS = 32  # tokens of a text, about, while sizes are measured
SHORT_TOKENS = 8  # and of a short one, to tell what a text costs
BETA_SIZES = (32, 256)
ALPHA_SHARE = 0.6  # of the time allowed
CALM_TOKENS_MIN = 128  # where this size was not reached in time, the machine was busy
CALM_SPREAD_MAX = 1.5  # how far a median may be from the fastest run, in the middle of all sizes


class Measure(Protocol):
    """Computes one batch of so many tokens in so many texts, each of a module of its own of that
    kind; the seconds it took.
    """

    def __call__(self, tokens: int, texts: int, kind: PetKind) -> float: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What tables hold for, and for nothing else.

    Attributes:
        encoder_digest: Of what stands in for lower layers; empty: nothing does.
    """

    backbone_digest: str
    encoder_digest: str
    device: str
    precision: str
    kernels: str
    threads: int
    code: str

    @property
    def file_name(self) -> str:
        content = json.dumps(asdict(self), sort_keys=True).encode()
        return f"latency-{hashlib.sha256(content).hexdigest()[:24]}.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured tables, and whether the machine was calm enough for them to be kept."""

    tables: LatencyTables
    calm: bool


@dataclass(slots=True)
class _Watch:
    """Measures while there is time."""

    measure: Measure
    clock: Callable[[], float]
    until: float
    spreads: list[float] = field(default_factory=list)

    def least_s(self, tokens: int, texts: int, kind: PetKind = PetKind.NONE) -> float:
        runs = [self.measure(tokens, texts, kind) for _ in range(RUNS)]
        self.spreads.append(statistics.median(runs) / max(min(runs), 1e-9))
        return min(runs)

    def has(self, seconds: float) -> bool:
        return self.clock() + seconds <= self.until


def calibrate(
    measure: Measure,
    kinds: Sequence[PetKind],
    *,
    tokens_max: int,
    budget_s: float,
    clock: Callable[[], float],
) -> Calibration:
    """Tables up to about `tokens_max` tokens, within about `budget_s`.

    At least the smallest size is measured, however long that takes.
    """
    started = clock()
    watch = _Watch(measure, clock, started + ALPHA_SHARE * budget_s)
    measure(TOKENS_MIN, 1, PetKind.NONE)  # warm caches and thread pools
    whole = _sizes(watch, tokens_max)
    watch.until = started + budget_s
    text_s = _text_s(watch, whole)
    points = {
        tokens: max(seconds - text_s * _texts(tokens), 0.0) for tokens, seconds in whole.items()
    }
    alpha = Curve.measured(plausible(points))
    betas: dict[PetKind, Curve] = {}
    for kind in kinds:
        if kind is not PetKind.NONE and (curve := _beta(watch, kind, whole)) is not None:
            betas[kind] = curve
    reached = alpha.tokens[-1] >= min(CALM_TOKENS_MIN, tokens_max)
    calm = reached and statistics.median(watch.spreads) <= CALM_SPREAD_MAX
    return Calibration(LatencyTables(alpha, text_s, betas), calm)


def _sizes(watch: _Watch, tokens_max: int) -> dict[int, float]:
    """Seconds by tokens, of plain batches."""
    found: dict[int, float] = {}
    tokens = TOKENS_MIN
    while not found or (tokens <= tokens_max and watch.has(2 * RUNS * max(found.values()))):
        found[tokens] = watch.least_s(tokens, _texts(tokens))
        tokens *= 2
    return found


def plausible(points: Mapping[int, float]) -> dict[int, float]:
    """Seconds by tokens less what can only be a disturbance: no size takes longer than two of half
    of it, nor than a larger one.
    """
    found = dict(points)
    for tokens in sorted(found):
        if tokens % 2 == 0 and tokens // 2 in found:
            found[tokens] = min(found[tokens], 2 * found[tokens // 2])
    least = math.inf
    for tokens in sorted(found, reverse=True):
        least = found[tokens] = min(found[tokens], least)
    return found


def _text_s(watch: _Watch, whole: dict[int, float]) -> float:
    """What a text more of the same tokens adds, at the largest size that is quick to measure."""
    tokens = max(size for size in whole if size <= max(BETA_SIZES))
    few, many = _texts(tokens), tokens // SHORT_TOKENS
    if many <= few or not watch.has(RUNS * whole[tokens]):
        return 0.0
    return max(watch.least_s(tokens, many) - whole[tokens], 0.0) / (many - few)


def _beta(watch: _Watch, kind: PetKind, whole: dict[int, float]) -> Curve | None:
    """What a kind adds to plain batches; None where there was no time."""
    points: dict[int, float] = {}
    for tokens in BETA_SIZES:
        if tokens in whole and watch.has(2 * RUNS * whole[tokens]):
            extra_s = watch.least_s(tokens, _texts(tokens), kind) - whole[tokens]
            points[tokens] = min(max(extra_s, 0.0), whole[tokens])  # no module is a backbone
    return Curve.measured(points) if points else None


def _texts(tokens: int) -> int:
    return max(1, tokens // TEXT_TOKENS)


def load(folder: Path, subject: Subject) -> LatencyTables | None:
    """Tables measured earlier, if there are any for exactly this subject."""
    path = folder / subject.file_name
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DataCorrupted(f"expected format {FORMAT}")
        if data.get("subject") != asdict(subject):
            raise DataCorrupted("it is of another machine or model")
        return LatencyTables.from_json(data.get("tables"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, DataCorrupted) as error:
        get_logger().warning("latency tables are measured anew", path=str(path), why=str(error))
        return None


def save(folder: Path, subject: Subject, tables: LatencyTables) -> None:
    """Keep tables for the next start, if the folder can be written."""
    content = {"format": FORMAT, "subject": asdict(subject), "tables": tables.to_json()}
    path = folder / subject.file_name
    made = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made.write_text(json.dumps(content, indent=1))
        made.replace(path)
    except OSError as error:
        get_logger().warning("latency tables are not kept", path=str(path), why=str(error))
