"""A local encoder's dimensions, and the tensors that follow from them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smile.errors import FailedPrecondition, InvalidArgument
from smile.model.checkpoint import BackboneInfo
from smile.model.skip.policy import RowKind
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
GATE = "gate"
QKV = "qkv"
ATTENTION_OUTPUT = "attention_output"
ATTENTION_NORM = "attention_norm"
INTERMEDIATE = "intermediate"
OUTPUT = "output"
OUTPUT_NORM = "output_norm"


def layer_part(layer: int, part: str) -> str:
    """The name of a part of one of the layers over trigrams."""
    return f"layers.{layer}.{part}"


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
        layers: Transformer layers over a trigram in place of `first` and `middle`, which are 0
            then; 0: there are none.
        wide: Their inner width; their heads are the backbone's.

    Raises:
        InvalidArgument: a number is out of range.
    """

    boundary: int
    hidden: int
    first: int
    middle: int
    after: int
    context: int = 0
    layers: int = 0
    wide: int = 0

    def __post_init__(self) -> None:
        if self.boundary < 1:
            raise InvalidArgument(f"boundary must be at least 1, got {self.boundary}")
        words, layers = (1, 0) if self.kind is RowKind.WORDS else (0, 1)
        for name, least, most in (
            ("hidden", 1, WIDTH_MAX),
            ("first", words, words * WIDTH_MAX),
            ("middle", words, words * WIDTH_MAX),
            ("after", 1, WIDTH_MAX),
            ("context", 0, WIDTH_MAX),
            ("layers", layers, layers * WIDTH_MAX),
            ("wide", layers, layers * WIDTH_MAX),
        ):
            width = getattr(self, name)
            if not least <= width <= most:
                raise InvalidArgument(f"{name} must be between {least} and {most}, got {width}")

    @property
    def kind(self) -> RowKind:
        """What makes its rows."""
        return RowKind.LAYERS if self.layers else RowKind.WORDS

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
            **(self._words() if self.kind is RowKind.WORDS else self._layers()),
            **_norm(MERGE_NORM, hidden),
            **_dense(AFTER_IN, self.inner, hidden),
            **_dense(AFTER_OUT, hidden, self.inner),
            **_norm(AFTER_NORM, hidden),
        }

    def _words(self) -> Mapping[str, tuple[int, ...]]:
        return {
            **_dense(FIRST, self.first, VIEWS * self.hidden),
            **_dense(MIDDLE, self.middle, self.first),
            **_dense(LAST, self.row, self.middle),
        }

    def _layers(self) -> Mapping[str, tuple[int, ...]]:
        found = dict(_dense(GATE, 1, self.hidden))
        for layer in range(self.layers):
            for part, outputs, inputs in (
                (QKV, 3 * self.hidden, self.hidden),
                (ATTENTION_OUTPUT, self.hidden, self.hidden),
                (INTERMEDIATE, self.wide, self.hidden),
                (OUTPUT, self.hidden, self.wide),
            ):
                found |= _dense(layer_part(layer, part), outputs, inputs)
            for part in (ATTENTION_NORM, OUTPUT_NORM):
                found |= _norm(layer_part(layer, part), self.hidden)
        return found

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
