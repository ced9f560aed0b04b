"""The eager task ops against one member at a time in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smile.model.kernels import grouped
from smile.model.kernels.activation import Activation
from smile.model.kernels.grouped import TorchGrouped, grouped_matmul, padded_width, zero_padded
from tests.unit.model.kernels import members as cases

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=7)
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 6e-2}


@dataclass
class Case:
    """Random members and rows. `y` is a column slice of a wider matrix."""

    counts: list[int]
    seed: int
    dtype: torch.dtype = torch.float32
    slabs: int = 2

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.weights = [
            cases.member_weights(24, 16, 32, generator, self.dtype) for _ in self.counts
        ]
        self.members = cases.placed(self.weights, self.counts, generator, self.slabs)
        rows = sum(self.counts)
        self.x = torch.randn(rows, 48, generator=generator).to(self.dtype)[:, 8:32]
        self.wide = torch.randn(rows, 96, generator=generator).to(self.dtype)
        self.y = self.wide[:, 32:64]

    def check_added(
        self,
        add: Callable[[Tensor, Tensor], None],
        op: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    ) -> None:
        """`add(x, y)` adds what `op` says and touches nothing beside y."""
        before = self.wide.clone()
        expected = self.y.double() + cases.looped(op, self.x, self.weights, self.counts)
        add(self.x, self.y)
        self.check_close(self.y, expected)
        assert self.wide[:, :32].equal(before[:, :32])
        assert self.wide[:, 64:].equal(before[:, 64:])

    def check_close(self, found: Tensor, expected: Tensor) -> None:
        assert found.dtype is self.dtype
        tolerance = TOLERANCES[self.dtype]
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


CASES = st.builds(
    Case,
    counts=COUNTS,
    seed=st.integers(0, 999),
    dtype=st.sampled_from(list(TOLERANCES)),
    slabs=st.integers(1, 3),
)


@settings(deadline=None, max_examples=30)
@given(case=CASES)
def test_linear(case: Case) -> None:
    expected = cases.looped(cases.linear, case.x, case.weights, case.counts)
    case.check_close(TorchGrouped().linear(case.x, case.members, "head", "up.bias"), expected)


def test_linear_without_bias() -> None:
    case = Case([2, 3], 0)
    kernels = TorchGrouped()
    biased = kernels.linear(case.x, case.members, "head", "up.bias")
    bias = case.members.gather("up.bias").index_select(0, case.members.owners)
    plain = kernels.linear(case.x, case.members, "head", None)
    torch.testing.assert_close(plain + bias, biased, rtol=0, atol=1e-6)


def test_float32_rows_by_bfloat16_weights() -> None:
    case = Case([2, 3], 0, torch.bfloat16)
    found = TorchGrouped().linear(case.x.float(), case.members, "head", "up.bias")
    expected = cases.looped(cases.linear, case.x, case.weights, case.counts)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@settings(deadline=None, max_examples=30)
@given(case=CASES)
def test_low_rank(case: Case) -> None:
    case.check_added(
        lambda x, y: TorchGrouped().add_low_rank(x, y, case.members, "down", "up"), cases.low_rank
    )


@settings(deadline=None, max_examples=30)
@given(case=CASES, activation=st.sampled_from(Activation))
def test_bottleneck(case: Case, activation: Activation) -> None:
    case.check_added(
        lambda x, y: TorchGrouped().add_bottleneck(x, y, case.members, cases.FIELDS, activation),
        cases.bottleneck(activation),
    )


@settings(deadline=None, max_examples=30)
@given(case=CASES)
def test_vectors(case: Case) -> None:
    case.check_added(
        lambda x, y: TorchGrouped().add_vectors(y, case.members, "up.bias"), cases.vectors
    )


@pytest.mark.parametrize("elements_max", [1, 24 * 32 * 2, 1 << 20])
@settings(deadline=None, max_examples=15)
@given(case=CASES)
def test_sparse_in_steps_of_any_size(elements_max: int, case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped, "SPARSE_ELEMENTS_MAX", elements_max)
        case.check_added(
            lambda x, y: TorchGrouped().add_sparse(x, y, case.members, "indices", "values"),
            cases.sparse,
        )


def test_sparse_entries_outside_the_matrix_add_nothing() -> None:
    case = Case([2, 3], 0)
    layout = case.members.layout
    for row in case.members.rows:
        row.view(layout.fields["indices"]).fill_(-1)
        row.view(layout.fields["values"]).fill_(float("nan"))
    before = case.wide.clone()
    TorchGrouped().add_sparse(case.x, case.y, case.members, "indices", "values")
    assert case.wide.equal(before)


def test_a_poisoned_member_spoils_only_its_own_rows() -> None:
    case, kernels = Case([2, 3, 4], 0), TorchGrouped()
    row, layout = case.members.rows[1], case.members.layout
    clean, poisoned = case.y.clone(), case.y.clone()
    kernels.add_bottleneck(case.x, clean, case.members, cases.FIELDS, Activation.RELU)
    row.view(layout.fields["up"]).fill_(float("nan"))
    kernels.add_bottleneck(case.x, poisoned, case.members, cases.FIELDS, Activation.RELU)
    assert poisoned[2:5].isnan().all()
    assert poisoned[:2].equal(clean[:2])
    assert poisoned[5:].equal(clean[5:])


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


def test_rows_at_any_stride() -> None:
    wide = torch.randn(5, 27)
    weights = torch.randn(2, 24, 8)
    ends = torch.tensor([2, 5], dtype=torch.int32)
    expected = grouped_matmul(wide[:, 3:].clone(), weights, ends)
    assert grouped_matmul(wide[:, 3:], weights, ends).equal(expected)


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
