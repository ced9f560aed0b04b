"""The grouped product against one product per group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smile.model.grouped import grouped_matmul, padded_width, zero_padded


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    outputs=st.sampled_from([8, 16, 24, 48]),
    seed=st.integers(0, 999),
)
def test_grouped_product_equals_one_product_per_group(
    rows: list[int], outputs: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(rows), 12, generator=generator)
    weights = torch.randn(len(rows), 12, outputs, generator=generator)
    ends = torch.tensor(rows).cumsum(0).to(torch.int32)
    parts = torch.split(x, rows)
    expected = torch.cat([part @ weight for part, weight in zip(parts, weights, strict=True)])
    torch.testing.assert_close(grouped_matmul(x, weights, ends), expected, rtol=0, atol=1e-5)


def test_padded_widths_hold_every_width_at_little_cost() -> None:
    widths = {width: padded_width(width) for width in range(1, 1025)}
    assert all(padded >= width for width, padded in widths.items())
    assert all(padded % 8 == 0 for padded in widths.values())
    assert all(padded <= 1.5 * width for width, padded in widths.items() if width > 16)
    assert len(set(widths.values())) == 14


@pytest.mark.parametrize("width", [8, 16, 24, 32, 48, 64, 96, 128])
def test_padded_widths_are_kept(width: int) -> None:
    assert padded_width(width) == width


def test_zero_padding_keeps_the_corner() -> None:
    padded = zero_padded(torch.ones(2, 3), 4, 8)
    assert padded.shape == (4, 8)
    assert padded[:2, :3].eq(1).all()
    assert padded.sum() == 6
