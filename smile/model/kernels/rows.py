"""Where modules' serving weights lie in memory, and whose rows a batch holds.

A module's tensors lie one after another in one row of bytes, each at an offset that is a multiple
of 64 (a cache line, a vector register). Rows of one layout lie in slabs: [slots, row_bytes]. So a
tensor of every module in a slab is one strided matrix, which a kernel addresses or gathers without
a Python loop over modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIELD_ALIGNMENT_BYTES = 64
FIELD_DTYPES = (torch.float32, torch.bfloat16, torch.int32)
CPU = torch.device("cpu")
_HOST_DTYPES: Mapping[torch.dtype, tuple[torch.dtype, type[np.generic]]] = {
    torch.float32: (torch.float32, np.float32),
    torch.bfloat16: (torch.int16, np.int16),  # its bits: numpy has no such numbers
    torch.int32: (torch.int32, np.int32),
}

Fields: TypeAlias = tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]  # names, their shapes


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor inside a module's row.

    Attributes:
        offset: Bytes from the row's start, a multiple of 64.
        shape: The tensor's shape; elements lie in C order.
        dtype: float32, bfloat16 or int32.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        assert self.offset >= 0 and self.offset % FIELD_ALIGNMENT_BYTES == 0, self
        assert self.dtype in FIELD_DTYPES, self

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Bytes from the row's start to the first byte after the tensor."""
        return self.offset + self.size * self.dtype.itemsize

    def of(self, row: Tensor) -> Tensor:
        """This tensor in a row's bytes ([bytes] uint8), sharing their memory."""
        assert self.end <= row.shape[0], f"{self} in {row.shape[0]} bytes"
        return row[self.offset : self.end].view(self.dtype).view(self.shape)

    def copy_to_host(self, row: NDArray[np.uint8], tensor: Tensor) -> None:
        """Copies a tensor of this shape and dtype, on the CPU, to its place in a row's bytes. A
        third of what torch takes for the few kilobytes that one is.
        """
        same_width, kept = _HOST_DTYPES[self.dtype]
        place = row[self.offset : self.end].view(kept).reshape(self.shape)
        place[...] = tensor.view(same_width).numpy()


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One module's serving weights.

    Attributes:
        slab: [slots, bytes] uint8, contiguous.
        slot: Which of them.
    """

    slab: Tensor
    slot: int

    def __post_init__(self) -> None:
        assert self.slab.dtype is torch.uint8 and self.slab.dim() == 2, "a slab of bytes"
        assert self.slab.is_contiguous() and self.slab.shape[1] % FIELD_ALIGNMENT_BYTES == 0
        assert 0 <= self.slot < self.slab.shape[0], f"slot {self.slot} of {self.slab.shape[0]}"

    @property
    def bytes(self) -> Tensor:
        """[bytes] uint8, a view."""
        return self.slab[self.slot]

    @property
    def address(self) -> int:
        """Of the first byte, in the memory of the slab's device."""
        return int(self.slab.data_ptr()) + self.slot * self.slab.shape[1]

    def view(self, field: Field) -> Tensor:
        """One tensor, sharing the row's memory."""
        return field.of(self.bytes)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where each tensor lies in a row. Equal for modules that share every shape and dtype.

    Attributes:
        fields: By the tensors' names.
        row_bytes: Size of a row, a multiple of 64; 0 if there are no tensors.
        found: What a kernel found of fields it asked for, kept so that it looks once.
    """

    fields: Mapping[str, Field] = field(hash=False)
    row_bytes: int
    found: dict[Fields, tuple[int, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        assert self.row_bytes % FIELD_ALIGNMENT_BYTES == 0, self.row_bytes
        assert all(one.end <= self.row_bytes for one in self.fields.values()), self

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> RowLayout:
        """The tensors in the mapping's order, each at the next aligned offset."""
        fields: dict[str, Field] = {}
        end = 0
        for name, tensor in tensors.items():
            fields[name] = Field(end, tuple(tensor.shape), tensor.dtype)
            end = _aligned(fields[name].end)
        return cls(fields, end)

    def write(self, row: Row, tensors: Mapping[str, Tensor]) -> None:
        """Copies `tensors` to their places in `row`. They must be those of the layout."""
        assert tensors.keys() == self.fields.keys(), "every field is written"
        place = row.bytes
        host = place.numpy() if place.device == CPU else None
        for name, tensor in tensors.items():
            one = self.fields[name]
            assert (tensor.shape, tensor.dtype) == (one.shape, one.dtype), (name, one)
            if host is None:
                one.of(place).copy_(tensor)
            else:
                one.copy_to_host(host, tensor)


