"""A request at every stage of its life: asked, cut into chunks, batched, answered.

`InferenceRequest` → `Chunk` (waits in the queue) → `Batch` → `Outcome`. Each type can only hold
what the stage before it let through. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from smile.errors import (
    Aborted,
    InvalidArgument,
    NotFound,
    SmileError,
    TextEmpty,
    TextTooLong,
    TooManyTexts,
)
from smile.limits import FANOUT_VPLMS_MAX, INFER_TEXTS_MAX, TEXT_CHARS_MAX
from smile.model.specs import ModuleSpec, PetKind
from smile.model.tokenizer import TokenizedText
from smile.names import TenantId, VersionName, VplmName
from smile.resources import SERVING, Exactness, Materialization, VplmVersion

CHARS_PER_TOKEN = 3  # below what English text has, so that estimates err on the safe side

# A load that ends with these says nothing of the module: the vPLM it was asked of was deleted, or
# created again under the same name. Nobody remembers it; who waited looks up the name once more.
VERSION_GONE = (NotFound, Aborted)
SLICES_MAX = 4
LOOK_UPS_MORE = 3  # at most so often: a name that changes faster cannot be served

FloatArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """How a request is cut up.

    Attributes:
        chunk_texts_max: Texts of a chunk.
        chunk_tokens_max: Tokens of a chunk; a single text beyond it is a chunk of its own.
        slice_texts_max: Texts tokenised in one go.
        slice_tokens_max: About how many tokens those have.
        slices_max: Slices of one request that are tokenised, queued or computed at a time.
        due_s_max: A chunk is due after this long even if its deadline is later.
        answer_bytes_max: Of an answer, about: what a message may have.
        module_texts_max: Texts of one module that are tokenised, queued or computed at a time.
    """

    chunk_texts_max: int
    chunk_tokens_max: int
    answer_bytes_max: int
    module_texts_max: int = 1_024
    slice_texts_max: int = 256
    slice_tokens_max: int = 8_192
    slices_max: int = SLICES_MAX
    due_s_max: float = 30.0


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Texts to answer with one vPLM, validated.

    Attributes:
        vplm: Whose tenant is the caller's.
        texts: In the order of the answer.
        arrived: When the request came in.
        deadline: When its caller stops waiting.
        version: The version asked for in particular; None follows `alias`.
        truncate: Cut texts beyond the backbone's token limit instead of refusing them.
        top_k: Best labels to tell per text; 0 tells all.
        routing_key: Decides which version answers where the alias splits its traffic.
        exactness: How it is to be answered; None: as the vPLM's rented terms say, else exact.

    Raises:
        InvalidArgument: there is no text.
        TooManyTexts, TextEmpty, TextTooLong: a limit of `smile.limits` is passed; names it and the
            value.
    """

    vplm: VplmName
    texts: tuple[str, ...]
    arrived: float
    deadline: float
    version: int | None = None
    alias: str = SERVING
    truncate: bool = False
    top_k: int = 0
    routing_key: str = ""
    exactness: Exactness | None = None

    def __post_init__(self) -> None:
        _check_count(len(self.texts))
        if not _all_fine(self.texts):
            for index, text in enumerate(self.texts):
                _check_text(text, index)

    def tokens_estimate(self, text_tokens_max: int) -> int:
        """About how many tokens the texts have; no text has more than `text_tokens_max`."""
        return estimate_all(self.texts, text_tokens_max)


