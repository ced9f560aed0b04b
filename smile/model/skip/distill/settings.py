"""What decides a distillation's result, besides backbone and corpus."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from smile.errors import InvalidArgument
from smile.model.skip.form import WIDTH_MAX, EncoderForm
from smile.model.skip.policy import MissPolicy, RowKind
from smile.model.specs import BackboneShape

EPOCHS_MAX = 1_000
BATCH_TOKENS_MAX = 65_536
PASSAGE_TOKENS_DEFAULT = 256


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """How to learn.

    Attributes:
        boundary: First layer that is still computed.
        rows: What makes a row. LAYERS has as many layers as it stands for, of the backbone's
            widths.
        policy: What serves an n-gram that no table has.
        dropout: Of that policy where shorter n-grams do: how often a neighbour is left out; see
            `distill.dropout`.
        first, middle, after, context: Widths of the encoder; see `EncoderForm`.
        epochs: Passes over the corpus.
        near_share: Share of the epochs, the first, that look at the boundary alone, through a
            fixed measure of what the layers above make of an error; the others look through the
            layers themselves.
        scores_weight: Of the attention scores' error beside that of the states.
        rate: Peak learning rate.
        batch_tokens: Tokens a step.
        passage_tokens: Texts are sentences, and whole sentences up to so many tokens, half of
            that and a quarter.
        held_out_share: Of the documents, those never learned from, unless others are given.
        threads: The machine's; sums are taken in another order by another number.

    Raises:
        InvalidArgument: a number is out of range.
    """

    boundary: int
    first: int = 1_024
    middle: int = 768
    after: int = 320
    context: int = 64
    epochs: int = 8
    near_share: float = 0.2
    scores_weight: float = 0.3
    rate: float = 2e-3
    batch_tokens: int = 4_096
    passage_tokens: int = PASSAGE_TOKENS_DEFAULT
    held_out_share: float = 0.05
    seed: int = 0
    threads: int = 1
    rows: RowKind = RowKind.WORDS
    policy: MissPolicy = MissPolicy.COMPUTE
    dropout: float = 0.5

    def __post_init__(self) -> None:
        for name, least, most in (
            ("boundary", 1, WIDTH_MAX),
            ("first", 1, WIDTH_MAX),
            ("middle", 1, WIDTH_MAX),
            ("after", 1, WIDTH_MAX),
            ("context", 0, WIDTH_MAX),
            ("epochs", 1, EPOCHS_MAX),
            ("near_share", 0, 1),
            ("scores_weight", 0, 100),
            ("batch_tokens", 1, BATCH_TOKENS_MAX),
            ("passage_tokens", 8, BATCH_TOKENS_MAX),
            ("held_out_share", 0, 0.5),
            ("dropout", 0, 1),
            ("seed", 0, 2**32 - 1),
            ("threads", 1, 1_024),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidArgument(f"{name} must be between {least} and {most}, got {value}")
        if not 0 < self.rate <= 1:
            raise InvalidArgument(f"rate must be above 0 and at most 1, got {self.rate}")

    def form(self, shape: BackboneShape) -> EncoderForm:
        """The encoder's form on a backbone of that shape."""
        ends = (self.after, self.context)
        if self.rows is RowKind.LAYERS:
            layers, wide = self.boundary, shape.intermediate
            return EncoderForm(self.boundary, shape.hidden, 0, 0, *ends, layers, wide)
        return EncoderForm(self.boundary, shape.hidden, self.first, self.middle, *ends)

    def digest(self, *inputs: str) -> str:
        """SHA-256 of all that decides the result, in hex: of these, and the inputs' digests."""
        stated = json.dumps([dataclasses.asdict(self), *inputs])
        return hashlib.sha256(stated.encode()).hexdigest()
