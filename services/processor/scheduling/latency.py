"""How long a batch will take: measured tables, looked up. Pure: no clock, no device, no file.

The model is PetS's (Zhou et al., USENIX ATC 2022, section 4.2): what all rows share, `alpha`, plus
what each PET kind adds, `beta`, both measured and not derived. Tokens are packed here, so tables
are over tokens, where PetS's are over texts and their padded length, and a text adds a constant:

    seconds(batch) = alpha[tokens] + text_s * texts + sum over kinds of beta[kind][its tokens]

A machine that is slower today than when it was measured is followed by one factor, learned from
every batch. `services.processor.scheduling.calibrate` measures the tables.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

from smile.errors import DataCorrupted
from smile.model.specs import PetKind

FACTOR_MIN, FACTOR_MAX = 1e-3, 1e2  # how far a machine may be from its tables and be followed
RATIO_MIN, RATIO_MAX = 0.25, 4.0  # what one batch may say against what is believed
FACTOR_SMOOTHING = 0.1  # weight of the newest batch
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

    @property
    def efficient_s(self) -> float:
        """Seconds of the smallest measured size that uses the device well."""
        enough = EFFICIENT * self.per_token
        points = zip(self.tokens, self.seconds, strict=True)
        return next(value for count, value in points if value <= enough * count)


@dataclass(frozen=True, slots=True)
class LatencyTables:
    """What was measured of one backbone on one device.

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


class LatencyModel:
    """Predicts batches of one backbone, and learns from each one how far off the tables are.

    `observe` may run beside predictions in other threads: it replaces one number.
    """

    def __init__(self, tables: LatencyTables) -> None:
        self.tables = tables
        self.factor = 1.0
        self._observed_at = -math.inf
        self._bulk_s = tables.alpha.per_token
        self._efficient_s = tables.alpha.efficient_s

    def seconds(self, tokens: int, texts: int, kind: PetKind = PetKind.NONE) -> float:
        """What a batch of one kind takes."""
        tables = self.tables
        beta = tables.betas.get(kind)
        own = beta.at(tokens) if beta else 0.0
        return self.factor * (tables.alpha.at(tokens) + tables.text_s * texts + own)

    def bulk_s(self, tokens: int, texts: int) -> float:
        """The least that so much work takes, in batches of whatever size suits the device best."""
        return self.factor * (self._bulk_s * tokens + self.tables.text_s * texts)

    @property
    def efficient_s(self) -> float:
        """What a batch takes that uses the device well. Where a device needs long for however
        little, no limit of time should make its batches smaller than this: it would spend itself
        on starting them.
        """
        return self.factor * self._efficient_s

    def observe(self, predicted_s: float, observed_s: float, now: float) -> None:
        """A batch took `observed_s` where `predicted_s` had been predicted, factor included.

        Smoothed in the logarithm, so that half as long and twice as long cancel out; a single
        batch, however far off, moves the factor by at most `RATIO_MAX ** FACTOR_SMOOTHING`.
        """
        if predicted_s <= 0 or observed_s <= 0:
            return
        ratio = min(max(observed_s / predicted_s, RATIO_MIN), RATIO_MAX)
        self.factor = min(max(self.factor * ratio**FACTOR_SMOOTHING, FACTOR_MIN), FACTOR_MAX)
        self._observed_at = now

    def doubt(self, now: float) -> None:
        """Something was refused for what this model predicts. If that keeps everything from being
        computed, nothing would ever be learned: believe it less, until something is.
        """
        if now - self._observed_at > DOUBT_S:
            self.factor = max(self.factor * DOUBT_FACTOR, FACTOR_MIN)


class Latencies:
    """Models by backbone, as they become known. What is not known bounds and refuses nothing."""

    def __init__(self, streams: int = 1) -> None:
        self._streams = streams
        self._models: dict[str, LatencyModel] = {}

    def learn(self, backbone: str, model: LatencyModel) -> None:
        """A backbone has been measured."""
        self._models = {**self._models, backbone: model}

    def of(self, backbone: str) -> LatencyModel | None:
        return self._models.get(backbone)

    def bulk_s(self, tokens: int, texts: int) -> float:
        """The least seconds for so much work on all streams, whichever backbone it is for."""
        alone_s = min((model.bulk_s(tokens, texts) for model in self._models.values()), default=0.0)
        return alone_s / self._streams

    def observe(
        self, backbone: str, predicted_s: float | None, observed_s: float, now: float
    ) -> None:
        """A batch has been computed; None: nothing was predicted."""
        model = self._models.get(backbone)
        if model is not None and predicted_s is not None:
            model.observe(predicted_s, observed_s, now)

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
    def seconds(self) -> float:
        """What the batch would take as it is."""
        return self._seconds(self.tokens, self.texts, self._beta_s)

    def seconds_with(self, tokens: int, texts: int, kind: PetKind) -> float:
        """What it would take with so much more."""
        beta_s = self._beta_s + self._more(tokens, kind)
        return self._seconds(self.tokens + tokens, self.texts + texts, beta_s)

    def add(self, tokens: int, texts: int, kind: PetKind) -> None:
        self._beta_s += self._more(tokens, kind)
        self._kinds[kind] = self._kinds.get(kind, 0) + tokens
        self.tokens += tokens
        self.texts += texts

    def _seconds(self, tokens: int, texts: int, beta_s: float) -> float:
        tables = self._model.tables
        return self._model.factor * (tables.alpha.at(tokens) + tables.text_s * texts + beta_s)

    def _more(self, tokens: int, kind: PetKind) -> float:
        beta = self._model.tables.betas.get(kind)
        if beta is None:
            return 0.0
        held = self._kinds.get(kind, 0)
        return beta.at(held + tokens) - beta.at(held)
