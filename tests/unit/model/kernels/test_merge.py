"""Rows stored small, gathered from several stores and merged, natively as by the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from smile.errors import FailedPrecondition
from smile.model.kernels import EAGER, KernelChoice, Kernels, kernels_for
from smile.model.kernels.dense import NormWeights
from smile.model.kernels.merge import MergeTables, TorchMerge
from smile.model.ngram_rows import RowDtype, RowFormat, RowStore, RowStores
from smile.model.packing import PackedTokens, pack

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
LENGTHS = (5, 1, 29, 2, 90, 3)
TORCH = TorchMerge()
OFFSET = 2

formats = pytest.mark.parametrize("stored", list(RowDtype))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
widths = pytest.mark.parametrize("width", [384, 48, 7, 1])


@pytest.fixture(autouse=True)
def _inference_mode() -> object:
    with torch.inference_mode():
        yield


def _kernels(dtype: torch.dtype) -> Kernels:
    try:
        return kernels_for(CPU, dtype, KernelChoice.NATIVE)
    except FailedPrecondition as error:
        pytest.skip(error.message)


def _tables(width: int, dtype: torch.dtype) -> MergeTables:
    norm = NormWeights(torch.rand(width) + 0.5, torch.randn(width), 1e-12)
    position = torch.randn(max(LENGTHS) + OFFSET, width).to(dtype)
    return MergeTables(position, torch.randn(width).to(dtype), norm, OFFSET)


def _stores(row_format: RowFormat, *counts: int) -> RowStores:
    chance = np.random.default_rng(1)
    rows = [chance.normal(size=(n, 3 * row_format.width)).astype(np.float32) for n in counts]
    return RowStores(row_format, [RowStore(row_format.pack(some)) for some in rows])


def _numbers(packed: PackedTokens, count: int) -> NDArray[np.int32]:
    """Rows of all stores, and now and then none."""
    return np.random.default_rng(2).integers(-1, count, packed.tokens).astype(np.int32)


def _close(found: torch.Tensor, truth: torch.Tensor) -> None:
    share = 1e-5 if found.dtype == torch.float32 else 2.0**-8
    assert found.shape == truth.shape
    bound = share * (1.0 + truth.float().abs())
    assert ((found.float() - truth.float()).abs() <= bound).all()


@formats
@widths
def test_torch_merges_by_the_definition(width: int, stored: RowDtype) -> None:
    torch.manual_seed(0)
    stores, tables = _stores(RowFormat(stored, width), 20), _tables(width, torch.float32)
    packed = pack([[0] * length for length in LENGTHS])
    numbers = _numbers(packed, stores.count)
    found = TORCH.merge(numbers, packed, stores, tables)
    views = torch.from_numpy(stores.take(numbers)).view(-1, 3, width)
    token = 0
    for length in LENGTHS:
        for place in range(length):
            said = views[token, 1].clone()
            if place + 1 < length:
                said += views[token + 1, 0]
            if place > 0:
                said += views[token - 1, 2]
            said += tables.position[place + OFFSET] + tables.segment
            centred = said - said.mean()
            normed = centred / (centred.square().mean() + 1e-12).sqrt()
            truth = normed * tables.norm.weight + tables.norm.bias
            torch.testing.assert_close(found[token], truth, rtol=1e-4, atol=1e-4)
            token += 1


@formats
@widths
@dtypes
def test_native_merges_as_torch(width: int, stored: RowDtype, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    stores = _stores(RowFormat(stored, width), 20, 1, 30)
    tables = _tables(width, dtype)
    packed = pack([[0] * length for length in LENGTHS])
    numbers = _numbers(packed, stores.count)
    found = _kernels(dtype).merge.merge(numbers, packed, stores, tables)
    if width == 1:  # a norm of one number is its bias
        _close(found, tables.norm.bias.to(dtype).expand(packed.tokens, 1))
        return
    truth = TORCH.merge(numbers, packed, stores, _in_float32(tables))
    _close(found, truth)


def _in_float32(tables: MergeTables) -> MergeTables:
    return MergeTables(
        tables.position.float(), tables.segment.float(), tables.norm, tables.position_offset
    )


@formats
@dtypes
def test_a_text_does_not_depend_on_its_neighbours(stored: RowDtype, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    stores, tables = _stores(RowFormat(stored, 48), 100), _tables(48, dtype)
    packed = pack([[0] * length for length in LENGTHS])
    numbers = _numbers(packed, stores.count)
    kernels = _kernels(dtype)
    together = kernels.merge.merge(numbers, packed, stores, tables)
    for text, length in enumerate(LENGTHS):
        start = int(packed.offsets[text])
        alone = kernels.merge.merge(
            numbers[start : start + length], pack([[0] * length]), stores, tables
        )
        assert torch.equal(alone, together[start : start + length])


@formats
@widths
@dtypes
def test_native_packs_as_numpy(width: int, stored: RowDtype, dtype: torch.dtype) -> None:
    """To the bit: so a row that is computed is the row that is looked up."""
    torch.manual_seed(3)
    row_format = RowFormat(stored, width)
    rows = torch.randn(50, 3 * width) * torch.logspace(-9, 6, 50)[:, None]
    rows[3] = 0.0
    rows[4] = 1e-32
    rows[5, : 3 * width // 2] = -0.0
    wide = torch.zeros(50, 3 * width + 5)
    wide[:, 3:-2] = rows
    given = wide.to(dtype)[:, 3:-2]
    packed = _kernels(dtype).merge.pack_rows(given, row_format)
    assert torch.equal(packed, EAGER.merge.pack_rows(given, row_format))
    assert packed.shape == (50, row_format.row_bytes)


@formats
def test_unpacked_is_near_what_was_packed(stored: RowDtype) -> None:
    row_format = RowFormat(stored, 384)
    rows = np.random.default_rng(3).normal(size=(10, 3 * 384)).astype(np.float32)
    off = np.abs(row_format.unpack(row_format.pack(rows)) - rows)
    share = 2.0**-11 if stored is RowDtype.FLOAT16 else 0.5 / 127
    most = np.abs(rows).reshape(10, 3, 384).max(axis=2).repeat(384, axis=1)
    size = np.abs(rows) if stored is RowDtype.FLOAT16 else most
    assert (off <= share * size * 1.001 + 1e-7).all()


@formats
@dtypes
def test_fresh_rows_together(stored: RowDtype, dtype: torch.dtype) -> None:
    """Rows computed, packed and gathered in one native call are those that were looked up."""
    torch.manual_seed(4)
    kernels, row_format = _kernels(dtype), RowFormat(stored, 48)
    weight, bias = torch.randn(144, 48).to(dtype), torch.randn(144).to(dtype)
    linear = kernels.dense.pack(weight, bias)
    inputs, tables = torch.randn(30, 48).to(dtype), _tables(48, dtype)
    packed = pack([[0] * 40])
    numbers = np.arange(40, dtype=np.int32) % 35
    looked_up = _stores(row_format, 5)
    made = kernels.merge.pack_rows(kernels.dense.linear(inputs, linear), row_format)
    truth = kernels.merge.merge(numbers, packed, looked_up.plus(RowStore(made.numpy())), tables)
    with kernels.together() as calls:
        rows = calls.merge.pack_rows(calls.dense.linear(inputs, linear), row_format)
        stores = looked_up.plus(RowStore(rows.numpy()))
        found = calls.merge.merge(numbers, packed, stores, tables)
        del rows, stores
    assert torch.equal(found, truth)


@pytest.mark.parametrize("native", [False, True])
def test_numbers_and_positions_outside(native: bool) -> None:
    kernels = _kernels(torch.float32) if native else EAGER
    stores, tables = _stores(RowFormat(RowDtype.INT8, 8), 4), _tables(8, torch.float32)
    with pytest.raises(IndexError, match="row 4 of 4"):
        kernels.merge.merge(np.array([0, 4], np.int32), pack([[1, 2]]), stores, tables)
    long = max(LENGTHS) + 1
    with pytest.raises(IndexError, match=f"{long + OFFSET} positions"):
        kernels.merge.merge(np.zeros(long, np.int32), pack([[1] * long]), stores, tables)


def test_stores_of_another_format() -> None:
    rows = RowStore(RowFormat(RowDtype.INT8, 8).pack(np.zeros((1, 24), np.float32)))
    with pytest.raises(ValueError, match="36 bytes, not 48"):
        RowStores(RowFormat(RowDtype.FLOAT16, 8), [rows])
