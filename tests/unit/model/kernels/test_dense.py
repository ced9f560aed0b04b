from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from smile.errors import FailedPrecondition
from smile.model.kernels import EAGER, KernelChoice, kernels_for
from smile.model.kernels.activation import Activation
from smile.model.kernels.dense import (
    DenseKernels,
    EmbeddingTables,
    NormWeights,
    Spans,
    TorchDense,
)
from smile.model.kernels.native_dense import NativeDense
from smile.model.packing import PackedTokens, pack

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
BFLOAT_ROUNDING = 2.0**-8
LENGTHS = (5, 29, 1, 90, 16, 17, 300, 32, 33, 2, 8, 9)
SHAPES = ((12, 32), (3, 8), (2, 24), (5, 20), (1, 64), (2, 128), (3, 7), (4, 96), (2, 16), (1, 40))
TORCH = TorchDense()

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(name="inference_mode")
def _inference_mode() -> object:
    with torch.inference_mode():
        yield


@functools.cache
def _native() -> NativeDense | str:
    try:
        dense = kernels_for(CPU, torch.float32, KernelChoice.NATIVE).dense
    except FailedPrecondition as error:
        return error.message
    assert isinstance(dense, NativeDense)
    return dense


@pytest.fixture
def native() -> NativeDense:
    found = _native()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(params=["native", "torch"])
def dense(request: pytest.FixtureRequest) -> DenseKernels:
    kernels: DenseKernels = (
        request.getfixturevalue("native") if request.param == "native" else TORCH
    )
    return kernels


def _packed(lengths: Sequence[int], vocab: int = 1) -> PackedTokens:
    return pack([torch.randint(vocab, (length,)).tolist() for length in lengths])


def _random(rows: int, columns: int, dtype: torch.dtype, spread: float = 1.5) -> Tensor:
    """Columns of a wider matrix: rows have a stride and start at any address."""
    return (torch.randn(rows, columns + 5) * spread).to(dtype)[:, 3 : 3 + columns]


def _norm(width: int) -> NormWeights:
    return NormWeights(torch.rand(width) + 0.5, torch.randn(width), 1e-12)


def _close(found: Tensor, truth: Tensor, inner: float = 0.5) -> None:
    """To 5e-6 in float32; in bfloat16 to one rounding of the result and one of numbers of `inner`
    size inside."""
    assert found.shape == truth.shape
    bound = 5e-6 * (1 + truth.abs())
    if found.dtype == torch.bfloat16:
        bound = BFLOAT_ROUNDING * (inner + truth.abs())
    worst = ((found.float() - truth).abs() / bound).max().item()
    assert worst <= 1, f"{worst} times the bound"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "dims"), SHAPES)