@dataclass(frozen=True, slots=True)
class FanoutRequest:
    """One text to answer with many vPLMs, validated.

    Attributes:
        tenant: The caller's.
        asked: What to ask, in the order of the answer; an error stands for a name that no request
            of this tenant may use, which is that entry's answer.

    The others are as `InferenceRequest`'s, and so is what is raised, and besides:

    Raises:
        InvalidArgument: not 1 to 1,000 vPLMs.
    """

    tenant: TenantId
    asked: tuple[Asked | SmileError, ...]
    text: str
    arrived: float
    deadline: float
    truncate: bool = False
    top_k: int = 0
    routing_key: str = ""
    exactness: Exactness | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.asked) <= FANOUT_VPLMS_MAX:
            raise InvalidArgument(
                f"a fan-out asks 1 to {FANOUT_VPLMS_MAX} vPLMs, got {len(self.asked)}"
            )
        _check_text(self.text, 0)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked up: the version an alias points to, or one version in particular."""

    vplm: VplmName
    alias: str
    version: int | None = None

    @property
    def version_name(self) -> VersionName | None:
        return None if self.version is None else VersionName(self.vplm, self.version)


def estimate(text: str, tokens_max: int) -> int:
    """About how many tokens a text has, special tokens included."""
    return min(len(text) // CHARS_PER_TOKEN + CHARS_PER_TOKEN, tokens_max)


def estimate_all(texts: Sequence[str], tokens_max: int) -> int:
    """The same for several texts together."""
    if len(texts) == 1:
        return estimate(texts[0], tokens_max)
    found = [length // CHARS_PER_TOKEN + CHARS_PER_TOKEN for length in map(len, texts)]
    if max(found, default=0) <= tokens_max:
        return sum(found)
    return sum(min(tokens, tokens_max) for tokens in found)


@dataclass(frozen=True, slots=True)
class ModuleKey:
    """What makes two modules the same one in memory.

    The digest names the bytes, the spec tells what they mean (a LoRA's alpha and a head's pooling
    are not in them). The tenant is part of it, so that neither a failed load nor the time a load
    takes tells one tenant anything about another.
    """

    tenant: TenantId
    digest: str
    spec_sha256: str

    @classmethod
    def of(cls, name: VersionName, version: VplmVersion) -> ModuleKey:
        return cls(name.vplm.tenant, version.digest, _fingerprint(version.spec))


@dataclass(frozen=True, slots=True)
class Target:
    """The immutable version a request is answered by."""

    name: VersionName
    version: VplmVersion
    key: ModuleKey

    @classmethod
    def of(cls, version: VplmVersion) -> Target:
        """Raises `InvalidName` if the manifest's name is no version's."""
        name = VersionName.parse(version.name)
        return cls(name, version, ModuleKey.of(name, version))

    @property
    def spec(self) -> ModuleSpec:
        return self.version.spec


class Track(NamedTuple):
    """What texts must share to be computed in one batch. Exact and materialised ones go through
    different layers, so they travel apart.
    """

    backbone: str
    exactness: Exactness = Exactness.EXACT


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A few texts of one request: the unit that waits, that is scheduled, and that may be dropped.

    Attributes:
        number: Counts chunks in order of arrival; unique.
        request: The request it is part of.
        due: What earliest-deadline-first sorts by: the deadline, or the time by which it must have
            been computed whatever its deadline is.
        deadline: When nobody waits for it any more.
        tokens: Of all its texts.
        kind: The module's, for predictions.
        vplm: Whose limit of requests at a time it counts against; None: nobody's.
        exactness: How it is to be answered.
        domain: Whose rows stand for lower layers, if any do; empty: general.
    """

    number: int
    request: int
    tenant: TenantId
    backbone: str
    module: ModuleKey
    due: float
    deadline: float
    texts: tuple[TokenizedText, ...]
    tokens: int
    kind: PetKind = PetKind.NONE
    vplm: VplmName | None = None
    exactness: Exactness = Exactness.EXACT
    domain: str = ""

    @property
    def track(self) -> Track:
        return Track(self.backbone, self.exactness)


