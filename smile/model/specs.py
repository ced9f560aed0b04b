"""What a PET module and a head are, as values: kinds, places, shapes.

Pure: no torch, no numpy, no I/O. Every other module of `smile.model` builds on these types, and
so do the creator (which must not need torch) and the SDK.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from smile.errors import InvalidSpec

RANK_MAX = 1024
DENSITY_MAX = 0.05
SPARSE_WIDTH_MAX = 32_767  # an entry of a matrix must fit an int32, input << 16 | output
LABELS_MAX = 1000
LABEL_CHARS_MAX = 128


class PetKind(enum.StrEnum):
    """The parameter-efficient methods, named as the literature names them."""

    NONE = "none"
    PFEIFFER = "pfeiffer"  # one bottleneck after the feed-forward block (Pfeiffer et al. 2021)
    HOULSBY = (
        "houlsby"  # one after attention, one after the feed-forward block (Houlsby et al. 2019)
    )
    LORA = "lora"  # low-rank updates of chosen projections (Hu et al. 2022)
    BITFIT = "bitfit"  # bias terms only (Ben Zaken et al. 2022)
    DIFF_PRUNING = "diff-pruning"  # sparse updates and bias terms (Guo et al. 2021)
    MASK_BERT = "mask-bert"  # frozen weights, some of them masked (Zhao et al. 2020)
    FULL = "full"  # no module: every weight of the backbone is the tenant's own


RANKED = frozenset({PetKind.PFEIFFER, PetKind.HOULSBY, PetKind.LORA})
SPARSE = frozenset({PetKind.DIFF_PRUNING, PetKind.MASK_BERT})
# What vPLMs are made of, and what the shared processor serves. Whole models only come of training.
SERVED = tuple(kind for kind in PetKind if kind is not PetKind.FULL)


class Task(enum.StrEnum):
    """What a head answers."""

    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 (a task, not a secret)
    EMBEDDING = "embedding"


class Pooling(enum.StrEnum):
    """How token states become one state per text. Token classification ignores it."""

    MEAN = "mean"
    CLS = "cls"
    POOLER = "pooler"  # BERT's own: tanh of a dense product of the first token's state


class Projection(enum.StrEnum):
    """The dense products of one transformer layer: those that LoRA may target."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    ATTENTION_OUTPUT = "attention_output"
    INTERMEDIATE = "intermediate"
    OUTPUT = "output"


class DType(enum.StrEnum):
    """Stored precision of a module. Serving always computes in the engine's own precision."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


class Choice(enum.StrEnum):
    """How a tensor of integers chooses entries of a matrix [outputs, inputs].

    Entries are numbered row by row: `output * inputs + input`.
    """

    INDICES = "int32"  # the chosen entries, strictly ascending
    BITS = "uint8"  # a bit per entry, set if chosen, first entry first; spare bits at the end are 0


@dataclass(frozen=True, slots=True)
class BackboneShape:
    """The dimensions that decide every PET tensor's shape."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    tokens_max: int  # longest text in tokens, special tokens included
    parameters: int  # of the whole backbone
    bytes: int  # of the whole backbone as float32


