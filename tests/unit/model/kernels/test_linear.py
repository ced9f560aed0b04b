"""Dense products with packed weights, of every target this machine can run, against float64."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from smile.model.kernels import build
from smile.model.kernels.activation import Activation
from smile.model.kernels.build import Places
from smile.model.kernels.dense import ACTIVATIONS
from smile.model.kernels.linear import MULTIPLY, Linear, arguments, pack
from smile.model.kernels.matrices import matrix

TARGETS = build.supported(build.processor_features())
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 1e-2}  # one rounding, of the result
WIDTHS = st.sampled_from([1, 2, 5, 15, 16, 30, 31, 32, 33, 64, 65, 96, 100, 384])
PROPERTY = settings(deadline=None, max_examples=80)


@pytest.fixture(name="library", params=TARGETS, ids=lambda target: target.name, scope="module")
def _library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """Of these products alone, compiled for one target into the user's cache."""
    target: build.Target = request.param
    folder = tmp_path_factory.mktemp(target.name)
    for source in (*build.SOURCES.glob("*.h"), build.SOURCES / "linear.cpp"):
        shutil.copy(source, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "TARGETS", (target,))
        loaded = build.load(Places(prebuilt=Path(folder), sources=Path(folder)))
    if loaded.handle is None:
        pytest.skip(loaded.origin)
    return loaded.handle


@dataclass(frozen=True)
class Case:
    """A layer and rows that are columns of a wider matrix."""

    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype
    seed: int = 0

    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """x [rows, inputs], weight [outputs, inputs] and bias [outputs]."""
        made = torch.Generator().manual_seed(self.seed)
        wide = torch.randn(self.rows, self.inputs + 5, generator=made)
        weight = torch.randn(self.outputs, self.inputs, generator=made) / self.inputs**0.5
        bias = torch.randn(self.outputs, generator=made)
        return wide.to(self.dtype)[:, 3 : 3 + self.inputs], weight.to(self.dtype), bias


CASES = st.builds(
    Case,
    rows=st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 100, 257, 300])),
    inputs=WIDTHS,
    outputs=WIDTHS,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)


def _multiply(
    library: ctypes.CDLL,
    x: Tensor,
    linear: Linear,
    activation: Activation | None = None,
    threads: int = 1,
) -> Tensor:
    """Into columns of a wider matrix, beside which nothing may change."""
    wide = x.new_full((x.shape[0], linear.outputs + 9), 7.0)
    y = wide[:, 4 : 4 + linear.outputs]
    words = arguments(matrix(x), linear, matrix(y), activation, threads)
    library[MULTIPLY[x.dtype]]((ctypes.c_int64 * len(words))(*words))
    assert wide[:, :4].eq(7.0).all()
    assert wide[:, -5:].eq(7.0).all()
    return y


@PROPERTY
@given(case=CASES, activation=st.sampled_from([None, *Activation]))
def test_products(library: ctypes.CDLL, case: Case, activation: Activation | None) -> None:
    x, weight, bias = case.drawn()
    found = _multiply(library, x, pack(library, weight, bias), activation)
    expected = functional.linear(x.double(), weight.double(), bias.double())
    if activation is not None:
        expected = ACTIVATIONS[activation](expected)
    tolerance = TOLERANCES[case.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@PROPERTY
@given(case=CASES, data=st.data())
def test_a_row_depends_on_no_other(library: ctypes.CDLL, case: Case, data: st.DataObject) -> None:
    """Nor on how many there are, its place among them, or their alignment, to the bit."""
    x, weight, bias = case.drawn()
    linear = pack(library, weight, bias)
    together = _multiply(library, x, linear, Activation.GELU)
    first = data.draw(st.integers(0, case.rows))
    last = data.draw(st.integers(first, case.rows))
    assert _multiply(library, x[first:last], linear, Activation.GELU).equal(together[first:last])
    order = torch.randperm(case.rows, generator=torch.Generator().manual_seed(case.seed))
    assert _multiply(library, x[order], linear, Activation.GELU).equal(together[order])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 40, 700])
def test_any_number_of_threads_finds_the_same(
    library: ctypes.CDLL, rows: int, dtype: torch.dtype
) -> None:
    x, weight, bias = Case(rows, 384, 300, dtype).drawn()
    linear = pack(library, weight, bias)
    alone = _multiply(library, x, linear)
    assert all(_multiply(library, x, linear, None, threads).equal(alone) for threads in (2, 3, 7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [1024, 1536, 3072])
def test_long_rows_far_apart(library: ctypes.CDLL, inputs: int, dtype: torch.dtype) -> None:
    """Of one page each, or more: some targets copy them first."""
    _, weight, bias = Case(50, inputs, 70, dtype).drawn()
    x = torch.randn(50, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)
    linear = pack(library, weight, bias)
    found = _multiply(library, x, linear)
    expected = functional.linear(x.double(), weight.double(), bias.double())
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert _multiply(library, x[17:18], linear).equal(found[17:18])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_fault_stays_in_it(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    x, weight, bias = Case(45, 33, 40, dtype).drawn()
    linear = pack(library, weight, bias)
    clean = _multiply(library, x, linear)
    x[20] = float("nan")
    found = _multiply(library, x, linear)
    assert found[20].isnan().all()
    assert found[:20].equal(clean[:20])
    assert found[21:].equal(clean[21:])


def test_no_bias(library: ctypes.CDLL) -> None:
    x, weight, bias = Case(3, 8, 8, torch.float32).drawn()
    without = _multiply(library, x, pack(library, weight))
    torch.testing.assert_close(without + bias, _multiply(library, x, pack(library, weight, bias)))


def test_tensors_that_do_not_fit_are_refused(library: ctypes.CDLL) -> None:
    x, weight, bias = Case(3, 8, 6, torch.float32).drawn()
    linear = pack(library, weight, bias)
    y = torch.zeros(3, 6)
    refused = {
        "narrow x": (x[:, :7], y),
        "fewer rows": (x[:2], y),
        "narrow y": (x, y[:, :5]),
        "two types": (x.bfloat16(), y),
        "another type": (x.bfloat16(), y.bfloat16()),
        "columns apart": (x, torch.zeros(3, 12)[:, ::2]),
    }
    for what, (rows, results) in refused.items():
        with pytest.raises(AssertionError):
            arguments(matrix(rows), linear, matrix(results), None, 1)
            pytest.fail(what)
    with pytest.raises(AssertionError):
        pack(library, weight, bias[:5])
