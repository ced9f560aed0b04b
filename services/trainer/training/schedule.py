"""Optimizers, their state as arrays, and how the learning rate moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from services.trainer.training.snapshots import State
from smile.resources import HyperParameters, Optimizer, Schedule


def learning_rate(values: HyperParameters, step: int, steps_total: int) -> float:
    """The rate of a step counted from 1: a line up to the peak, then the schedule down to zero."""
    warmup = round(values.warmup_ratio * steps_total)
    if step <= warmup:
        return values.learning_rate * (step / warmup)
    done = (step - 1 - warmup) / max(steps_total - warmup, 1)  # 0 at the first step after warm-up
    return values.learning_rate * DECAYS[values.schedule](done)


DECAYS: Mapping[Schedule, Callable[[float], float]] = {
    Schedule.LINEAR: lambda done: 1.0 - done,
    Schedule.COSINE: lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    Schedule.CONSTANT: lambda done: 1.0,
}


def build_optimizer(
    values: HyperParameters, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer over parameters; biases and other vectors do not decay."""
    all_parameters = list(parameters)
    groups = [
        {
            "params": [p for p in all_parameters if p.ndim > 1],
            "weight_decay": values.weight_decay,
        },
        {"params": [p for p in all_parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match values.optimizer:
        case Optimizer.ADAMW:
            return torch.optim.AdamW(groups, lr=values.learning_rate)
        case Optimizer.ADAM:
            return torch.optim.Adam(groups, lr=values.learning_rate)
        case Optimizer.SGD:
            return torch.optim.SGD(groups, lr=values.learning_rate, momentum=values.momentum)
        case Optimizer.ADAFACTOR:
            return torch.optim.Adafactor(groups, lr=values.learning_rate)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, State]:
    """What the optimizer remembers, by `{index of parameter}.{name}`."""
    state: Mapping[int, Mapping[str, Tensor | None]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value.detach().clone().numpy()
        for index, remembered in state.items()
        for name, value in remembered.items()
        if value is not None
    }


def restore(optimizer: torch.optim.Optimizer, state: Mapping[str, State]) -> None:
    """Gives a fresh optimizer over the same parameters what another one remembered."""
    remembered: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, _, name = key.partition(".")
        remembered.setdefault(int(index), {})[name] = torch.from_numpy(value)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": remembered, "param_groups": groups})