@dataclass(frozen=True, slots=True)
class PetSpec:
    """A PET module's kind and shape.

    Attributes:
        kind: The method.
        first_layer: 0-based index of the lowest layer that carries a PET op; every layer from it
            upwards does. None means the upper half: `layers // 2`.
        rank: Bottleneck width (Pfeiffer, Houlsby) or rank (LoRA). 0 for kinds without one.
        alpha: LoRA scaling numerator: the update is scaled by `alpha / rank`. 0 elsewhere.
        targets: LoRA's target projections, in the order of `Projection`. Empty elsewhere.
        density: Share of each matrix's entries: those diff-pruning updates, or the most that
            mask-bert may mask. 0 elsewhere.

    Raises:
        InvalidSpec: a field is out of range or has no meaning for the kind.
    """

    kind: PetKind
    first_layer: int | None = None
    rank: int = 0
    alpha: float = 0.0
    targets: tuple[Projection, ...] = ()
    density: float = 0.0

    def __post_init__(self) -> None:
        if self.first_layer is not None:
            _require(self.first_layer >= 0, f"first_layer must be >= 0, got {self.first_layer}")
            _require(
                self.kind is not PetKind.FULL or self.first_layer == 0,
                f"kind 'full' has every layer from 0, got first_layer {self.first_layer}",
            )
        if self.kind in RANKED:
            _require(
                1 <= self.rank <= RANK_MAX,
                f"rank must be between 1 and {RANK_MAX} for kind '{self.kind}', got {self.rank}",
            )
        else:
            _require(self.rank == 0, f"kind '{self.kind}' has no rank, got {self.rank}")
        if self.kind in SPARSE:
            _require(
                0 < self.density <= DENSITY_MAX,
                f"density must be above 0 and at most {DENSITY_MAX} for kind '{self.kind}', "
                f"got {self.density}",
            )
        else:
            _require(self.density == 0, f"kind '{self.kind}' has no density, got {self.density}")
        self._require_lora_alone()

    def _require_lora_alone(self) -> None:
        """Alpha and targets are LoRA's."""
        if self.kind is PetKind.LORA:
            _require(self.alpha > 0, f"alpha must be positive for kind 'lora', got {self.alpha}")
            _require(len(self.targets) > 0, "kind 'lora' needs at least one target projection")
            _require(
                len(set(self.targets)) == len(self.targets), "target projections repeat each other"
            )
        else:
            _require(self.alpha == 0, f"kind '{self.kind}' has no alpha, got {self.alpha}")
            _require(not self.targets, f"kind '{self.kind}' has no target projections")

    def placed(self, shape: BackboneShape) -> PetSpec:
        """This spec with `first_layer` decided for a backbone: the upper half unless chosen."""
        first = shape.layers // 2 if self.first_layer is None else self.first_layer
        if self.kind is PetKind.FULL:
            first = 0
        _require(
            first < shape.layers,
            f"first_layer must be below the backbone's {shape.layers} layers, got {first}",
        )
        if self.kind in RANKED:
            _require(
                self.rank <= shape.hidden,
                f"rank must be at most the hidden width {shape.hidden}, got {self.rank}",
            )
        if self.kind in SPARSE:
            width = max(shape.hidden, shape.intermediate)
            _require(
                width <= SPARSE_WIDTH_MAX,
                f"kind '{self.kind}' needs widths of at most {SPARSE_WIDTH_MAX}, got {width}",
            )
        return replace(self, first_layer=first)


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """A head's task and labels. Labels are in class order; embeddings have none."""

    task: Task
    labels: tuple[str, ...] = ()
    pooling: Pooling = Pooling.MEAN

    def __post_init__(self) -> None:
        _require(
            self.pooling is not Pooling.POOLER or self.task is Task.SEQUENCE_CLASSIFICATION,
            f"pooling 'pooler' is for sequence classification, got a {self.task} head",
        )
        if self.task is Task.EMBEDDING:
            _require(not self.labels, "an embedding head has no labels")
            return
        _require(
            2 <= len(self.labels) <= LABELS_MAX,
            f"a {self.task} head needs between 2 and {LABELS_MAX} labels, got {len(self.labels)}",
        )
        for label in self.labels:
            _require(
                isinstance(label, str),
                f"a label is a text, got {str(label)[:80]} of type {type(label).__name__}",
            )
            _require(
                1 <= len(label) <= LABEL_CHARS_MAX,
                f"a label has 1 to {LABEL_CHARS_MAX} characters, got {len(label)}",
            )
        _require(len(set(self.labels)) == len(self.labels), "labels repeat each other")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a stored module.

    Attributes:
        shape: Its sizes as stored.
        dtype: Numbers, or a choice of entries of a matrix.
        entries: Of a choice: entries of the matrix.
        chosen_max: Of a choice: how many it may choose. `INDICES` choose exactly as many.
    """

    shape: tuple[int, ...]
    dtype: DType | Choice
    entries: int = 0
    chosen_max: int = 0


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """Everything that decides a stored module's tensors: PET module and head over one backbone.

    `pet` must be placed (`PetSpec.placed`): its `first_layer` is a number. `domain` is the one
    whose rows stand for the lower layers in materialised answers; empty: general. It changes no
    tensor.
    """

    backbone: str
    backbone_digest: str  # sha256 of the backbone's canonical configuration and weights
    pet: PetSpec
    head: HeadSpec
    dtype: DType = field(default=DType.FLOAT16)
    domain: str = ""

    def same_module(self, other: ModuleSpec) -> bool:
        """Whether equal bytes are the same module: in everything but the domain."""
        return replace(self, domain=other.domain) == other


def check_made(pet: PetSpec) -> None:
    """Raises `InvalidSpec` for what no vPLM is made of."""
    _require(
        pet.kind in SERVED,
        f"kind '{pet.kind}' is what a training job of method full makes of a vPLM; make one of "
        f"kind {', '.join(SERVED)}",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidSpec(message)
