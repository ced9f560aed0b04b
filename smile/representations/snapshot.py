"""A table on disk: mapped, not read, so it is open at once and processes share its pages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from smile.errors import DataCorrupted
from smile.model.kernels.ngrams import BUCKET_WORDS
from smile.model.ngram_rows import RowDtype, RowFormat, RowStore, RowStores
from smile.representations import manifest as names
from smile.representations.index import NgramIndex
from smile.representations.manifest import FileFacts, Origin, TableManifest

ROWS_BATCH = 8_192  # put into another format at a time

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Table:
    """An immutable table. Threads may share it; its memory is the files'.

    Attributes:
        keys: [rows], by row, the most frequent first.
        counts: [rows], how often each came up in the corpus.
        digest: Its identity: SHA-256 of the manifest.
    """

    folder: Path
    manifest: TableManifest
    format: RowFormat
    keys: NDArray[np.int64]
    counts: NDArray[np.int64]
    index: NgramIndex
    store: RowStore
    digest: str

    @classmethod
    def open(cls, folder: Path, origin: Origin | None = None, *, verify: bool = False) -> Table:
        """Maps a snapshot's files. Keys and index are checked in full, rows for their size. What
        was checked is what was mapped, whatever takes the folder's place meanwhile.

        Args:
            origin: Whose rows are wanted; None: any.
            verify: Read and check the rows as well, which takes as long as reading them does.

        Raises:
            FailedPrecondition: there is none, or its rows are of another origin.
            DataCorrupted: a file is missing, cut off or not what was written.
        """
        stated = names.read(folder)
        if origin is not None:
            stated.origin.check(origin)
        row_format = _format(stated)
        checked = names.FILES if verify else (names.KEYS_FILE, names.COUNTS_FILE, names.INDEX_FILE)
        mapped = {
            name: _mapped(folder / name, stated.files[name], verify=name in checked)
            for name in names.FILES
        }
        return cls(
            folder=folder,
            manifest=stated,
            format=row_format,
            keys=_numbers(mapped, names.KEYS_FILE, np.int64, (stated.rows,)),
            counts=_numbers(mapped, names.COUNTS_FILE, np.int64, (stated.rows,)),
            index=NgramIndex(_numbers(mapped, names.INDEX_FILE, np.int64, (-1, BUCKET_WORDS))),
            store=RowStore(
                _numbers(mapped, names.ROWS_FILE, np.uint8, (stated.rows, row_format.row_bytes))
            ),
            digest=stated.digest,
        )

    @property
    def stores(self) -> RowStores:
        """Its rows alone."""
        return RowStores(self.format, (self.store,))

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """The row of each key [n]; -1 where there is none."""
        return self.index.find(keys)

    def stored_as(self, row_format: RowFormat) -> RowStore:
        """Its rows in a format: as they are mapped, or in memory where that is another."""
        if row_format == self.format:
            return self.store
        rows = np.empty((self.store.count, row_format.row_bytes), np.uint8)
        for start in range(0, len(rows), ROWS_BATCH):
            part = slice(start, start + ROWS_BATCH)
            rows[part] = row_format.pack(self.format.unpack(self.store.rows[part]))
        return RowStore(rows)


def _format(stated: TableManifest) -> RowFormat:
    try:
        return RowFormat(RowDtype(stated.dtype), stated.origin.width)
    except ValueError as error:
        raise DataCorrupted(f"no table's manifest: {error}") from error


def _mapped(path: Path, facts: FileFacts, *, verify: bool) -> NDArray[np.uint8]:
    """A file's bytes, read only. Raises `DataCorrupted`."""
    names.check_size(path.parent, path.name, facts)
    try:
        mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    except (ValueError, OSError) as error:
        raise DataCorrupted(f"{path} cannot be mapped: {error}") from error
    found = hashlib.sha256(mapped.data).hexdigest() if verify else facts.sha256
    if (mapped.nbytes, found) != (facts.bytes, facts.sha256):
        raise DataCorrupted(f"{path} must have SHA-256 {facts.sha256}, got {found}")
    return mapped


def _numbers(
    mapped: Mapping[str, NDArray[np.uint8]], name: str, dtype: type[_Scalar], shape: Sequence[int]
) -> NDArray[_Scalar]:
    """A file's numbers. Raises `DataCorrupted`."""
    try:
        return mapped[name].view(dtype).reshape(tuple(shape))
    except ValueError as error:
        raise DataCorrupted(f"{name} does not hold what its manifest says: {error}") from error
