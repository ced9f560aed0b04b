"""Optimizers, and how the learning rate moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from smile.resources import HyperParameters, Optimizer, Schedule

MOMENTUM = 0.9


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
            return torch.optim.SGD(groups, lr=values.learning_rate, momentum=MOMENTUM)
