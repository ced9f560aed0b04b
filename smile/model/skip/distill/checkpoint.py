"""Where a distillation stands, on disk: weights, the optimizer's moments, the curve so far.

Written beside its place and renamed, so a kill at any moment leaves the last whole one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smile.errors import DataCorrupted, FailedPrecondition

FILE = "checkpoint.safetensors"
METADATA_KEY = "smile.distillation.v1"


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the curve.

    Attributes:
        step: Batches learned from so far.
        states: Relative squared errors, smoothed; see `Errors`.
        scores: Likewise, of attention scores.
    """

    step: int
    epoch: int
    loss: float
    states: tuple[float, ...]
    scores: float


@dataclass(frozen=True, slots=True)
class Place:
    """How far it is.

    Attributes:
        digest: Of everything that decides the result; see `DistillSettings.digest`.
        epoch, batch: The next batch to learn from.
        seconds: Spent so far.
        curve: Points so far.
    """

    digest: str
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    curve: tuple[Point, ...] = ()


def write(folder: Path, place: Place, tensors: Mapping[str, Tensor]) -> None:
    """Keeps a place and its tensors.

    Raises:
        FailedPrecondition: the disk is full.
    """
    stated = json.dumps(
        {
            "digest": place.digest,
            "epoch": place.epoch,
            "batch": place.batch,
            "step": place.step,
            "seconds": place.seconds,
            "curve": [[p.step, p.epoch, p.loss, list(p.states), p.scores] for p in place.curve],
        }
    )
    part = folder / f"{FILE}.part"
    try:
        save_file(dict(tensors), part, {METADATA_KEY: stated})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise FailedPrecondition(
            f"a checkpoint cannot be written to {folder}: {error}", reason="DISK_FULL"
        ) from error


def read(folder: Path, digest: str) -> tuple[Place, dict[str, Tensor]] | None:
    """What was kept last; None if nothing was.

    Raises:
        FailedPrecondition: it is of another distillation.
        DataCorrupted: it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as stored:
            stated = json.loads(stored.metadata()[METADATA_KEY])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        curve = tuple(Point(s, e, loss, tuple(h), q) for s, e, loss, h, q in stated.pop("curve"))
        place = Place(**stated, curve=curve)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataCorrupted(f"{path} is no checkpoint of a distillation: {error}") from error
    if place.digest != digest:
        raise FailedPrecondition(
            f"{folder} holds another distillation that is not done: same output, other backbone, "
            "corpus or settings. Remove it, or choose another output.",
            reason="DISTILLATION_DIFFERS",
        )
    return place, {name: tensor.clone() for name, tensor in tensors.items()}


def parameters(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments by name."""
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        found[f"weight/{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{key}/{name}"] = value
    return found


@torch.no_grad()
def restore(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `parameters` gave."""
    for name, parameter in module.named_parameters():
        parameter.copy_(tensors[f"weight/{name}"])
        state = {
            key.removesuffix(f"/{name}"): value
            for key, value in tensors.items()
            if key.endswith(f"/{name}") and not key.startswith("weight/")
        }
        if state:
            optimizer.state[parameter] = state
