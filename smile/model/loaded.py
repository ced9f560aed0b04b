"""A module on its way into memory: decoded tensors in serving form, then rows that engines read.

A module takes at most two rows: one for its PET module, in the engine's precision, and one for its
head, in float32. Rows of one class have one layout, so whoever owns memory can keep them in a few
large tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smile.model import stored
from smile.model.backbone import Backbone
from smile.model.initial import StoredArray
from smile.model.kernels.grouped import padded_width, zero_padded
from smile.model.kernels.rows import Members, Row, RowLayout, own_row
from smile.model.layout import HEAD_BIAS, HEAD_WEIGHT, POOLER_BIAS, POOLER_WEIGHT, pet_layers
from smile.model.pet import METHODS
from smile.model.pet.method import ShapeClass
from smile.model.reference import check_backbone
from smile.model.specs import ModuleSpec, PetKind, Pooling, Task


@dataclass(frozen=True, slots=True)
class HeadClass:
    """What heads must share for one product to serve them all."""

    task: Task
    pooling: Pooling
    labels_width: int

    @classmethod
    def of(cls, spec: ModuleSpec) -> HeadClass:
        head = spec.head
        width = 0 if head.task is Task.EMBEDDING else padded_width(len(head.labels))
        return cls(head.task, head.pooling, width)


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """One row of a module and how to read it."""

    row: Row
    layout: RowLayout


def members_of(placed: Sequence[PlacedRow], counts: Sequence[int], device: torch.device) -> Members:
    """Members of one class, `counts[i]` matrix rows for `placed[i]`; see `Members.of`."""
    layout = placed[0].layout
    for one in placed:
        assert one.layout is layout or one.layout == layout, "one class, one layout"
    return Members.of([one.row for one in placed], counts, layout, device)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModule:
    """One vPLM's weights as the batched engine reads them. Immutable; compared by identity.

    Attributes:
        spec: The module's spec.
        boundary: Index of the first layer with a PET op; the number of layers if there is none.
        shape_class: What it shares with modules it is grouped with.
        head_class: What its head shares with heads it is grouped with.
        pet: Weights of the PET module; None for kind `none`.
        head: `head.weight` [H, labels_width] and `head.bias`, float32; None for an embedding head.
    """

    spec: ModuleSpec
    boundary: int
    shape_class: ShapeClass
    head_class: HeadClass
    pet: PlacedRow | None
    head: PlacedRow | None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Where its weights lie, in the order `DecodedModule.place` took them."""
        return tuple(one.row for one in (self.pet, self.head) if one is not None)

    def on(self, rows: Sequence[Row]) -> LoadedModule:
        """The same module, read from other rows of the same content."""
        assert len(rows) == len(self.rows), f"{len(self.rows)} rows, got {len(rows)}"
        left = iter(rows)
        pet, head = self.pet, self.head
        return replace(
            self,
            pet=pet and PlacedRow(next(left), pet.layout),
            head=head and PlacedRow(next(left), head.layout),
        )

    @classmethod
    def load(
        cls, spec: ModuleSpec, tensors: Mapping[str, StoredArray], backbone: Backbone
    ) -> LoadedModule:
        """A module in memory of its own, in float32; see `Decoder.decode` for what it raises."""
        decoded = Decoder(backbone, torch.float32).decode(spec, tensors)
        return decoded.place([own_row(size) for size in decoded.row_bytes])


