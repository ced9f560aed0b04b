"""How long a batch will take: measured tables, looked up. Pure: no clock, no device, no file.

The model is PetS's (Zhou et al., USENIX ATC 2022, section 4.2): what all rows share, `alpha`, plus
what each PET kind adds, `beta`, both measured and not derived. Tokens are packed here, so tables
are over tokens, where PetS's are over texts and their padded length, and a text adds a constant:

    seconds(batch) = alpha[tokens] + text_s * texts + sum over kinds of beta[kind][its tokens]

A machine that is slower today than when it was measured is followed by a line, learned from every
batch: `overhead + factor * seconds(batch)`. Two numbers and not one, because what disturbs a batch
that is computed beside others (threads that wait for each other) is more of a small batch than of a
large one. With a factor alone small batches would look as if the machine had become slow, which
makes them smaller. `services.processor.scheduling.calibrate` measures the tables.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

from services.processor.requests import Track
from smile.errors import DataCorrupted
from smile.model.specs import PetKind

FACTOR_MIN, FACTOR_MAX = 1e-3, 1e2  # how far a machine may be from its tables and be followed
RATIO_MIN, RATIO_MAX = 0.25, 4.0  # what one batch may say against what is believed
TABLE_S_MIN = 1e-6  # below which tables say nothing
SMOOTHING = 0.05  # weight of the newest batch
OVERHEAD_DOUBT = 0.005  # how much of all is held to say that there is no overhead
DOUBT_S = 1.0  # without a batch, after which a refusal is itself a reason for doubt
DOUBT_FACTOR = 0.8
EFFICIENT = 2.0  # of the least seconds per token; a batch that takes no more uses the device well
POINTS_MAX = 1_000

Json: TypeAlias = "float | Sequence[Json] | Mapping[str, Json]"


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds over tokens, non-decreasing.

    Between two points it is interpolated; below the first it is the first point's, and beyond the
    last in proportion to it, both of which round up: devices do worse at fewer tokens.

    Raises:
        ValueError: tokens do not rise, seconds fall, or a number is negative or not finite.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.tokens) == len(self.seconds) <= POINTS_MAX:
            raise ValueError(f"expected as many tokens as seconds, at most {POINTS_MAX}")
        rising = all(low < high for low, high in pairwise(self.tokens))
        falling = any(low > high for low, high in pairwise(self.seconds))
        usable = all(math.isfinite(value) and value >= 0 for value in self.seconds)
        if self.tokens[0] < 1 or not rising or falling or not usable:
            raise ValueError(f"expected rising tokens and seconds that do not fall, got {self}")

    @classmethod
    def measured(cls, points: Mapping[int, float]) -> Curve:
        """The least curve that is nowhere below a measured point, noise that falls included."""
        tokens = tuple(sorted(points))
        highest, seconds = 0.0, []
        for count in tokens:
            highest = max(highest, points[count])
            seconds.append(highest)
        return cls(tokens, tuple(seconds))

    def at(self, tokens: int) -> float:
        """Seconds for so many tokens; none for none."""
        if tokens <= 0:
            return 0.0
        place = bisect_left(self.tokens, tokens)
        if place == len(self.tokens):
            return self.seconds[-1] * tokens / self.tokens[-1]
        if place == 0:
            return self.seconds[0]
        left, right = self.tokens[place - 1], self.tokens[place]
        low, high = self.seconds[place - 1], self.seconds[place]
        return low + (high - low) * (tokens - left) / (right - left)

    @property
    def per_token(self) -> float:
        """Seconds per token where the device does best."""
        return min(value / count for count, value in zip(self.tokens, self.seconds, strict=True))


@dataclass(frozen=True, slots=True)
class LatencyTables:
    """What was measured of one track on one device.

    Attributes:
        alpha: What all rows share.
        text_s: What each text adds.
        betas: What each PET kind adds for its own tokens; a kind without a curve adds nothing.
    """

    alpha: Curve
    text_s: float = 0.0
    betas: Mapping[PetKind, Curve] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.text_s) and self.text_s >= 0):
            raise ValueError(f"expected text_s of 0 or more, got {self.text_s}")

    def to_json(self) -> dict[str, Json]:
        """For a file; `from_json` gives it back."""
        return {
            "alpha": _curve_json(self.alpha),
            "text_s": self.text_s,
            "betas": {kind.value: _curve_json(curve) for kind, curve in self.betas.items()},
        }

    @classmethod
    def from_json(cls, data: object) -> LatencyTables:
        """Raises `DataCorrupted` if `data` is not what `to_json` gave."""
        try:
            assert isinstance(data, dict)
            betas = {PetKind(kind): _curve(curve) for kind, curve in data["betas"].items()}
            return cls(_curve(data["alpha"]), float(data["text_s"]), betas)
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataCorrupted(f"these are no latency tables: {error!r}") from error


def _curve_json(curve: Curve) -> dict[str, Json]:
    return {"tokens": list(curve.tokens), "seconds": list(curve.seconds)}


def _curve(data: Mapping[str, list[float]]) -> Curve:
    return Curve(tuple(map(int, data["tokens"])), tuple(map(float, data["seconds"])))


@dataclass(slots=True)
class Line:
    """`observed = overhead + factor * table`: what batches take over what their tables say.

    Weighted least squares of the relative errors, in which older batches count less and less; with
    a little weight on no overhead at all, so that batches all of one size move the factor.

    Attributes:
        overhead_s: 0 or more.
        factor: Within `FACTOR_MIN` and `FACTOR_MAX`.
    """

    overhead_s: float = 0.0
    factor: float = 1.0
    _inverse: float = 0.0  # of the table's seconds: smoothed mean
    _inverse_squared: float = 0.0
    _ratio: float = 1.0  # observed over table's, likewise
    _ratio_inverse: float = 0.0
    _known: bool = False

    def at(self, table_s: float) -> float:
        """What a batch takes."""
        return self.overhead_s + self.factor * table_s

    def add(self, table_s: float, observed_s: float) -> None:
        """A batch took so long; both above 0, the first at least `TABLE_S_MIN`."""
        expected_s = self.at(table_s)
        observed_s = min(max(observed_s, RATIO_MIN * expected_s), RATIO_MAX * expected_s)
        inverse, ratio = 1.0 / table_s, observed_s / table_s
        if not self._known:  # before the first: as many that were as believed so far
            self._inverse, self._inverse_squared = inverse, inverse * inverse
            self._ratio = expected_s / table_s
            self._ratio_inverse = self._ratio * inverse
            self._known = True
        self._inverse += SMOOTHING * (inverse - self._inverse)
        self._inverse_squared += SMOOTHING * (inverse * inverse - self._inverse_squared)
        self._ratio += SMOOTHING * (ratio - self._ratio)
        self._ratio_inverse += SMOOTHING * (ratio * inverse - self._ratio_inverse)
        self._solve()

    def scale(self, by: float) -> None:
        """Believe that everything takes `by` times as long, until batches say otherwise."""
        self.overhead_s *= by
        self.factor = min(max(self.factor * by, FACTOR_MIN), FACTOR_MAX)
        self._known = False

    def _solve(self) -> None:
        squared = (1 + OVERHEAD_DOUBT) * self._inverse_squared
        scale = squared - self._inverse * self._inverse  # above 0: means of squares are larger
        overhead_s = (self._ratio_inverse - self._ratio * self._inverse) / scale
        self.overhead_s = min(max(overhead_s, 0.0), self._ratio / self._inverse)
        factor = self._ratio - self.overhead_s * self._inverse
        self.factor = min(max(factor, FACTOR_MIN), FACTOR_MAX)


class LatencyModel:
    """Predicts batches of one track, and learns from each one how far off the tables are.

    `observe` may run beside predictions in other threads: it replaces two numbers.
    """

    def __init__(self, tables: LatencyTables) -> None:
        self.tables = tables
        self.line = Line()
        self._observed_at = -math.inf
        self._per_token_s = tables.alpha.per_token

    def seconds(self, tokens: int, texts: int, kind: PetKind = PetKind.NONE) -> float:
        """What a batch of one kind takes."""
        tables = self.tables
        beta = tables.betas.get(kind)
        own = beta.at(tokens) if beta else 0.0
        return self.line.at(tables.alpha.at(tokens) + tables.text_s * texts + own)

    def bulk_s(self, tokens: int, texts: int) -> float:
        """The least that so much work takes, in batches of whatever size suits the device best."""
        return self.line.factor * (self._per_token_s * tokens + self.tables.text_s * texts)

    @property
    def efficient_s(self) -> float:
        """What the smallest measured batch takes that uses the device well. Where a device needs
        long for however little, no limit of time should make its batches smaller than this: it
        would spend itself on starting them.
        """
        alpha, line = self.tables.alpha, self.line
        enough_s = EFFICIENT * line.factor * self._per_token_s
        found = 0.0
        for tokens, table_s in zip(alpha.tokens, alpha.seconds, strict=True):
            found = line.at(table_s)
            if found <= enough_s * tokens:
                break
        return found

    def observe(self, table_s: float, observed_s: float, now: float) -> None:
        """A batch took `observed_s` where the tables say `table_s`. A single one, however far off,
        counts as at most `RATIO_MAX` times as long as was predicted.
        """
        if table_s < TABLE_S_MIN or observed_s <= 0:
            return
        self.line.add(table_s, observed_s)
        self._observed_at = now

    def doubt(self, now: float) -> None:
        """Something was refused for what this model predicts. If that keeps everything from being
        computed, nothing would ever be learned: believe it less, until something is.
        """
        if now - self._observed_at > DOUBT_S:
            self.line.scale(DOUBT_FACTOR)


class Latencies:
    """Models by track, as they become known. What is not known bounds and refuses nothing."""

    def __init__(self, streams: int = 1) -> None:
        self._streams = streams
        self._models: dict[Track, LatencyModel] = {}

    def learn(self, track: Track, model: LatencyModel) -> None:
        """A track has been measured."""
        self._models = {**self._models, track: model}

    def of(self, track: Track) -> LatencyModel | None:
        return self._models.get(track)

    def bulk_s(self, tokens: int, texts: int) -> float:
        """The least seconds for so much work on all streams, whichever track it is for."""
        if not self._models:
            return 0.0
        alone_s = min([model.bulk_s(tokens, texts) for model in self._models.values()])
        return alone_s / self._streams

    def observe(self, track: Track, table_s: float | None, observed_s: float, now: float) -> None:
        """A batch has been computed; None: nothing was predicted."""
        model = self._models.get(track)
        if model is not None and table_s is not None:
            model.observe(table_s, observed_s, now)

    def doubt(self, now: float) -> None:
        """Something was refused for what `bulk_s` says."""
        for model in self._models.values():
            model.doubt(now)


class Tally:
    """A batch that is being put together, and what it would take. Adding is O(log points)."""

    __slots__ = ("_beta_s", "_kinds", "_model", "texts", "tokens")

    def __init__(self, model: LatencyModel) -> None:
        self._model = model
        self._kinds: dict[PetKind, int] = {}
        self._beta_s = 0.0  # of all kinds, before the factor
        self.tokens = 0
        self.texts = 0

    @property
    def table_s(self) -> float:
        """What the tables say the batch takes as it is."""
        return self._table_s(self.tokens, self.texts, self._beta_s)

    @property
    def seconds(self) -> float:
        """What the batch would take as it is."""
        return self._model.line.at(self.table_s)

    def seconds_with(self, tokens: int, texts: int, kind: PetKind) -> float:
        """What it would take with so much more."""
        beta_s = self._beta_s + self._more(tokens, kind)
        table_s = self._table_s(self.tokens + tokens, self.texts + texts, beta_s)
        return self._model.line.at(table_s)

    def add(self, tokens: int, texts: int, kind: PetKind) -> None:
        self._beta_s += self._more(tokens, kind)
        self._kinds[kind] = self._kinds.get(kind, 0) + tokens
        self.tokens += tokens
        self.texts += texts

    def _table_s(self, tokens: int, texts: int, beta_s: float) -> float:
        tables = self._model.tables
        return tables.alpha.at(tokens) + tables.text_s * texts + beta_s

    def _more(self, tokens: int, kind: PetKind) -> float:
        beta = self._model.tables.betas.get(kind)
        if beta is None:
            return 0.0
        held = self._kinds.get(kind, 0)
        return beta.at(held + tokens) - beta.at(held)
