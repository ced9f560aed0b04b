"""A mixed batch: texts of many vPLMs in the order the engine wants them."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model.answers import HeadClass, HeadGroup
from smile.model.grouped import Segments
from smile.model.loaded import LoadedModule
from smile.model.packing import PackedTokens, pack
from smile.model.pet.method import LayerGroup, ShapeClass
from smile.model.specs import PetKind
from smile.model.tokenizer import TokenizedText

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ModuleGroup:
    """The rows of one shape class, vPLMs with the lowest first PET layer first.

    Attributes:
        shape_class: What the vPLMs share.
        boundaries: First PET layer of each vPLM, ascending.
        start: First row in the batch.
        ends: Where each vPLM's rows end, counted from `start`.
        segments: Whose rows they are.
    """

    shape_class: ShapeClass
    boundaries: tuple[int, ...]
    start: int
    ends: tuple[int, ...]
    segments: Segments

    def at(self, layer: int) -> LayerGroup | None:
        """The part that is active in a layer; None if no vPLM is."""
        active = bisect.bisect_right(self.boundaries, layer)
        if active == 0:
            return None
        rows = self.ends[active - 1]
        return LayerGroup(
            layer,
            self.shape_class,
            slice(self.start, self.start + rows),
            self.segments.first(active, rows),
        )


@dataclass(frozen=True, slots=True)
class SharedTexts:
    """A batch's different texts, where some are equal.

    Attributes:
        packed: Each different text once.
        tokens: [tokens of the batch] int64, where each token of the batch stands in `packed`.
    """

    packed: PackedTokens
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """Texts of many vPLMs, sorted by shape class, first PET layer and vPLM.

    Attributes:
        order: Place in the caller's order of each text in row order.
        packed: The texts in row order.
        backbone_digest: The one backbone all the modules were made for.
        boundary: Lowest first PET layer in the batch.
        shared: The different texts, if some are equal.
        groups: Rows by shape class. vPLMs without a PET module are in none.
        heads: Texts by head class.
    """

    order: tuple[int, ...]
    packed: PackedTokens
    backbone_digest: str
    boundary: int
    shared: SharedTexts | None
    groups: tuple[ModuleGroup, ...]
    heads: tuple[HeadGroup, ...]

    @classmethod
    def build(
        cls, items: Sequence[tuple[LoadedModule, TokenizedText]], *, device: torch.device = CPU
    ) -> MixedBatch:
        """A batch of at least one text; each text names its vPLM's module.

        Raises:
            InvalidArgument: no texts, or a text without tokens.
        """
        order = _row_order([module for module, _ in items])
        texts = [items[place][1].ids for place in order]
        modules = [items[place][0] for place in order]
        packed = pack(texts).to(device)
        (digest,) = {module.spec.backbone_digest for module in modules}  # one backbone a batch
        return cls(
            order=order,
            packed=packed,
            backbone_digest=digest,
            boundary=min(module.boundary for module in modules),
            shared=_shared(texts, packed),
            groups=_module_groups(modules, packed),
            heads=_head_groups(modules, packed),
        )


def _row_order(modules: Sequence[LoadedModule]) -> tuple[int, ...]:
    """Sorted by shape class (in order of appearance), boundary, module (likewise)."""
    classes: dict[ShapeClass, int] = {}
    places: dict[LoadedModule, int] = {}
    for module in modules:
        classes.setdefault(module.shape_class, len(classes))
        places.setdefault(module, len(places))
    keys = [(classes[m.shape_class], m.boundary, places[m]) for m in modules]
    return tuple(sorted(range(len(modules)), key=keys.__getitem__))


def _module_groups(
    modules: Sequence[LoadedModule], packed: PackedTokens
) -> tuple[ModuleGroup, ...]:
    groups: list[ModuleGroup] = []
    start = 0
    texts = zip(modules, packed.lengths, strict=True)
    for shape_class, members in itertools.groupby(texts, key=lambda text: text[0].shape_class):
        rows_of: dict[LoadedModule, int] = {}
        for module, length in members:
            rows_of[module] = rows_of.get(module, 0) + length
        ends = tuple(itertools.accumulate(rows_of.values()))
        if shape_class.kind is not PetKind.NONE:
            segments = Segments.of(
                [module.weights for module in rows_of], list(rows_of.values()), packed.ids.device
            )
            boundaries = tuple(module.boundary for module in rows_of)
            groups.append(ModuleGroup(shape_class, boundaries, start, ends, segments))
        start += ends[-1]
    return tuple(groups)


def _head_groups(modules: Sequence[LoadedModule], packed: PackedTokens) -> tuple[HeadGroup, ...]:
    texts_of: dict[HeadClass, list[int]] = {}
    for text, module in enumerate(modules):
        texts_of.setdefault(HeadClass.of(module), []).append(text)
    return tuple(
        HeadGroup.of(head_class, texts, modules, packed) for head_class, texts in texts_of.items()
    )


def _shared(texts: Sequence[Sequence[int]], packed: PackedTokens) -> SharedTexts | None:
    places: dict[tuple[int, ...], int] = {}
    place_of = [places.setdefault(tuple(ids), len(places)) for ids in texts]
    if len(places) == len(texts):
        return None
    device = packed.ids.device
    different = pack(list(places)).to(device)
    starts = different.offsets[torch.tensor(place_of, device=device)]  # [texts]
    return SharedTexts(different, starts[packed.texts] + packed.positions)