def test_attend(native: NativeDense, heads: int, dims: int, dtype: torch.dtype) -> None:
    torch.manual_seed(heads * dims)
    packed = _packed(LENGTHS)
    qkv = _random(packed.tokens, 3 * heads * dims, dtype)
    _close(native.attend(qkv, packed, heads), TORCH.attend(qkv.float(), packed, heads), 1.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attend_to_every_length(native: NativeDense, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    for length in (*range(1, 70), 127, 512):
        packed = _packed([length])
        qkv = _random(length, 3 * 2 * 32, dtype)
        _close(native.attend(qkv, packed, 2), TORCH.attend(qkv.float(), packed, 2), 1.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attend_sharply(native: NativeDense, dtype: torch.dtype) -> None:
    """Scores of hundreds: one key takes all, and nothing overflows."""
    torch.manual_seed(2)
    packed = _packed([40, 3])
    qkv = _random(packed.tokens, 3 * 64, dtype, spread=30.0)
    found, truth = native.attend(qkv, packed, 2), TORCH.attend(qkv.float(), packed, 2)
    share = 2e-4 if dtype == torch.float32 else 0.01
    assert torch.isfinite(found).all()
    assert (found.float() - truth).abs().max() <= share * truth.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 15, 16, 17, 24, 384, 385, 768, 1030])
def test_add_norm(native: NativeDense, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    y, residual, norm = _random(37, width, dtype), _random(37, width, dtype), _norm(width)
    _close(native.add_norm(y, residual, norm), TORCH.add_norm(y.float(), residual.float(), norm))


def test_add_norm_of_a_large_mean(native: NativeDense) -> None:
    torch.manual_seed(3)
    y, residual, norm = _random(5, 384, torch.float32) + 1000, torch.zeros(5, 384), _norm(384)
    truth = TORCH.add_norm(y.double(), residual.double(), norm).float()
    assert (native.add_norm(y, residual, norm) - truth).abs().max() < 2e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", list(Activation))
def test_activate(native: NativeDense, activation: Activation, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    for width in (1, 16, 23, 1536):
        y = _random(11, width, dtype, spread=4.0)
        truth = TORCH.activate_(y.float(), activation)
        assert native.activate_(y, activation) is y
        _close(y, truth)


@pytest.mark.parametrize("activation", list(Activation))
def test_activate_over_the_whole_line(native: NativeDense, activation: Activation) -> None:
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    truth = TORCH.activate_(x.clone(), activation)
    found = native.activate_(x.float()[None], activation)[0]
    inside = x.abs() < 6
    assert (found - truth)[inside].abs().max() < 2e-6
    assert ((found - truth).abs() / (1 + x.abs())).max() < 1e-6
    rough = native.activate_(x.bfloat16()[None], activation)[0].double()
    exact = TORCH.activate_(x.bfloat16().double(), activation)
    assert (rough - exact).abs().max() <= 30 * BFLOAT_ROUNDING
    low = x < -1
    assert ((rough - exact).abs() <= 1e-3 + BFLOAT_ROUNDING / 2 * exact.abs())[low].all()


def test_activate_only_its_columns(native: NativeDense) -> None:
    whole = torch.randn(6, 40)
    before = whole.clone()
    native.activate_(whole[:, 8:27], Activation.RELU)
    assert torch.equal(whole[:, :8], before[:, :8])
    assert torch.equal(whole[:, 27:], before[:, 27:])
    assert torch.equal(whole[:, 8:27], before[:, 8:27].relu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [3, 24, 384])
def test_embed(native: NativeDense, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    packed = _packed(LENGTHS, vocab=50)
    word, position, segment = (torch.randn(rows, width).to(dtype) for rows in (50, 302, 2))
    tables = EmbeddingTables(word, position, segment, _norm(width), position_offset=2)
    truth = TORCH.embed(packed, tables.to(CPU, torch.float32))
    _close(native.embed(packed, tables), truth)


def test_embed_refuses_rows_outside_its_tables(native: NativeDense) -> None:
    word, position, segment = torch.randn(4, 8), torch.randn(6, 8), torch.randn(2, 8)
    tables = EmbeddingTables(word, position, segment, _norm(8), position_offset=2)
    for texts in ([[4]], [[-1]], [[0, 1, 2, 3, 0]]):
        with pytest.raises(IndexError):
            native.embed(pack(texts), tables)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [3, 24, 384])
def test_pool(native: NativeDense, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    states = _random(40, width, dtype)
    bounds = [(3, 20), (39, 40), (0, 1), (3, 4), (10, 40)]
    truth = torch.stack([states[first:last].float().mean(0) for first, last in bounds])
    spans = Spans.of(bounds, CPU)
    for found in (native.pool(states, spans), TORCH.pool(states, spans)):
        assert found.dtype == torch.float32
        _close(found, truth)


def test_pool_single_rows_as_they_are(dense: DenseKernels) -> None:
    states = _random(9, 24, torch.bfloat16)
    found = dense.pool(states, Spans.of([(4, 5), (0, 1)], CPU))
    assert torch.equal(found, states[[4, 0]].float())


def test_pool_refuses_rows_that_are_not_there(native: NativeDense) -> None:
    with pytest.raises(AssertionError, match="10 of 9 rows"):
        native.pool(torch.zeros(9, 4), Spans.of([(8, 10)], CPU))


def test_unit(dense: DenseKernels) -> None:
    x = torch.randn(5, 23)
    x[1] = 0
    x[2, 3] = math.nan
    expected = functional.normalize(x, dim=1)
    assert dense.unit_(x) is x
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select_and_join(dense: DenseKernels, dtype: torch.dtype) -> None:
    x = _random(9, 21, dtype)
    rows = torch.tensor([8, 0, 3, 3])
    assert torch.equal(dense.select(x, rows), x[rows])
    assert torch.equal(dense.join([x[7:], x[:2]]), torch.cat([x[7:], x[:2]]))
    with pytest.raises((IndexError, RuntimeError)):
        dense.select(x, torch.tensor([9]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_text_does_not_feel_its_neighbours(
    native: NativeDense, threads: int, dtype: torch.dtype
) -> None:
    """Bit for bit, alone or packed, whichever thread computes it, poisoned neighbours or not."""
    torch.manual_seed(7)
    packed, norm, heads, width = _packed(LENGTHS), _norm(64), 2, 64
    qkv = _random(packed.tokens, 3 * width, dtype)
    bounds = list(zip(packed.offsets.tolist(), packed.offsets.tolist()[1:], strict=False))
    alone = [_text(native, qkv[start:end], norm, heads) for start, end in bounds]
    poisoned = {3, 7}
    for text in poisoned:
        start, end = bounds[text]
        qkv[start:end] = math.nan
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = _steps(native, qkv, packed, norm, heads)
    finally:
        torch.set_num_threads(before)
    for text, (start, end) in enumerate(bounds):
        for ours, theirs in zip(together[:-1], alone[text], strict=False):
            if text in poisoned:
                assert torch.isnan(ours[start:end]).all()
            else:
                assert torch.equal(ours[start:end], theirs)
        assert torch.equal(together[-1][text], alone[text][-1][0]) or text in poisoned


def _text(native: NativeDense, qkv: Tensor, norm: NormWeights, heads: int) -> tuple[Tensor, ...]:
    return _steps(native, qkv, _packed([len(qkv)]), norm, heads)


def _texts(packed: PackedTokens) -> Spans:
    ends = packed.offsets.tolist()
    return Spans.of(list(pairwise(ends)), CPU)


def _steps(
    native: NativeDense, qkv: Tensor, packed: PackedTokens, norm: NormWeights, heads: int
) -> tuple[Tensor, ...]:
    mixed = native.attend(qkv, packed, heads)
    normed = native.add_norm(mixed, qkv[:, : mixed.shape[1]], norm)
    activated = native.activate_(normed.clone(), Activation.GELU)
    return mixed, normed, activated, native.pool(activated, _texts(packed))


def test_one_nan_stays_in_its_text(dense: DenseKernels) -> None:
    packed = _packed([20, 20, 20])
    qkv = torch.randn(60, 3 * 32)
    clean = dense.attend(qkv, packed, 1)
    qkv[25, 40] = math.nan  # one key of the middle text
    found = dense.attend(qkv, packed, 1)
    assert torch.equal(found[:20], clean[:20])
    assert torch.equal(found[40:], clean[40:])
    assert torch.isnan(found[20:40]).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_products_in_between(native: NativeDense, threads: int) -> None:
    """Both use matrix tiles, whose shapes are a state of the thread."""
    torch.manual_seed(8)
    packed = _packed([40, 9, 130])
    x, weight = torch.randn(179, 64).bfloat16(), torch.randn(192, 64).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        product = functional.linear(x, weight)
        mixed = native.attend(product, packed, 2)
        for _ in range(5):
            assert torch.equal(functional.linear(x, weight), product)
            assert torch.equal(native.attend(product, packed, 2), mixed)
            assert torch.equal(functional.linear(x[:7], weight), product[:7])
    finally:
        torch.set_num_threads(before)


def test_gradients_flow_through_torch_kernels() -> None:
    with torch.inference_mode(False):
        packed = pack([[0] * 5, [0] * 3])
        qkv = torch.randn(8, 24, requires_grad=True)
        TORCH.pool(TORCH.attend(qkv, packed, 2), _texts(packed)).sum().backward()
        assert qkv.grad is not None and qkv.grad.abs().sum() > 0


def test_choice() -> None:
    assert kernels_for(CPU, torch.float32, KernelChoice.EAGER) is EAGER
    assert kernels_for(torch.device("meta"), torch.float32) is EAGER
    assert kernels_for(CPU, torch.float64) is EAGER
    with pytest.raises(FailedPrecondition, match=r"float64"):
        kernels_for(CPU, torch.float64, KernelChoice.NATIVE)
    with pytest.raises(FailedPrecondition, match="meta"):
        kernels_for(torch.device("meta"), torch.float32, KernelChoice.NATIVE)
