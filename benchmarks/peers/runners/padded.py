"""What padded batches need, whoever computes them: padding, pooling, heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.peers.runners.protocol import Requests

HEAD_STD = 0.02


def padded(requests: Requests, indices: Sequence[int]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` [texts, longest], padded on the right."""
    ids = [requests.ids[index] for index in indices]
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in ids]),
    }


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens: [texts, tokens, H] to [texts, H]."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def head(requests: Requests, hidden: int) -> torch.nn.Linear:
    """One classification head; the peers get one for all, which is less work than one each."""
    made = torch.nn.Linear(hidden, requests.labels)
    torch.nn.init.normal_(made.weight, std=HEAD_STD)
    return made.eval()


def randomise(model: torch.nn.Module, names: Sequence[str]) -> None:
    """Give parameters with one of `names` in theirs random values: no adapter is an identity."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * HEAD_STD)


def check(batched: Tensor, alone: Tensor) -> None:
    """Whether a batch answered as each adapter alone does; a competitor that does not is out."""
    difference = float((batched - alone).abs().max())
    if not difference < 1e-3:
        raise SystemExit(f"batched and alone differ by {difference}")
