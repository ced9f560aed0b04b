"""From texts to a table's snapshot: count, choose the most frequent n-grams, compute, write.

A snapshot appears complete or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from smile.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from smile.model.kernels.ngrams import BUCKET_WORDS, PLACES
from smile.model.ngram_rows import RowFormat
from smile.representations import manifest as names
from smile.representations.counting import CorpusCounter, NgramCounts
from smile.representations.index import LOAD, WORD_BYTES, NgramIndex
from smile.representations.keys import bigrams_of, unigrams
from smile.representations.manifest import (
    GENERAL,
    CorpusFacts,
    DeltaFacts,
    FileFacts,
    TableManifest,
)
from smile.representations.rows import RowEncoder

TEXTS_BATCH = 1_000
ROWS_BATCH = 8_192
INDEX_BYTES = BUCKET_WORDS * WORD_BYTES / (PLACES * LOAD)  # an entry's
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Kinds(enum.StrEnum):
    """Of which n-grams a table has rows.

    TRIGRAMS is enough where a missing row is computed. Where the next shorter one stands for it,
    FALLBACK has the unigrams of the whole vocabulary besides, and the most frequent bigrams.
    """

    TRIGRAMS = "trigrams"
    FALLBACK = "fallback"


class Step(enum.StrEnum):
    """What takes long."""

    COUNT = "count"
    COMPARE = "compare"
    ROWS = "rows"


class Ids(Protocol):
    """Token ids of texts, special tokens included; long ones are cut."""

    def __call__(self, texts: Sequence[str], /) -> Sequence[Sequence[int]]: ...


OnProgress = Callable[[Step, int, int], None]  # done, of how many; 0: nobody knows


def ignore_progress(step: Step, done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class TableWish:
    """What table is wanted.

    Attributes:
        budget_bytes: Of all its files, about.
        vocab: Token ids are below it; each has a row where kinds are FALLBACK.
        domain, parent, parent_encoder, delta: See `TableManifest`.
    """

    format: RowFormat
    budget_bytes: int
    vocab: int
    kinds: Kinds = Kinds.TRIGRAMS
    domain: str = GENERAL
    parent: str = ""
    parent_encoder: str = ""
    delta: DeltaFacts | None = None

    @property
    def entry_bytes(self) -> float:
        """What one n-gram takes: its row, its key and count, its share of the index."""
        return self.format.row_bytes + 2 * WORD_BYTES + INDEX_BYTES

    @property
    def rows_max(self) -> int:
        """How many n-grams the budget has room for."""
        return min(int(self.budget_bytes / self.entry_bytes), names.ROWS_MAX)


def count_texts(
    texts: Iterable[str],
    ids: Ids,
    outside: int,
    on_progress: OnProgress = ignore_progress,
) -> tuple[CorpusCounter, NgramCounts]:
    """Counts the n-grams of a corpus.

    Raises:
        InvalidArgument: it has no text.
    """
    counter, done = CorpusCounter(outside), 0
    for some in _batches(texts):
        counter.add(some, ids(some))
        done += len(some)
        on_progress(Step.COUNT, done, 0)
    if done == 0:
        raise InvalidArgument("a corpus must have at least 1 text, got 0")
    return counter, counter.counts()


def choose(counts: NgramCounts, wish: TableWish) -> NgramCounts:
    """The n-grams that a table gets: as many of the most frequent as the budget has room for.

    Raises:
        InvalidArgument: the budget has no room for one row, or for those of the vocabulary.
    """
    least = wish.vocab if wish.kinds is Kinds.FALLBACK else 1
    if wish.rows_max < least:
        needed = int(-(-least * wish.entry_bytes // 1))
        what = f"the {least} unigrams of the vocabulary" if least > 1 else "one row"
        raise InvalidArgument(
            f"budget must be at least {needed} bytes, {what}, got {wish.budget_bytes}",
            metadata={"limit": str(needed), "value": str(wish.budget_bytes)},
        )
    if wish.kinds is Kinds.TRIGRAMS:
        return counts.first(wish.rows_max)
    bigrams, back = np.unique(bigrams_of(counts.keys), return_inverse=True)
    sums = np.zeros(len(bigrams), np.int64)
    np.add.at(sums, back, counts.counts)
    longer = _by_count(
        np.concatenate([counts.keys, bigrams]), np.concatenate([counts.counts, sums])
    ).first(wish.rows_max - wish.vocab)
    always = unigrams(wish.vocab)
    return NgramCounts(
        np.concatenate([always, longer.keys]),
        np.concatenate([np.zeros(len(always), np.int64), longer.counts]),
    )


def build(
    output: Path,
    texts: Iterable[str],
    ids: Ids,
    encoder: RowEncoder,
    outside: int,
    wish: TableWish,
    on_progress: OnProgress = ignore_progress,
) -> TableManifest:
    """Counts a corpus and writes the general table's snapshot to `output`, a new folder.

    Raises:
        InvalidArgument: no texts, or too small a budget.
        AlreadyExists, FailedPrecondition: as `write`.
    """
    check_absent(output)
    counter, counts = count_texts(texts, ids, outside, on_progress)
    chosen = choose(counts, wish)
    covered = NgramIndex.build(chosen.keys).find(counts.keys) >= 0
    facts = counter.facts(len(counts), int(counts.counts[covered].sum()))
    return write(output, chosen, facts, encoder, wish, on_progress)


def write(
    output: Path,
    chosen: NgramCounts,
    corpus: CorpusFacts,
    encoder: RowEncoder,
    wish: TableWish,
    on_progress: OnProgress = ignore_progress,
) -> TableManifest:
    """Computes the rows of chosen n-grams, at least one, and writes a snapshot.

    Raises:
        AlreadyExists: `output` is there already.
        FailedPrecondition: the disk is full, or will be; nothing is left of the attempt.
    """
    check_absent(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_room(output.parent, int(len(chosen) * wish.entry_bytes))
    with _new_folder(output) as folder:
        with (folder / names.ROWS_FILE).open("wb") as file:
            _write_rows(file, chosen, encoder, wish.format, on_progress)
        arrays = {
            names.KEYS_FILE: chosen.keys,
            names.COUNTS_FILE: chosen.counts,
            names.INDEX_FILE: NgramIndex.build(chosen.keys).table,
        }
        for name, array in arrays.items():
            with (folder / name).open("wb") as file:
                file.write(np.ascontiguousarray(array).data)
                _settle(file)
        made = TableManifest(
            domain=wish.domain,
            parent=wish.parent,
            parent_encoder=wish.parent_encoder,
            origin=encoder.origin,
            dtype=str(wish.format.dtype),
            rows=len(chosen),
            corpus=corpus,
            files={name: _facts(folder / name) for name in names.FILES},
            delta=wish.delta,
        )
        with (folder / names.MANIFEST_FILE).open("wb") as file:
            file.write(made.encode())
            _settle(file)
    return made


def _write_rows(
    file: BinaryIO,
    chosen: NgramCounts,
    encoder: RowEncoder,
    row_format: RowFormat,
    on_progress: OnProgress,
) -> None:
    total = len(chosen)
    for start in range(0, total, ROWS_BATCH):
        rows = encoder.packed(chosen.keys[start : start + ROWS_BATCH], row_format)
        file.write(np.ascontiguousarray(rows).data)
        on_progress(Step.ROWS, min(start + ROWS_BATCH, total), total)
    _settle(file)


def _by_count(keys: NDArray[np.int64], counts: NDArray[np.int64]) -> NgramCounts:
    order = np.lexsort((keys, -counts))
    return NgramCounts(keys[order], counts[order])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    source = iter(texts)
    while some := list(islice(source, TEXTS_BATCH)):
        yield some


def _facts(path: Path) -> FileFacts:
    return FileFacts(path.stat().st_size, names.file_sha256(path))


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def check_absent(output: Path) -> None:
    """Raises AlreadyExists if there is something at `output`."""
    if output.exists():
        raise AlreadyExists(f"{output} is there already: a table never changes, choose another")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FailedPrecondition(
            f"the disk of {folder} must have {needed} bytes free for the table, got {free}",
            reason="DISK_FULL",
            metadata={"limit": str(needed), "value": str(free)},
        )


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that becomes it if the block ends well, and else is gone; what a
    builder that was killed left there is gone, too."""
    _sweep(output)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    held = _held(folder)
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(output)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise FailedPrecondition(
                f"the disk of {output.parent} is full; the table was not written",
                reason="DISK_FULL",
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise AlreadyExists(f"{output} was made meanwhile") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _sweep(output: Path) -> None:
    """Removes folders whose builders are dead."""
    for folder in output.parent.glob(f".{glob.escape(output.name)}.*"):
        if (held := _held(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _held(folder: Path) -> int | None:
    """The folder, locked for as long as this is open: the system lets go of what a process held
    that died. None: another holds it, or it is no folder, or its file system has no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