@dataclass(frozen=True, slots=True)
class Part:
    """The chunks of a batch that one module answers."""

    module: ModuleKey
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """What the device computes in one go: any tenants, any PET kinds, one track."""

    backbone: str
    parts: tuple[Part, ...]
    exactness: Exactness = Exactness.EXACT

    @classmethod
    def of(cls, backbone: str, chunks: Sequence[Chunk]) -> Batch:
        """Chunks grouped by module, in the order each module came first."""
        parts: dict[ModuleKey, list[Chunk]] = {}
        for chunk in chunks:
            parts.setdefault(chunk.module, []).append(chunk)
        (exactness,) = {chunk.exactness for chunk in chunks}
        whole = tuple(Part(key, tuple(held)) for key, held in parts.items())
        return cls(backbone, whole, exactness)

    @property
    def track(self) -> Track:
        return Track(self.backbone, self.exactness)

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(chunk for part in self.parts for chunk in part.chunks)

    @property
    def texts(self) -> int:
        return sum(len(chunk.texts) for chunk in self.chunks)

    @property
    def tokens(self) -> int:
        return sum(chunk.tokens for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Ride:
    """One computed batch, as its passengers report it."""

    number: int
    started: float
    compute_s: float
    texts: int
    vplms: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A computed chunk: one array per text, as its head gives it, and what was looked up of it."""

    chunk: Chunk
    outputs: tuple[FloatArray, ...]
    ride: Ride
    materialization: Materialization | None = None

    def __post_init__(self) -> None:
        assert len(self.outputs) == len(self.chunk.texts), "one output per text"


@dataclass(frozen=True, slots=True)
class Failed:
    """A chunk that got no answer, and why."""

    chunk: Chunk
    error: SmileError


@dataclass(frozen=True, slots=True)
class Materialized:
    """What came of a materialised chunk: an array per text, and what was looked up."""

    outputs: tuple[FloatArray, ...]
    looked_up: Materialization


Outcome: TypeAlias = Answered | Failed
# Of one chunk: an array per text, or why not.
Computed: TypeAlias = tuple[FloatArray, ...] | Materialized | SmileError


def slices(texts: Sequence[str], *, texts_max: int, tokens_max: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of consecutive texts, each run of at most `texts_max` and about `tokens_max`
    tokens.
    """
    start, tokens = 0, 0
    for index, text in enumerate(texts):
        more = estimate(text, tokens_max)
        if index > start and (index - start >= texts_max or tokens + more > tokens_max):
            yield start, index
            start, tokens = index, 0
        tokens += more
    if start < len(texts):
        yield start, len(texts)


def runs(
    texts: Sequence[TokenizedText], *, texts_max: int, tokens_max: int
) -> Iterator[tuple[TokenizedText, ...]]:
    """Consecutive texts within both limits; a text alone may pass the second."""
    run: list[TokenizedText] = []
    tokens = 0
    for text in texts:
        if run and (len(run) >= texts_max or tokens + len(text) > tokens_max):
            yield tuple(run)
            run, tokens = [], 0
        run.append(text)
        tokens += len(text)
    if run:
        yield tuple(run)


def _check_count(count: int) -> None:
    if count == 0:
        raise InvalidArgument(
            f"a request has 1 to {INFER_TEXTS_MAX} texts, got 0", reason="TEXTS_MISSING"
        )
    if count > INFER_TEXTS_MAX:
        raise TooManyTexts(
            f"a request has at most {INFER_TEXTS_MAX} texts, got {count}",
            metadata={"limit": str(INFER_TEXTS_MAX), "value": str(count)},
        )


def _all_fine(texts: Sequence[str]) -> bool:
    """Whether no text breaks a rule of `_check_text`; most requests are told so in one go."""
    return (
        all(texts)
        and not any(map(str.isspace, texts))
        and max(map(len, texts), default=0) <= TEXT_CHARS_MAX
    )


def _check_text(text: str, index: int) -> None:
    if not text or text.isspace():
        raise TextEmpty(
            f"text {index} must have at least 1 character that is not white space, got {len(text)} "
            f"characters",
            metadata={"text": str(index)},
        )
    if len(text) > TEXT_CHARS_MAX:
        raise TextTooLong(
            f"text {index} must have at most {TEXT_CHARS_MAX} characters, got {len(text)}",
            metadata={
                "text": str(index),
                "unit": "characters",
                "limit": str(TEXT_CHARS_MAX),
                "value": str(len(text)),
            },
        )


def _fingerprint(spec: ModuleSpec) -> str:
    return hashlib.sha256(repr(spec).encode("utf-8", "backslashreplace")).hexdigest()
