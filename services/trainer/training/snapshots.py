"""A run between two steps, as bytes: all that is needed to go on as if it had never stopped.

The bytes are a SHA-256 and a safetensors body: the trained weights in float32, the optimizer's
state, the best epoch's weights as they will be stored, torch's random state, and as JSON the place
in the run. Order of rows and learning rate follow from the place and the job's seed. A few times
the size of the module, as only that is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from smile.errors import DataCorrupted
from smile.model.initial import StoredArray

FORMAT = 1
DIGEST_BYTES = 32
PLACE, LOSSES, RANDOM = "place", "losses", "random"
MODULE, OPTIMIZER, BEST = "module/", "optimizer/", "best/"

State: TypeAlias = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class BestEpoch:
    """The epoch to be published if none better follows. `loss` is its mean training loss."""

    epoch: int
    loss: float
    metrics: Mapping[str, float] | None
    tensors: Mapping[str, StoredArray]


@dataclass(frozen=True, slots=True)
class Gain:
    """The last epoch that counted as progress for early stopping."""

    epoch: int
    metrics: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run after `step` steps.

    Attributes:
        epoch: The epoch that is under way, from 1.
        steps_done: Steps of that epoch.
        losses: Of those steps.
        module: Weights in training, by name.
        optimizer: Its state by `{index of parameter}.{name}`.
        random: torch's random state.
    """

    step: int
    epoch: int
    steps_done: int
    losses: tuple[float, ...]
    module: Mapping[str, State]
    optimizer: Mapping[str, State]
    random: State
    best: BestEpoch | None
    gain: Gain | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A snapshot of a job's run.

    Attributes:
        spec_digest: Of all that decides the weights; a snapshot goes on with nothing else.
        curve_points: How much of the job's curve lies before it.
        seconds: Time that was spent on it.
    """

    snapshot: Snapshot
    spec_digest: str
    curve_points: int
    seconds: float


def encode(checkpoint: Checkpoint) -> bytes:
    """The checkpoint's bytes."""
    shot = checkpoint.snapshot
    place = {
        "format": FORMAT,
        "spec_digest": checkpoint.spec_digest,
        "curve_points": checkpoint.curve_points,
        "seconds": checkpoint.seconds,
        "step": shot.step,
        "epoch": shot.epoch,
        "steps_done": shot.steps_done,
        "best": shot.best and [shot.best.epoch, shot.best.loss, _plain(shot.best.metrics)],
        "gain": shot.gain and [shot.gain.epoch, _plain(shot.gain.metrics)],
    }
    tensors: dict[str, State] = {
        PLACE: np.frombuffer(json.dumps(place).encode(), np.uint8),
        LOSSES: np.array(shot.losses, np.float64),
        RANDOM: shot.random,
    }
    best = shot.best.tensors if shot.best else {}
    for prefix, named in ((MODULE, shot.module), (OPTIMIZER, shot.optimizer), (BEST, best)):
        tensors |= {f"{prefix}{name}": np.ascontiguousarray(t) for name, t in named.items()}
    body = save(tensors)
    return hashlib.sha256(body).digest() + body


def decode(data: bytes) -> Checkpoint:
    """Raises DataCorrupted if the bytes are not those that were written, or of another format."""
    body = data[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != data[:DIGEST_BYTES]:
        raise DataCorrupted(f"a checkpoint of {len(data)} bytes does not match its digest")
    try:
        tensors = load(body)
        place = json.loads(tensors.pop(PLACE).tobytes())
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataCorrupted(f"a checkpoint of {len(data)} bytes cannot be read") from error
    if place["format"] != FORMAT:
        raise DataCorrupted(f"a checkpoint has format {FORMAT}, this one {place['format']}")
    best, gain = place["best"], place["gain"]
    kept = cast(Mapping[str, StoredArray], _below(BEST, tensors))
    snapshot = Snapshot(
        step=place["step"],
        epoch=place["epoch"],
        steps_done=place["steps_done"],
        losses=tuple(tensors[LOSSES].tolist()),
        module=_below(MODULE, tensors),
        optimizer=_below(OPTIMIZER, tensors),
        random=tensors[RANDOM],
        best=BestEpoch(best[0], best[1], best[2], kept) if best else None,
        gain=Gain(gain[0], gain[1]) if gain else None,
    )
    digest, points, seconds = place["spec_digest"], place["curve_points"], place["seconds"]
    return Checkpoint(snapshot, digest, points, seconds)


def _below(prefix: str, tensors: Mapping[str, State]) -> dict[str, State]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _plain(metrics: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if metrics is None else dict(metrics)
