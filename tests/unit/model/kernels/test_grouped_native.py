"""The native task ops against one member at a time in float64, and against the eager ones."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smile.model.kernels.activation import Activation
from smile.model.kernels.build import Places, load
from smile.model.kernels.grouped import GroupedKernels, TorchGrouped
from smile.model.kernels.native_grouped import NativeGrouped
from smile.model.kernels.rows import Members, Row, RowLayout
from smile.model.kernels.tape import AtOnce, Library
from tests.unit.model.kernels import members as cases

LOADED = load(Places())
pytestmark = pytest.mark.skipif(LOADED.handle is None, reason=LOADED.origin)

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}  # one rounding, of the sum
WIDTHS = st.sampled_from([1, 7, 8, 16, 24, 40, 48, 56, 64, 96, 131])


def _native() -> NativeGrouped:
    assert LOADED.handle is not None
    return NativeGrouped(AtOnce(Library(LOADED.handle)))


@dataclass
class Case:
    """Random members and rows; x and y are column slices of wider matrices."""

    counts: list[int]
    seed: int
    inputs: int = 24
    rank: int = 16
    outputs: int = 40
    dtype: torch.dtype = torch.float32
    slabs: int = 2

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.weights = [
            cases.member_weights(self.inputs, self.rank, self.outputs, generator, self.dtype)
            for _ in self.counts
        ]
        self.members = cases.placed(self.weights, self.counts, generator, self.slabs)
        rows = sum(self.counts)
        self.x = self._drawn(rows, self.inputs + 5, generator)[:, 3 : 3 + self.inputs]
        self.wide = self._drawn(rows, self.outputs + 9, generator)
        self.y = self.wide[:, 4 : 4 + self.outputs]

    def _drawn(self, rows: int, width: int, generator: torch.Generator) -> Tensor:
        return torch.randn(rows, width, generator=generator).to(self.dtype)

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
        assert self.wide[:, :4].equal(before[:, :4])
        assert self.wide[:, -5:].equal(before[:, -5:])

    def check_close(self, found: Tensor, expected: Tensor) -> None:
        assert found.dtype is self.dtype
        tolerance = TOLERANCES[self.dtype]
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


CASES = st.builds(
    Case,
    counts=st.lists(
        st.one_of(st.integers(0, 20), st.sampled_from([63, 64, 65, 130])), min_size=1, max_size=5
    ),
    seed=st.integers(0, 999),
    inputs=WIDTHS,
    rank=WIDTHS,
    outputs=WIDTHS,
    dtype=st.sampled_from(list(TOLERANCES)),
    slabs=st.integers(1, 3),
)
PROPERTY = settings(deadline=None, max_examples=60)


@PROPERTY
@given(case=CASES)
def test_linear(case: Case) -> None:
    expected = cases.looped(cases.linear, case.x, case.weights, case.counts)
    case.check_close(_native().linear(case.x, case.members, "head", "up.bias"), expected)


@PROPERTY
@given(case=CASES)
def test_low_rank(case: Case) -> None:
    case.check_added(
        lambda x, y: _native().add_low_rank(x, y, case.members, "down", "up"), cases.low_rank
    )


@PROPERTY
@given(case=CASES, activation=st.sampled_from(Activation))
def test_bottleneck(case: Case, activation: Activation) -> None:
    case.check_added(
        lambda x, y: _native().add_bottleneck(x, y, case.members, cases.FIELDS, activation),
        cases.bottleneck(activation),
    )


@PROPERTY
@given(case=CASES)
def test_vectors(case: Case) -> None:
    case.check_added(lambda x, y: _native().add_vectors(y, case.members, "up.bias"), cases.vectors)


@PROPERTY
@given(case=CASES)
def test_sparse(case: Case) -> None:
    case.check_added(
        lambda x, y: _native().add_sparse(x, y, case.members, "indices", "values"), cases.sparse
    )


OPS: Mapping[str, Callable[[GroupedKernels, Tensor, Tensor, Members], None]] = {
    "linear": lambda kernels, x, y, members: _set(y, kernels.linear(x, members, "head", "up.bias")),
    "low rank": lambda kernels, x, y, members: kernels.add_low_rank(x, y, members, "down", "up"),
    "bottleneck": lambda kernels, x, y, members: kernels.add_bottleneck(
        x, y, members, cases.FIELDS, Activation.SILU
    ),
    "vectors": lambda kernels, x, y, members: kernels.add_vectors(y, members, "up.bias"),
    "sparse": lambda kernels, x, y, members: kernels.add_sparse(x, y, members, "indices", "values"),
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES)


def _set(y: Tensor, values: Tensor) -> None:
    y.copy_(values)


@every_op
@every_dtype
def test_a_members_rows_do_not_depend_on_the_others(
    op: Callable[[GroupedKernels, Tensor, Tensor, Members], None], dtype: torch.dtype
) -> None:
    case = Case([5, 0, 64, 1, 17, 100], 1, 48, 24, 56, dtype)
    alone = case.y.clone()
    ends = [0, *case.members.ends.tolist()]
    for member, (start, end) in enumerate(pairwise(ends)):
        row = case.members.rows[member]
        single = Members.of([row], [end - start], case.members.layout, cases.CPU)
        op(_native(), case.x[start:end], alone[start:end], single)
    op(_native(), case.x, case.y, case.members)
    assert case.y.equal(alone)


@every_op
@every_dtype
def test_a_row_does_not_depend_on_its_members_other_rows(
    op: Callable[[GroupedKernels, Tensor, Tensor, Members], None], dtype: torch.dtype
) -> None:
    case = Case([75], 2, 48, 24, 56, dtype)
    alone = case.y.clone()
    single = Members.of(case.members.rows, [1], case.members.layout, cases.CPU)
    for row in range(75):
        op(_native(), case.x[row : row + 1], alone[row : row + 1], single)
    op(_native(), case.x, case.y, case.members)
    assert case.y.equal(alone)


@every_op
@every_dtype
def test_any_number_of_threads_finds_the_same(
    op: Callable[[GroupedKernels, Tensor, Tensor, Members], None], dtype: torch.dtype
) -> None:
    case = Case([5, 70, 1, 17, 100], 3, 48, 24, 56, dtype)
    many = case.y.clone()
    op(_native(), case.x, case.y, case.members)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        op(_native(), case.x, many, case.members)
    finally:
        torch.set_num_threads(before)
    assert case.y.equal(many)


@every_op
@every_dtype
def test_a_poisoned_member_spoils_only_its_own_rows(
    op: Callable[[GroupedKernels, Tensor, Tensor, Members], None], dtype: torch.dtype
) -> None:
    case = Case([5, 70, 3], 4, 48, 24, 56, dtype)
    clean, poisoned = case.y.clone(), case.y.clone()
    op(_native(), case.x, clean, case.members)
    row, layout = case.members.rows[1], case.members.layout
    for one in layout.fields.values():
        row.view(one).fill_(math.nan if one.dtype is not torch.int32 else -1)
    row.view(layout.fields["indices"])[0] = 0
    op(_native(), case.x, poisoned, case.members)
    assert poisoned[5:75].isnan().any()
    assert poisoned[:5].equal(clean[:5])
    assert poisoned[75:].equal(clean[75:])


@every_op
@every_dtype
def test_eager_and_native_agree(
    op: Callable[[GroupedKernels, Tensor, Tensor, Members], None], dtype: torch.dtype
) -> None:
    case = Case([9, 0, 70, 3], 5, 48, 24, 56, dtype)
    eager = case.y.clone()
    op(TorchGrouped(), case.x, eager, case.members)
    op(_native(), case.x, case.y, case.members)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(case.y, eager, rtol=tolerance, atol=tolerance)


def test_an_adapter_may_read_what_it_adds_to() -> None:
    case = Case([9, 70], 6, 48, 24, 48)
    expected, same = case.y.clone(), case.y.clone()
    kernels = _native()
    kernels.add_bottleneck(case.y, expected, case.members, cases.FIELDS, Activation.SILU)
    kernels.add_bottleneck(same, same, case.members, cases.FIELDS, Activation.SILU)
    assert same.equal(expected)


def test_float32_rows_by_bfloat16_weights() -> None:
    case = Case([2, 3], 0, dtype=torch.bfloat16)
    found = _native().linear(case.x.float(), case.members, "head", None)
    expected = TorchGrouped().linear(case.x.float(), case.members, "head", None)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 9999), rows=st.integers(1, 70))
def test_any_indices_stay_inside(seed: int, rows: int) -> None:
    """Entries are a tenant's data: whatever they say, only the member's own rows change."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(-(1 << 31), 1 << 31, (500,), generator=generator, dtype=torch.int64)
    small = torch.randint(0, 40, (500, 2), generator=generator)
    mixed = torch.where(
        torch.rand(500, generator=generator) < 0.5, indices, small[:, 0] << 16 | small[:, 1]
    )
    tensors = {"indices": mixed.to(torch.int32), "values": torch.randn(500, generator=generator)}
    layout = RowLayout.of(tensors)
    row = Row(torch.zeros(1, layout.row_bytes, dtype=torch.uint8), 0)
    layout.write(row, tensors)
    members = Members.of([row], [rows], layout, cases.CPU)
    x = torch.randn(rows, 24, generator=generator)
    native, eager = torch.zeros(2, rows, 32)
    _native().add_sparse(x, native, members, "indices", "values")
    TorchGrouped().add_sparse(x, eager, members, "indices", "values")
    torch.testing.assert_close(native, eager, rtol=1e-5, atol=1e-4)


