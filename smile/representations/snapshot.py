"""A table on disk: mapped, not read, so it is open at once and processes share its pages."""

from __future__ import annotations

from collections.abc import Sequence
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
from smile.representations.manifest import Origin, TableManifest

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
        """Maps a snapshot's files. Keys and index are checked in full, rows for their size.

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
        names.check_size(folder, names.ROWS_FILE, stated.files[names.ROWS_FILE])
        for name in checked:
            names.check_digest(folder, name, stated.files[name])
        return cls(
            folder=folder,
            manifest=stated,
            format=row_format,
            keys=_mapped(folder, names.KEYS_FILE, np.int64, (stated.rows,)),
            counts=_mapped(folder, names.COUNTS_FILE, np.int64, (stated.rows,)),
            index=NgramIndex(_mapped(folder, names.INDEX_FILE, np.int64, (-1, BUCKET_WORDS))),
            store=RowStore(
                _mapped(folder, names.ROWS_FILE, np.uint8, (stated.rows, row_format.row_bytes))
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


def _format(stated: TableManifest) -> RowFormat:
    try:
        return RowFormat(RowDtype(stated.dtype), stated.origin.width)
    except ValueError as error:
        raise DataCorrupted(f"no table's manifest: {error}") from error


def _mapped(
    folder: Path, name: str, dtype: type[_Scalar], shape: Sequence[int]
) -> NDArray[_Scalar]:
    """A file's numbers, read only."""
    path = folder / name
    try:
        flat = np.memmap(path, dtype, "r")
        return np.asarray(flat).reshape(tuple(shape))
    except ValueError as error:
        raise DataCorrupted(f"{path} does not hold what its manifest says: {error}") from error