@dataclass(frozen=True, eq=False)
class Members:
    """Consecutive rows of a matrix that belong to modules, one segment each.

    Holds the members' slabs alive. Make one with `of`.

    Attributes:
        rows: Where each member's weights lie, in order; one entry however many matrix rows it has.
        counts: [members], how many matrix rows each has; may be 0.
        layout: Of all members.
        ends: [members] int32, where each member's segment ends.
        addresses: [members] int64 on the CPU, where each member's weights start.
    """

    rows: tuple[Row, ...]
    counts: tuple[int, ...]
    layout: RowLayout
    ends: Tensor
    addresses: Tensor

    @classmethod
    def of(
        cls, rows: Sequence[Row], counts: Sequence[int], layout: RowLayout, device: torch.device
    ) -> Members:
        """Members with `counts[i]` consecutive matrix rows for `rows[i]`, whose slabs lie on
        `device`."""
        assert rows and len(rows) == len(counts), "at least one member, a count for each"
        assert min(counts) >= 0, counts
        for row in rows:
            assert row.slab.shape[1] >= layout.row_bytes, (row.slab.shape, layout.row_bytes)
            assert row.slab.device == device, (row.slab.device, device)
        return cls(
            rows=tuple(rows),
            counts=tuple(counts),
            layout=layout,
            ends=torch.tensor(list(accumulate(counts)), dtype=torch.int32).to(device),
            addresses=torch.tensor([row.address for row in rows], dtype=torch.int64),
        )

    @cached_property
    def rows_total(self) -> int:
        """Matrix rows of all members."""
        return sum(self.counts)

    @cached_property
    def table(self) -> tuple[int, int, int]:
        """Where `addresses` and `ends` lie, and the number of members: what a native call takes."""
        return self.addresses.data_ptr(), self.ends.data_ptr(), len(self.rows)

    @cached_property
    def owners(self) -> Tensor:
        """The member of each matrix row: [matrix rows] int64."""
        lengths = torch.tensor(self.counts)
        owners = torch.repeat_interleave(lengths, output_size=self.rows_total)
        return owners.to(self.ends.device)

    def gather(self, name: str) -> Tensor:
        """Every member's tensor `name`: [members, *shape], in member order.

        A copy by one `index_select` per slab, but for a single member, whose tensor is a view.
        """
        one = self.layout.fields[name]
        if len(self.rows) == 1:
            return self.rows[0].view(one).unsqueeze(0)
        parts = [_column(slab, one).index_select(0, slots) for slab, slots in self._slots]
        stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._permutation is not None:
            stacked = stacked.index_select(0, self._permutation)
        return stacked.view(len(self.rows), *one.shape)

    @cached_property
    def _places(self) -> dict[int, list[int]]:
        """The members in each slab, by the slab's address."""
        places: dict[int, list[int]] = {}
        for member, row in enumerate(self.rows):
            places.setdefault(row.slab.data_ptr(), []).append(member)
        return places

    @cached_property
    def _slots(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Each slab and the slots its members take there [members of the slab]."""
        found = []
        for places in self._places.values():
            slab = self.rows[places[0]].slab
            slots = torch.tensor([self.rows[place].slot for place in places])
            found.append((slab, slots.to(slab.device)))
        return tuple(found)

    @cached_property
    def _permutation(self) -> Tensor | None:
        """Brings members from slab order to member order; none where they are the same."""
        order = [place for places in self._places.values() for place in places]
        if all(left < right for left, right in pairwise(order)):
            return None
        return torch.tensor(order).argsort().to(self.ends.device)


def _column(slab: Tensor, one: Field) -> Tensor:
    """One tensor of every row of a slab: [slots, size], strided."""
    start = one.offset // one.dtype.itemsize
    return slab.view(one.dtype)[:, start : start + one.size]


def _aligned(end: int) -> int:
    return -(-end // FIELD_ALIGNMENT_BYTES) * FIELD_ALIGNMENT_BYTES


def own_row(row_bytes: int, device: torch.device = CPU) -> Row:
    """A row in a slab of its own, not initialised: where nobody plans the memory."""
    return Row(torch.empty((1, row_bytes), dtype=torch.uint8, device=device), 0)
