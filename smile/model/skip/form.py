"""A local encoder's dimensions, and the tensors that follow from them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smile.errors import FailedPrecondition, InvalidArgument
from smile.model.checkpoint import BackboneInfo
from smile.model.specs import PetSpec

WIDTH_MAX = 16_384
VIEWS = 3  # of a trigram: what it says of its left, centre and right token, in this order

FIRST = "first"
MIDDLE = "middle"
LAST = "last"
MERGE_NORM = "merge.norm"
AFTER_IN = "after.in"
AFTER_OUT = "after.out"
AFTER_NORM = "after.norm"


@dataclass(frozen=True, slots=True)
class EncoderForm:
    """What decides every shape in a local encoder.

    Attributes:
        boundary: First layer of the backbone that is still computed.
        hidden: The backbone's hidden width, H.
        first: Width of the sum of the three words' own parts.
        middle: Width of the layer after it.
        after: Inner width of the network that each merged token goes through.
        context: So much of that inner layer comes besides as a mean over the text's tokens.

    Raises:
        InvalidArgument: a number is out of range.
    """

    boundary: int
    hidden: int
    first: int
    middle: int
    after: int
    context: int = 0

    def __post_init__(self) -> None:
        if self.boundary < 1:
            raise InvalidArgument(f"boundary must be at least 1, got {self.boundary}")
        for name in ("hidden", "first", "middle", "after", "context"):
            width, least = getattr(self, name), 0 if name == "context" else 1
            if not least <= width <= WIDTH_MAX:
                raise InvalidArgument(
                    f"{name} must be between {least} and {WIDTH_MAX}, got {width}"
                )

    @property
    def row(self) -> int:
        """Numbers in a row: three views of H."""
        return VIEWS * self.hidden

    @property
    def inner(self) -> int:
        """Width of the inner layer of the network behind the merge."""
        return self.after + self.context

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name; a matrix is [outputs, inputs].

        `first.weight` takes left, centre and right word embedding side by side.
        """
        hidden = self.hidden
        return {
            **_dense(FIRST, self.first, VIEWS * hidden),
            **_dense(MIDDLE, self.middle, self.first),
            **_dense(LAST, self.row, self.middle),
            **_norm(MERGE_NORM, hidden),
            **_dense(AFTER_IN, self.inner, hidden),
            **_dense(AFTER_OUT, hidden, self.inner),
            **_norm(AFTER_NORM, hidden),
        }

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        total = 0
        for shape in self.tensors().values():
            size = 1
            for extent in shape:
                size *= extent
            total += size
        return total

    def check_backbone(self, info: BackboneInfo) -> None:
        """Raises FailedPrecondition if such an encoder cannot stand before its upper layers."""
        if self.hidden != info.shape.hidden or self.boundary > info.shape.layers:
            raise FailedPrecondition(
                f"the local encoder is for hidden width {self.hidden} and boundary "
                f"{self.boundary}, the backbone has {info.shape.hidden} and "
                f"{info.shape.layers} layers",
                reason="BACKBONE_MISMATCH",
            )

    def check_pet(self, pet: PetSpec) -> None:
        """Raises FailedPrecondition if the module stands in a layer that the encoder replaces."""
        if pet.first_layer is not None and pet.first_layer < self.boundary:
            raise FailedPrecondition(
                f"the module's first layer must be at least the boundary {self.boundary} to be "
                f"served from materialised representations, got {pet.first_layer}",
                reason="MODULE_BELOW_BOUNDARY",
            )


def outside_of(position_offset: int) -> int:
    """The token id that stands for a neighbour outside the text: the pad token's.

    RoBERTa's positions begin behind it; BERT's vocabularies begin with it.
    """
    return max(0, position_offset - 1)


def _dense(name: str, outputs: int, inputs: int) -> Mapping[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, hidden: int) -> Mapping[str, tuple[int, ...]]:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
