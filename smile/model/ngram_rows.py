"""Rows of n-grams as tables store them, and where several tables' rows lie. No torch.

A row is three views side by side, what an n-gram says of its left, centre and right token. A view
is `width` numbers in float16, or a float32 scale and as many numbers in int8, filled up to 4 bytes.
So a token is merged from three runs of memory, each read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smile.model.row_dtype import RowDtype as RowDtype  # noqa: PLC0414 -- of both modules

VIEWS = 3
SCALE_BYTES = 4
FLOAT16_MOST = 65504.0  # larger numbers are stored as this
INT8_MOST = 127.0
SCALED_MIN = 1e-30  # a view without a larger number is stored as zeros


@dataclass(frozen=True, slots=True)
class RowFormat:
    """What decides a row's bytes.

    Attributes:
        width: Numbers of a view: the backbone's hidden width.
    """

    dtype: RowDtype
    width: int

    @property
    def view_bytes(self) -> int:
        if self.dtype is RowDtype.FLOAT16:
            return 2 * self.width
        return SCALE_BYTES + -(-self.width // 4) * 4

    @property
    def row_bytes(self) -> int:
        return VIEWS * self.view_bytes

    def pack(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """[n, 3 width] to [n, row_bytes]. The definition that kernels are tested against."""
        views = rows.astype(np.float32, copy=False).reshape(-1, VIEWS, self.width)
        if self.dtype is RowDtype.FLOAT16:
            halves = np.clip(views, -FLOAT16_MOST, FLOAT16_MOST).astype(np.float16)
            return halves.view(np.uint8).reshape(len(views), self.row_bytes)
        most = np.abs(views).max(axis=2, keepdims=True, initial=0.0)
        some = most > SCALED_MIN
        by = np.divide(np.float32(INT8_MOST), most, out=np.zeros_like(most), where=some)
        out = np.zeros((len(views), VIEWS, self.view_bytes), np.uint8)
        scales = np.where(some, most / np.float32(INT8_MOST), np.float32(0.0))
        out[:, :, :SCALE_BYTES] = scales.astype(np.float32).view(np.uint8)
        numbers = out[:, :, SCALE_BYTES : SCALE_BYTES + self.width].view(np.int8)
        numbers[...] = np.rint(views * by).astype(np.int8)
        return out.reshape(len(views), self.row_bytes)

    def unpack(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[n, row_bytes] to [n, 3 width]: exactly the numbers that a merge adds up."""
        flat = np.ascontiguousarray(rows)
        if self.dtype is RowDtype.FLOAT16:
            return flat.view(np.float16).astype(np.float32)
        views = flat.reshape(-1, VIEWS, self.view_bytes)
        scales = np.ascontiguousarray(views[:, :, :SCALE_BYTES]).view(np.float32)
        numbers = views[:, :, SCALE_BYTES : SCALE_BYTES + self.width].view(np.int8)
        out: NDArray[np.float32] = numbers.astype(np.float32) * scales
        return out.reshape(len(views), VIEWS * self.width)


class RowStore:
    """Rows side by side in memory, or in a file that is mapped; kept as long as the store is.

    Args:
        rows: [rows, row_bytes] uint8, elements side by side.
    """

    __slots__ = ("__weakref__", "address", "count", "row_bytes", "rows")

    def __init__(self, rows: NDArray[np.uint8]) -> None:
        assert rows.dtype == np.uint8 and rows.ndim == 2 and rows.flags.c_contiguous, rows.shape
        self.rows = rows
        self.count, self.row_bytes = rows.shape
        self.address = int(rows.__array_interface__["data"][0])


class RowStores:
    """Several stores of one format; rows are numbered on from one store to the next.

    Raises:
        ValueError: a store's rows are not of the format.
    """

    __slots__ = ("bounds", "count", "firsts", "format", "stores")

    def __init__(self, row_format: RowFormat, stores: Sequence[RowStore]) -> None:
        for store in stores:
            if store.row_bytes != row_format.row_bytes:
                raise ValueError(f"rows of {store.row_bytes} bytes, not {row_format.row_bytes}")
        self.format = row_format
        self.stores = tuple(stores)
        self.firsts = [0]
        for store in stores:
            self.firsts.append(self.firsts[-1] + store.count)
        self.count = self.firsts.pop()
        addresses = [store.address for store in stores]
        # [stores, 2]: the number of its first row, its address
        self.bounds = np.array([self.firsts, addresses], np.int64).T.copy()

    def plus(self, store: RowStore) -> RowStores:
        """The same and one more, whose rows are numbered from `count` on."""
        return RowStores(self.format, (*self.stores, store))

    def take(self, numbers: NDArray[np.int32]) -> NDArray[np.float32]:
        """[n] to [n, 3 width]; negative numbers have no row, and get zeros."""
        out = np.zeros((len(numbers), VIEWS * self.format.width), np.float32)
        for first, store in zip(self.firsts, self.stores, strict=True):
            here = (numbers >= first) & (numbers < first + store.count)
            out[here] = self.format.unpack(store.rows[numbers[here] - first])
        return out