def test_tensors_that_do_not_fit_are_refused() -> None:
    case = Case([2, 3], 0)
    kernels, members, x, y = _native(), case.members, case.x, case.y
    refused: Mapping[str, Callable[[], object]] = {
        "fewer rows": lambda: kernels.add_vectors(y[:4], members, "up.bias"),
        "more rows": lambda: kernels.add_vectors(torch.zeros(6, 40), members, "up.bias"),
        "narrow y": lambda: kernels.add_vectors(y[:, :39], members, "up.bias"),
        "narrow x": lambda: kernels.linear(x[:, :23], members, "head", None),
        "wide x": lambda: kernels.add_low_rank(torch.zeros(5, 25), y, members, "down", "up"),
        "wrong bias": lambda: kernels.linear(x, members, "head", "down.bias"),
        "swapped": lambda: kernels.add_low_rank(x, y, members, "up", "down"),
        "float64": lambda: kernels.linear(x.double(), members, "head", None),
        "two types": lambda: kernels.add_low_rank(x.bfloat16(), y, members, "down", "up"),
        "indices as values": lambda: kernels.add_sparse(x, y, members, "indices", "indices"),
        "values as indices": lambda: kernels.add_sparse(x, y, members, "values", "values"),
        "columns apart": lambda: kernels.add_vectors(
            torch.zeros(5, 80)[:, ::2], members, "up.bias"
        ),
        "rows on top": lambda: kernels.add_vectors(
            torch.zeros(1, 40).expand(5, 40), members, "up.bias"
        ),
        "three dimensions": lambda: kernels.linear(x[None], members, "head", None),
    }
    for what, call in refused.items():
        with pytest.raises((AssertionError, IndexError)):
            call()
            pytest.fail(what)


def test_no_byte_beyond_the_memory_is_touched() -> None:
    root = Path(__file__).resolve().parents[4]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.unit.model.kernels.guarded"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "inside\n"), ended.stderr


def test_torchs_own_products_are_as_before() -> None:
    """Tile registers are left as oneDNN, which uses them on the same threads, expects them."""
    x, weight = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    before = x @ weight
    case = Case([9, 70], 6, 64, 32, 64, torch.bfloat16)
    _native().add_bottleneck(case.x, case.y, case.members, cases.FIELDS, Activation.RELU)
    assert (x @ weight).equal(before)
