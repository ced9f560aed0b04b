"""States in front of the first PET op, computed once per distinct text and kept between epochs.

A text may have them twice: as the backbone's own lower layers make them, and as their stand-in
does. Texts have numbers; beyond the last begin the same texts again, of the other kind.

They lie in memory up to a limit, then in a file up to another, which has no name and so goes with
the process whatever way that ends. What does not fit either is computed whenever it is asked for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from services.trainer.data.corpus import TokenIds, token_batches
from services.trainer.training.precision import Precision
from smile.model.batched import Lower
from smile.model.frozen import FrozenPart
from smile.model.packing import PackedTokens, pack
from smile.model.reference import VplmModule

ENCODED_TOKENS_MAX = 1024  # tokens of one pass through the frozen layers; more are not faster

MakeLower: TypeAlias = Callable[[], Lower]

DTYPES: Mapping[Precision, torch.dtype] = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
}


class DiskFull(Exception):
    """The file of states does not fit its folder."""


@dataclass(frozen=True, slots=True)
class StatesRoom:
    """Where states may lie.

    Attributes:
        memory_bytes_max: In memory.
        disk_bytes_max: In a file, of those that memory does not hold.
        folder: Where the file is made; None means the system's choice.
    """

    memory_bytes_max: int = 1 << 30
    disk_bytes_max: int = 0
    folder: Path | None = None

    @property
    def half(self) -> StatesRoom:
        """For one of two kinds."""
        return StatesRoom(self.memory_bytes_max // 2, self.disk_bytes_max // 2, self.folder)


class States(Protocol):
    """States of texts by number."""

    @property
    def kept(self) -> int:
        """Texts whose states are kept."""
        ...

    @property
    def bytes_kept(self) -> int: ...
    def fill(self) -> Iterator[int]:
        """Computes what fits; yields the number of texts done. Raises `DiskFull`."""
        ...

    def of(self, texts: Sequence[int]) -> tuple[Tensor, PackedTokens]:
        """States [tokens, width] of texts in the given order, and their tokens."""
        ...

    def close(self) -> None:
        """Lets go of everything kept."""
        ...


@dataclass(slots=True)
class EntryStates:
    """The states of texts by number; see `smile.model.entry`.

    They depend on the frozen part alone, so all modules of the spec share them.

    Attributes:
        lower: Makes what stands in for lower layers, in `precision`; None: they are computed.
    """

    module: VplmModule
    texts: Sequence[TokenIds]
    room: StatesRoom
    precision: Precision = Precision.FLOAT32
    lower: MakeLower | None = None
    bytes_kept: int = 0
    _frozen: FrozenPart | None = None  # its weights are copies: only as long as they are needed
    _width: int = 0
    _memory: dict[int, Tensor] = field(default_factory=dict)  # text to [tokens, width]
    _places: dict[int, int] = field(default_factory=dict)  # text to where in the file
    _file: BinaryIO | None = None

    @property
    def kept(self) -> int:
        """Texts whose states are kept."""
        return len(self._memory) + len(self._places)

    def fill(self) -> Iterator[int]:
        """Computes what fits, longest texts first; yields the number of texts done.

        Raises:
            DiskFull: there is no room for the file.
        """
        if not self.texts or self.frozen.cheap:
            return
        self._width = self.frozen.states(pack([self.texts[0]])).shape[1]
        lengths = [len(ids) for ids in self.texts]
        batches = token_batches(lengths, ENCODED_TOKENS_MAX)
        sizes = [sum(lengths[text] for text in batch) * self._token_bytes for batch in batches]
        in_memory = _first_fitting(sizes, self.room.memory_bytes_max)
        on_disk = _first_fitting(sizes[in_memory:], self.room.disk_bytes_max)
        yield from self._fill_memory(batches[:in_memory])
        if on_disk:
            reserved = sum(sizes[in_memory : in_memory + on_disk])
            yield from self._fill_file(batches[in_memory : in_memory + on_disk], reserved)
        if self.kept == len(self.texts):
            self._frozen = None

    def of(self, texts: Sequence[int]) -> tuple[Tensor, PackedTokens]:
        """States [tokens, width] of texts in the given order, and their tokens."""
        packed = pack([self.texts[text] for text in texts])
        if not self.kept:
            return self.frozen.states(packed).clone(), packed
        states = torch.empty(packed.tokens, self._width, dtype=self._dtype)
        missing: dict[int, list[Tensor]] = {}
        for text, place in zip(texts, states.split(packed.lengths), strict=True):
            if text in self._memory:
                place.copy_(self._memory[text])
            elif text in self._places:
                self._read(self._places[text], place)
            else:
                missing.setdefault(text, []).append(place)
        self._compute(missing)
        return states, packed

    def close(self) -> None:
        """Lets go of everything kept."""
        self._memory.clear()
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def frozen(self) -> FrozenPart:
        """What computes states."""
        if self._frozen is None:
            lower = None if self.lower is None else self.lower()
            self._frozen = FrozenPart.of(self.module, dtype=self._dtype, lower=lower)
        return self._frozen

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def _token_bytes(self) -> int:
        return self._width * self._dtype.itemsize

    def _fill_memory(self, batches: Sequence[Sequence[int]]) -> Iterator[int]:
        lengths = [len(self.texts[text]) for batch in batches for text in batch]
        # One block for all that stays: scattered among short-lived ones, it would fragment the heap
        # to more than twice its size.
        kept = torch.empty(sum(lengths), self._width, dtype=self._dtype)
        places = iter(kept.split(lengths))
        for batch in batches:
            packed = pack([self.texts[text] for text in batch])
            for text, states in zip(
                batch, self.frozen.states(packed).split(packed.lengths), strict=True
            ):
                self._memory[text] = next(places).copy_(states)
            self.bytes_kept += packed.tokens * self._token_bytes
            yield self.kept

    def _fill_file(self, batches: Sequence[Sequence[int]], reserved: int) -> Iterator[int]:
        self._file = file = _reserved(self.room.folder, reserved)
        start = 0
        for batch in batches:
            packed = pack([self.texts[text] for text in batch])
            _write(file, start, self.frozen.states(packed))
            for text, tokens in zip(batch, packed.lengths, strict=True):
                self._places[text] = start
                start += tokens * self._token_bytes
            self.bytes_kept += packed.tokens * self._token_bytes
            yield self.kept

    def _read(self, start: int, place: Tensor) -> None:
        assert self._file is not None, "the file is there as long as places are"
        left = _bytes_of(place)
        while left:
            count = os.preadv(self._file.fileno(), [left], start)
            if count == 0:
                raise OSError(f"the file of states ends before byte {start}")
            left, start = left[count:], start + count

    def _compute(self, missing: dict[int, list[Tensor]]) -> None:
        """Computes what is not kept, into its places."""
        if not missing:
            return
        packed = pack([self.texts[text] for text in missing])
        found = self.frozen.states(packed).split(packed.lengths)
        for places, states in zip(missing.values(), found, strict=True):
            for place in places:
                place.copy_(states)


@dataclass(frozen=True, slots=True)
class TwoStates:
    """The states of texts of two kinds: numbers below the count of texts are `first`'s, those from
    there on `second`'s.

    Attributes:
        both: Whether those of `second` are kept as well; else they are computed when asked for.
    """

    first: EntryStates
    second: EntryStates
    both: bool

    @property
    def kept(self) -> int:
        """Texts whose states are kept, of each kind that is."""
        return min(self.first.kept, self.second.kept) if self.both else self.first.kept

    @property
    def bytes_kept(self) -> int:
        return self.first.bytes_kept + self.second.bytes_kept

    def fill(self) -> Iterator[int]:
        """As `EntryStates.fill`, one kind after the other."""
        for done in self.first.fill():
            yield done // 2 if self.both else done
        if self.both:
            for done in self.second.fill():
                yield (self.first.kept + done) // 2

    def of(self, texts: Sequence[int]) -> tuple[Tensor, PackedTokens]:
        """States [tokens, width] of texts in the given order, and their tokens."""
        count = len(self.first.texts)
        later = [text >= count for text in texts]
        if not any(later):
            return self.first.of(texts)
        if all(later):
            return self.second.of([text - count for text in texts])
        packed = pack([self.first.texts[text % count] for text in texts])
        parts = {
            False: self._part(self.first, [text for text in texts if text < count]),
            True: self._part(self.second, [text - count for text in texts if text >= count]),
        }
        return torch.cat([next(parts[one]) for one in later]), packed

    def close(self) -> None:
        """Lets go of everything kept."""
        self.first.close()
        self.second.close()

    @staticmethod
    def _part(states: EntryStates, texts: Sequence[int]) -> Iterator[Tensor]:
        found, packed = states.of(texts)
        return iter(found.split(packed.lengths))


def _first_fitting(sizes: Sequence[int], limit: int) -> int:
    """How many of the first sizes come to at most the limit."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > limit:
            return count
    return len(sizes)


def _reserved(folder: Path | None, size: int) -> BinaryIO:
    """A file without a name whose room is taken at once, rather than when half of it is full."""
    file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder, prefix="smile-states-"))  # noqa: SIM115
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        file.close()
        where = folder or tempfile.gettempdir()
        raise DiskFull(f"{size} bytes of states do not fit {where}: {error.strerror}") from error
    return file


def _write(file: BinaryIO, start: int, states: Tensor) -> None:
    left = _bytes_of(states)
    while left:
        count = os.pwrite(file.fileno(), left, start)
        left, start = left[count:], start + count


def _bytes_of(states: Tensor) -> memoryview:
    """The memory of a contiguous matrix, not a copy of it."""
    return states.view(torch.uint8).numpy().data.cast("B")
