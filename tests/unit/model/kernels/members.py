"""Random members in random slabs, and their task ops one member at a time in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from smile.model.kernels.activation import Activation
from smile.model.kernels.grouped import BottleneckFields
from smile.model.kernels.rows import Members, Row, RowLayout

CPU = torch.device("cpu")
FIELDS = BottleneckFields("down", "down.bias", "up", "up.bias")
ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    Activation.RELU: functional.relu,
    Activation.SILU: functional.silu,
    Activation.TANH: torch.tanh,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
}


def member_weights(
    inputs: int, rank: int, outputs: int, generator: torch.Generator, dtype: torch.dtype
) -> dict[str, Tensor]:
    """One module with every kind of field."""

    def drawn(*shape: int) -> Tensor:
        scale = shape[0] ** -0.5 if len(shape) == 2 else 1.0
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    entries = inputs * outputs // 10 + 1
    i = torch.randint(inputs, (entries,), generator=generator)
    o = torch.randint(outputs, (entries,), generator=generator).sort().values
    return {
        "down": drawn(inputs, rank),
        "down.bias": drawn(rank),
        "up": drawn(rank, outputs),
        "up.bias": drawn(outputs),
        "indices": (i << 16 | o).to(torch.int32),
        "values": drawn(entries),
        "head": drawn(inputs, outputs),
    }


def placed(
    weights: Sequence[Mapping[str, Tensor]],
    counts: Sequence[int],
    generator: torch.Generator,
    slabs: int = 1,
) -> Members:
    """Members whose rows lie at random free slots of `slabs` slabs, all else being NaN bytes."""
    layout = RowLayout.of(weights[0])
    memory = [
        torch.full((len(weights) + 1, layout.row_bytes), 255, dtype=torch.uint8)
        for _ in range(slabs)
    ]
    free = [torch.randperm(len(weights) + 1, generator=generator).tolist() for _ in memory]
    rows = []
    for one in weights:
        slab = int(torch.randint(slabs, (), generator=generator))
        row = Row(memory[slab], free[slab].pop())
        layout.write(row, one)
        rows.append(row)
    return Members.of(rows, counts, layout, CPU)


def looped(
    op: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    x: Tensor,
    weights: Sequence[Mapping[str, Tensor]],
    counts: Sequence[int],
) -> Tensor:
    """`op(rows of x, weights)` of each member alone, in float64."""
    parts = []
    for part, one in zip(x.double().split(list(counts)), weights, strict=True):
        wide = {
            name: tensor if tensor.dtype is torch.int32 else tensor.double()
            for name, tensor in one.items()
        }
        parts.append(op(part, wide))
    return torch.cat(parts)


def linear(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return x @ weights["head"] + weights["up.bias"]


def low_rank(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return x @ weights["down"] @ weights["up"]


def bottleneck(activation: Activation) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    def op(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        narrow = ACTIVATIONS[activation](x @ weights["down"] + weights["down.bias"])
        return narrow @ weights["up"] + weights["up.bias"]

    return op


def vectors(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return weights["up.bias"].expand(x.shape[0], -1)


def sparse(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    matrix = torch.zeros(x.shape[1], weights["up.bias"].shape[0], dtype=x.dtype)
    indices = weights["indices"].long()
    matrix.index_put_((indices >> 16, indices & 0xFFFF), weights["values"], accumulate=True)
    return x @ matrix