@dataclass(frozen=True, slots=True, eq=False)
class DecodedModule:
    """A module in serving form that has no place yet.

    Attributes:
        spec: The module's spec.
        boundary: As in `LoadedModule`.
        pet: Tensors of the PET module and their layout; None for kind `none`.
        head: Tensors of the head and their layout; None for an embedding head.
    """

    spec: ModuleSpec
    boundary: int
    pet: DecodedRow | None
    head: DecodedRow | None

    @property
    def rows(self) -> tuple[DecodedRow, ...]:
        """What needs a place."""
        return tuple(row for row in (self.pet, self.head) if row is not None)

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """The size of each row `place` wants."""
        return tuple(row.layout.row_bytes for row in self.rows)

    @property
    def nbytes(self) -> int:
        return sum(self.row_bytes)

    def place(self, rows: Sequence[Row]) -> LoadedModule:
        """Copy the weights into rows of sizes `row_bytes`."""
        assert len(rows) == len(self.rows), f"{len(self.rows)} rows, got {len(rows)}"
        left = iter(rows)
        return LoadedModule(
            spec=self.spec,
            boundary=self.boundary,
            shape_class=ShapeClass.of(self.spec.pet),
            head_class=HeadClass.of(self.spec),
            pet=None if self.pet is None else self.pet.place(next(left)),
            head=None if self.head is None else self.head.place(next(left)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class DecodedRow:
    """The tensors of one row."""

    tensors: Mapping[str, Tensor]
    layout: RowLayout

    def place(self, row: Row) -> PlacedRow:
        self.layout.write(row, self.tensors)
        return PlacedRow(row, self.layout)


class Decoder:
    """Turns stored tensors into serving form for one backbone and precision. Threads may share it.

    Layouts are kept, one for each class of rows: ten thousand modules have a few between them.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        self._backbone = backbone
        self._dtype = dtype
        self._layouts: dict[ShapeClass | HeadClass, RowLayout] = {}

    def decode(self, spec: ModuleSpec, tensors: Mapping[str, StoredArray]) -> DecodedModule:
        """Stored tensors, as `weights.decode` gives them, in serving form.

        Raises:
            FailedPrecondition: the module was made for another backbone.
            DataCorrupted: the tensors are not those of the spec.
        """
        check_backbone(spec, self._backbone)
        plain = stored.to_torch(tensors, spec, self._backbone.shape)
        layers = pet_layers(spec.pet, self._backbone.shape)
        served: dict[str, Tensor] = {}
        for layer in layers:
            frozen = self._backbone.layers[layer]
            served |= METHODS[spec.pet.kind].serving(spec.pet, layer, plain, frozen)
        pet = None
        if served:
            pet = self._row(ShapeClass.of(spec.pet), _cast(served, self._dtype))
        return DecodedModule(spec, layers.start, pet, self._head(spec, plain))

    def row_bytes(self, spec: ModuleSpec) -> tuple[int, ...] | None:
        """The size of each row that a module of this spec takes, as `DecodedModule.row_bytes`; None
        where no module of its classes was decoded yet.
        """
        classes: list[ShapeClass | HeadClass] = []
        if spec.pet.kind is not PetKind.NONE:
            classes.append(ShapeClass.of(spec.pet))
        if spec.head.task is not Task.EMBEDDING:
            classes.append(HeadClass.of(spec))
        layouts = [self._layouts.get(each) for each in classes]
        known = [layout.row_bytes for layout in layouts if layout is not None]
        return tuple(known) if len(known) == len(classes) else None

    def _head(self, spec: ModuleSpec, plain: Mapping[str, Tensor]) -> DecodedRow | None:
        head_class = HeadClass.of(spec)
        if head_class.task is Task.EMBEDDING:
            return None
        weight, width = plain[HEAD_WEIGHT], head_class.labels_width
        served = {
            HEAD_WEIGHT: zero_padded(weight.T, weight.shape[1], width),
            HEAD_BIAS: zero_padded(plain[HEAD_BIAS], width),
        }
        if head_class.pooling is Pooling.POOLER:
            served[POOLER_WEIGHT] = plain[POOLER_WEIGHT].T.contiguous()
            served[POOLER_BIAS] = plain[POOLER_BIAS]
        return self._row(head_class, served)

    def _row(self, row_class: ShapeClass | HeadClass, tensors: dict[str, Tensor]) -> DecodedRow:
        layout = self._layouts.get(row_class)
        if layout is None:
            layout = self._layouts.setdefault(row_class, RowLayout.of(tensors))
        return DecodedRow(tensors, layout)


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point tensors in `dtype`; integers as they are."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
