"""A mixed batch: texts of many vPLMs in the order the engine wants them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model.answers import HeadGroup
from smile.model.kernels.rows import Members
from smile.model.known import repeated
from smile.model.loaded import HeadClass, LoadedModule, members_of
from smile.model.packing import PackedTokens, pack
from smile.model.pet import acts_on_intermediate
from smile.model.pet.method import ShapeClass
from smile.model.tokenizer import TokenizedText

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ModuleGroup:
    """The rows of one shape class.

    Attributes:
        shape_class: What the vPLMs share.
        rows: Where the rows lie in the batch.
        boundary: The class's first PET layer.
        members: Whose rows they are.
    """

    shape_class: ShapeClass
    rows: slice
    boundary: int
    members: Members


@dataclass(frozen=True, slots=True)
class DifferentTexts:
    """A batch's texts, equal ones once.

    Attributes:
        texts: In the order in which they come up.
        packed: The same, end to end.
        tokens: [tokens of the batch] int64, where each token of the batch stands in `packed`; None
            if all texts are different, and `packed` is the batch itself.
        repeated: Identities of the texts that were asked of several vPLMs as one object.
        marks: What each is marked with; equal texts of different marks are different. Empty where
            there are no marks.
    """

    texts: tuple[TokenizedText, ...]
    packed: PackedTokens
    tokens: Tensor | None
    repeated: frozenset[int]
    marks: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, texts: Sequence[TokenizedText], packed: PackedTokens, marks: Sequence[str] = ()
    ) -> DifferentTexts:
        """The different ones of `texts`, which are `packed` end to end, and marked if at all."""
        places: dict[tuple[str, tuple[int, ...]], int] = {}
        names = zip(marks or [""] * len(texts), (tuple(text.ids) for text in texts), strict=True)
        place_of = [places.setdefault(name, len(places)) for name in names]
        if len(places) == len(texts):
            return cls(tuple(texts), packed, None, frozenset(), tuple(marks))
        firsts: dict[int, TokenizedText] = {}
        for place, text in zip(place_of, texts, strict=True):
            firsts.setdefault(place, text)
        device = packed.ids.device
        different = pack([ids for _, ids in places]).to(device)
        starts = different.offsets[torch.tensor(place_of, device=device)]  # [texts]
        tokens = starts[packed.texts] + packed.positions
        kept = tuple(mark for mark, _ in places) if marks else ()
        return cls(tuple(firsts.values()), different, tokens, repeated(texts), kept)

    def places(self, whole: PackedTokens) -> Tensor:
        """[texts of the batch] int64, which of the different texts each is; `whole` is the batch
        that these are the texts of.
        """
        if self.tokens is None:
            return torch.arange(len(whole.lengths), device=whole.ids.device)
        return self.packed.texts[self.tokens[whole.offsets[:-1]]]


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """Texts of many vPLMs, sorted by shape class and vPLM.

    Attributes:
        order: Place in the caller's order of each text in row order.
        packed: The texts in row order.
        backbone_digest: The one backbone all the modules were made for.
        boundary: Lowest first PET layer in the batch.
        different: The texts without repetition.
        groups: Rows by shape class. vPLMs without a PET module are in none.
        heads: Texts by head class.
    """

    order: tuple[int, ...]
    packed: PackedTokens
    backbone_digest: str
    boundary: int
    different: DifferentTexts
    groups: tuple[ModuleGroup, ...]
    heads: tuple[HeadGroup, ...]

    @classmethod
    def build(
        cls,
        items: Sequence[tuple[LoadedModule, TokenizedText]],
        *,
        device: torch.device = CPU,
        marks: Sequence[str] = (),
    ) -> MixedBatch:
        """A batch of at least one text; each text names its vPLM's module.

        Args:
            marks: Of each text; what comes below modules is shared by equal texts of equal marks.

        Raises:
            InvalidArgument: no texts, or a text without tokens.
        """
        order = _row_order([module for module, _ in items])
        texts = [items[place][1] for place in order]
        modules = [items[place][0] for place in order]
        packed = pack([text.ids for text in texts]).to(device)
        (digest,) = {module.spec.backbone_digest for module in modules}  # one backbone a batch
        return cls(
            order=order,
            packed=packed,
            backbone_digest=digest,
            boundary=min(module.boundary for module in modules),
            different=DifferentTexts.of(texts, packed, [marks[n] for n in order] if marks else ()),
            groups=_module_groups(modules, packed),
            heads=_head_groups(modules, packed),
        )


def _row_order(modules: Sequence[LoadedModule]) -> tuple[int, ...]:
    """Sorted by shape class (in order of appearance), then module (likewise).

    Classes with an op at the intermediate product come last, those that begin at lower layers
    behind the others: so in every layer the rows that such an op changes are the last.
    """
    classes: dict[ShapeClass, tuple[bool, int, int]] = {}
    places: dict[LoadedModule, int] = {}
    for module in modules:
        shape_class = module.shape_class
        if shape_class not in classes:
            last = acts_on_intermediate(shape_class)
            classes[shape_class] = (last, -module.boundary * last, len(classes))
        places.setdefault(module, len(places))
    keys = [(classes[m.shape_class], places[m]) for m in modules]
    return tuple(sorted(range(len(modules)), key=keys.__getitem__))


def _module_groups(
    modules: Sequence[LoadedModule], packed: PackedTokens
) -> tuple[ModuleGroup, ...]:
    groups: list[ModuleGroup] = []
    start = 0
    texts = zip(modules, packed.lengths, strict=True)
    for shape_class, members in itertools.groupby(texts, key=lambda text: text[0].shape_class):
        counts: dict[LoadedModule, int] = {}
        for module, length in members:
            counts[module] = counts.get(module, 0) + length
        stop = start + sum(counts.values())
        placed = [module.pet for module in counts if module.pet is not None]
        if placed:
            table = members_of(placed, list(counts.values()), packed.ids.device)
            boundary = next(iter(counts)).boundary
            groups.append(ModuleGroup(shape_class, slice(start, stop), boundary, table))
        start = stop
    return tuple(groups)


def _head_groups(modules: Sequence[LoadedModule], packed: PackedTokens) -> tuple[HeadGroup, ...]:
    texts_of: dict[HeadClass, list[int]] = {}
    for text, module in enumerate(modules):
        texts_of.setdefault(module.head_class, []).append(text)
    return tuple(
        HeadGroup.of(head_class, texts, modules, packed) for head_class, texts in texts_of.items()
    )
