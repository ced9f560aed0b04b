"""From rows of n-grams to states at the boundary: stored small, gathered and merged where they lie.

As in SkipBERT (Wang et al., ACL 2022, section 3.2): a token is what its own row says of it, what
its neighbours' rows say of it, its position and segment, normed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from smile.model.kernels.dense import NormWeights
from smile.model.kernels.native_dense import norm_words, place_for
from smile.model.kernels.tape import Calls
from smile.model.ngram_rows import VIEWS, RowDtype, RowFormat, RowStores
from smile.model.packing import PackedTokens

_FORMATS = {RowDtype.FLOAT16: 0, RowDtype.INT8: 1}  # as ngram_rows.cpp numbers them


@dataclass(frozen=True, slots=True)
class MergeTables:
    """What a token's place adds, of the activations' type, and the norm, of float32.

    Attributes:
        position: [positions, H].
        segment: [H], of the only segment there is.
        position_offset: The row of a text's first position.
    """

    position: Tensor
    segment: Tensor
    norm: NormWeights
    position_offset: int


class MergeKernels(Protocol):
    """Tensors of numbers are float32 or bfloat16, sums float32."""

    def pack_rows(self, rows: Tensor, row_format: RowFormat) -> Tensor:
        """[n, 3 H] to [n, row_bytes] uint8, new, as `RowFormat.pack` does."""
        ...

    def merge(
        self,
        numbers: NDArray[np.int32],
        packed: PackedTokens,
        stores: RowStores,
        tables: MergeTables,
        out: Tensor | None = None,
    ) -> Tensor:
        """LayerNorm(centre(i) + left(i + 1) + right(i - 1) + position + segment): [tokens, H].

        Neighbours are those in the same text. Put together with others, the stores' rows are read
        only when all run: those of the last store may still have to be computed.

        Args:
            numbers: [tokens], the row of each token's n-gram; negative: it has none, which adds
                nothing.
            out: A place for the result: what is returned may be it or may be new.

        Raises:
            IndexError: a row's number or a position is outside its table.
        """
        ...


class TorchMerge:
    """The kernels in NumPy's and torch's operations. Stateless: threads may share it."""

    def pack_rows(self, rows: Tensor, row_format: RowFormat) -> Tensor:
        return torch.from_numpy(row_format.pack(rows.detach().float().cpu().numpy()))

    def merge(
        self,
        numbers: NDArray[np.int32],
        packed: PackedTokens,
        stores: RowStores,
        tables: MergeTables,
        out: Tensor | None = None,
    ) -> Tensor:
        _check(numbers, packed, stores, tables)
        like, width = tables.position, stores.format.width
        said = torch.from_numpy(stores.take(numbers)).to(like.device)
        left, centre, right = said.view(-1, VIEWS, width).unbind(1)
        total = centre.clone()
        last = packed.offsets[1:] - 1
        total[:-1] += left[1:].index_fill(0, last[:-1], 0.0)
        total[1:] += right[:-1].index_fill(0, last[:-1], 0.0)
        place = functional.embedding(packed.positions + tables.position_offset, like)
        total = total + (place.float() + tables.segment.float())
        norm = tables.norm
        weight, bias = norm.weight.float(), norm.bias.float()
        return functional.layer_norm(total, (width,), weight, bias, norm.epsilon).to(like.dtype)


class NativeMerge:
    """The kernels in C++ (ngram_rows.cpp), for inference on CPUs. As safe with threads as
    `calls`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._function = calls.entries.function

    def pack_rows(self, rows: Tensor, row_format: RowFormat) -> Tensor:
        address, stride, count, columns, dtype = self._calls.matrix(rows)
        assert columns == VIEWS * row_format.width, f"{columns} numbers for {row_format}"
        out = torch.empty((count, row_format.row_bytes), dtype=torch.uint8)
        words = (
            address,
            stride,
            out.data_ptr(),
            _FORMATS[row_format.dtype],
            row_format.row_bytes,
            count,
            row_format.width,
            self._calls.threads,
        )
        self._calls.add(self._function("ngrams_pack", dtype), words, rows, out)
        return out

    def merge(
        self,
        numbers: NDArray[np.int32],
        packed: PackedTokens,
        stores: RowStores,
        tables: MergeTables,
        out: Tensor | None = None,
    ) -> Tensor:
        _check(numbers, packed, stores, tables)
        position, segment = tables.position, tables.segment
        assert position.is_contiguous() and segment.is_contiguous() and position.is_cpu
        assert position.dtype is segment.dtype and packed.positions.is_contiguous()
        out = place_for(out, (packed.tokens, stores.format.width), position)
        address, stride, rows, width, dtype = self._calls.matrix(out)
        numbers = np.ascontiguousarray(numbers)
        words = (
            numbers.__array_interface__["data"][0],
            packed.positions.data_ptr(),
            tables.position_offset,
            position.data_ptr(),
            segment.data_ptr(),
            _FORMATS[stores.format.dtype],
            stores.format.row_bytes,
            len(stores.stores),
            stores.bounds.__array_interface__["data"][0],
            address,
            stride,
            *norm_words(tables.norm),
            rows,
            width,
            self._calls.threads,
        )
        self._calls.add(self._function("ngrams_merge", dtype), words, numbers, packed, stores)
        return out


def _check(
    numbers: NDArray[np.int32], packed: PackedTokens, stores: RowStores, tables: MergeTables
) -> None:
    """Raises IndexError for what lies outside its table."""
    width = stores.format.width
    assert numbers.dtype == np.int32 and numbers.shape == (packed.tokens,), numbers.shape
    assert tables.position.shape[1] == width and tables.segment.shape == (width,)
    most = int(numbers.max(initial=-1))
    if most >= stores.count:
        raise IndexError(f"row {most} of {stores.count}")
    longest = max(packed.lengths) + tables.position_offset
    if longest > tables.position.shape[0]:
        raise IndexError(f"{longest} positions of a table of {tables.position.shape[0]}")
