"""What a backbone directory says about itself, read without torch.

A directory holds `config.json`, `model.safetensors` and `tokenizer.json` (or `vocab.txt`). BERT and
RoBERTa encoders with absolute positions are understood; anything else is refused with the reason.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument
from smile.model.layout import Norm
from smile.model.specs import BackboneShape, Projection

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")  # the first that exists is used
TOKENIZER_SETTINGS_FILE = "tokenizer_config.json"  # read only where there is no tokenizer.json
STORED_DTYPES = ("F32", "F16", "BF16")
READ_BYTES = 1 << 20
FLOAT32_BYTES = 4
# Where a layer's dense products and norms are, in its own path.
PLACES: Mapping[Projection, str] = {
    Projection.QUERY: "attention.self.query",
    Projection.KEY: "attention.self.key",
    Projection.VALUE: "attention.self.value",
    Projection.ATTENTION_OUTPUT: "attention.output.dense",
    Projection.INTERMEDIATE: "intermediate.dense",
    Projection.OUTPUT: "output.dense",
}
NORM_PLACES: Mapping[Norm, str] = {
    Norm.ATTENTION: "attention.output.LayerNorm",
    Norm.OUTPUT: "output.LayerNorm",
}
# What lies below the layers: the tables of words, positions and segments, and their norm.
TABLES = (
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
)
TABLES_NORM = "embeddings.LayerNorm"


class Family(enum.StrEnum):
    """Encoder families; they differ in where positions start and how tensors are named."""

    BERT = "bert"
    ROBERTA = "roberta"


class Activation(enum.StrEnum):
    """Feed-forward activations, named as configurations name them."""

    GELU = "gelu"
    GELU_NEW = "gelu_new"
    GELU_TANH = "gelu_pytorch_tanh"
    RELU = "relu"


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The part of `config.json` that decides the encoder's arithmetic.

    Attributes:
        position_offset: Row of the position table that a text's first token takes.
    """

    family: Family
    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocab: int
    positions: int
    segments: int
    position_offset: int
    norm_epsilon: float
    activation: Activation

    @property
    def tokens_max(self) -> int:
        return self.positions - self.position_offset


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """A backbone's dimensions and identity.

    Attributes:
        digest: sha256 over the canonical configuration, the weights and the tokenizer.
        vocab: Rows of the word embedding.
        tokens_max: Longest text in tokens, special tokens included.
        parameters: Numbers in the tensors the encoder uses (no pooler, no pretraining heads).
        bytes: The same as float32.
    """

    shape: BackboneShape
    digest: str
    family: Family
    vocab: int
    tokens_max: int
    parameters: int
    bytes: int


def describe(path: Path) -> BackboneInfo:
    """Reads and checks a backbone directory.

    Raises:
        FailedPrecondition: a file is missing, or only pickled weights are there.
        InvalidArgument: the architecture is not supported; the message says why.
        DataCorrupted: a file cannot be read as what it should be, or lacks tensors.
    """
    config = read_config(path)
    names = tensor_names(path, config)
    parameters = sum(_count(size) for size in expected_tensors(config).values())
    assert len(names) == len(expected_tensors(config))
    shape = BackboneShape(
        layers=config.layers,
        hidden=config.hidden,
        intermediate=config.intermediate,
        heads=config.heads,
        tokens_max=config.tokens_max,
        parameters=parameters,
        bytes=parameters * FLOAT32_BYTES,
    )
    return BackboneInfo(
        shape=shape,
        digest=digest(path, config),
        family=config.family,
        vocab=config.vocab,
        tokens_max=config.tokens_max,
        parameters=parameters,
        bytes=shape.bytes,
    )


def digest(path: Path, config: EncoderConfig) -> str:
    """sha256 hex over configuration, weights and tokenizer, each preceded by its length."""
    canonical = json.dumps(
        {name: getattr(config, name) for name in EncoderConfig.__slots__}, sort_keys=True
    ).encode()
    total = hashlib.sha256()
    total.update(len(canonical).to_bytes(8, "big") + canonical)
    for file in (path / WEIGHTS_FILE, *_tokenizer_files(path)):
        total.update(file.stat().st_size.to_bytes(8, "big"))
        with file.open("rb") as stream:
            while chunk := stream.read(READ_BYTES):
                total.update(chunk)
    return total.hexdigest()


def tokenizer_file(path: Path) -> Path:
    """`tokenizer.json`, else `vocab.txt`. Raises FailedPrecondition where neither is there."""
    for name in TOKENIZER_FILES:
        if (path / name).is_file():
            return path / name
    raise FailedPrecondition(f"no {' or '.join(TOKENIZER_FILES)} in backbone directory {path}")


def _tokenizer_files(path: Path) -> tuple[Path, ...]:
    """The files that decide token ids: a bare vocabulary leaves letter case to the settings."""
    file, settings = tokenizer_file(path), path / TOKENIZER_SETTINGS_FILE
    return (file, settings) if file.suffix == ".txt" and settings.is_file() else (file,)


def read_config(path: Path) -> EncoderConfig:
    """`config.json` as an `EncoderConfig`. Raises as `describe` does."""
    file = path / CONFIG_FILE
    if not file.is_file():
        raise FailedPrecondition(f"no {CONFIG_FILE} in backbone directory {path}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataCorrupted(f"{file} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise DataCorrupted(f"{file} is not a JSON object")
    return _Fields(raw, file).encoder()


def path_of(layer: int, place: str) -> str:
    """Path inside the encoder: `encoder.layer.0.output.dense`."""
    return f"encoder.layer.{layer}.{place}"


def expected_tensors(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the encoder uses, by its unprefixed name, with its shape."""
    hidden, inner = config.hidden, config.intermediate
    rows = (config.vocab, config.positions, config.segments)
    shapes: dict[str, tuple[int, ...]] = {
        **{name: (count, hidden) for name, count in zip(TABLES, rows, strict=True)},
        **_norm(TABLES_NORM, hidden),
    }
    for index in range(config.layers):
        for projection, place in PLACES.items():
            outputs = inner if projection is Projection.INTERMEDIATE else hidden
            inputs = inner if projection is Projection.OUTPUT else hidden
            shapes |= _dense(path_of(index, place), outputs, inputs)
        for place in NORM_PLACES.values():
            shapes |= _norm(path_of(index, place), hidden)
    return shapes


def tensor_names(path: Path, config: EncoderConfig) -> dict[str, str]:
    """The stored name of each expected tensor, after checking shapes and dtypes.

    Stored names may carry the prefix `bert.` or `roberta.`, and the first BERT releases call a
    layer norm's weight and bias `gamma` and `beta`.

    Raises:
        FailedPrecondition: no `model.safetensors`.
        DataCorrupted: unreadable, or a tensor is missing or of another shape or dtype.
    """
    file = path / WEIGHTS_FILE
    if not file.is_file():
        raise FailedPrecondition(_missing_weights(path))
    try:
        with safe_open(file, "numpy") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
            facts = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise DataCorrupted(f"{file} is not a safetensors file: {error}") from error
    return {
        name: _stored_name(name, size, facts, file)
        for name, size in expected_tensors(config).items()
    }


def _stored_name(
    name: str,
    size: tuple[int, ...],
    facts: Mapping[str, tuple[tuple[int, ...], str]],
    file: Path,
) -> str:
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    old = old.replace("LayerNorm.bias", "LayerNorm.beta")
    for prefix in ("", *(f"{family}." for family in Family)):
        for stored in (prefix + name, prefix + old):
            if stored in facts:
                _check_tensor(stored, size, facts[stored], file)
                return stored
    raise DataCorrupted(f"{file} has no tensor '{name}', with or without a family prefix")


def _check_tensor(
    name: str, size: tuple[int, ...], fact: tuple[tuple[int, ...], str], file: Path
) -> None:
    if fact[0] != size:
        raise DataCorrupted(f"{file}: tensor '{name}' must be {list(size)}, got {list(fact[0])}")
    if fact[1] not in STORED_DTYPES:
        raise DataCorrupted(
            f"{file}: tensor '{name}' must be one of {', '.join(STORED_DTYPES)}, got {fact[1]}"
        )


def _missing_weights(path: Path) -> str:
    why = ""
    if (path / f"{WEIGHTS_FILE}.index.json").is_file():
        why = "; weights split over several files are not supported"
    elif (path / "pytorch_model.bin").is_file():
        why = "; pytorch_model.bin is a pickle and is never read: convert it to safetensors"
    return f"no {WEIGHTS_FILE} in backbone directory {path}{why}"


def _dense(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, hidden: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}


def _count(size: tuple[int, ...]) -> int:
    count = 1
    for extent in size:
        count *= extent
    return count


@dataclass(frozen=True, slots=True)
class _Fields:
    """A configuration being read, with errors that name the file and the field."""

    raw: Mapping[str, object]
    file: Path

    def encoder(self) -> EncoderConfig:
        family = self._family()
        self._refuse_other_encoders()
        offset = self._integer("pad_token_id", default=1) + 1 if family is Family.ROBERTA else 0
        config = EncoderConfig(
            family=family,
            layers=self._integer("num_hidden_layers", least=1),
            hidden=self._integer("hidden_size", least=1),
            intermediate=self._integer("intermediate_size", least=1),
            heads=self._integer("num_attention_heads", least=1),
            vocab=self._integer("vocab_size", least=1),
            positions=self._integer("max_position_embeddings", least=offset + 3),
            segments=self._integer("type_vocab_size", least=1),
            position_offset=offset,
            norm_epsilon=self._epsilon(),
            activation=self._activation(),
        )
        if config.hidden % config.heads:
            raise DataCorrupted(
                f"{self.file}: hidden_size {config.hidden} is not a multiple of "
                f"num_attention_heads {config.heads}"
            )
        return config

    def _family(self) -> Family:
        stated = self.raw.get("model_type")
        for family in Family:
            if stated == family.value:
                return family
        supported = ", ".join(Family)
        raise InvalidArgument(f"{self.file}: model_type must be one of {supported}, got {stated!r}")

    def _refuse_other_encoders(self) -> None:
        if self.raw.get("is_decoder") or self.raw.get("add_cross_attention"):
            raise InvalidArgument(f"{self.file}: a decoder is not supported, only encoders")
        positions = self.raw.get("position_embedding_type", "absolute")
        if positions not in ("absolute", None):
            raise InvalidArgument(
                f"{self.file}: position_embedding_type must be 'absolute', got {positions!r}"
            )

    def _activation(self) -> Activation:
        stated = self.raw.get("hidden_act", "gelu")
        for activation in Activation:
            if stated == activation.value:
                return activation
        supported = ", ".join(Activation)
        raise InvalidArgument(f"{self.file}: hidden_act must be one of {supported}, got {stated!r}")

    def _integer(self, field: str, *, least: int = 0, default: int | None = None) -> int:
        value = self.raw.get(field, default)
        if type(value) is not int or value < least:
            raise DataCorrupted(
                f"{self.file}: {field} must be an integer >= {least}, got {value!r}"
            )
        return value

    def _epsilon(self) -> float:
        value = self.raw.get("layer_norm_eps", 1e-12)
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise DataCorrupted(
                f"{self.file}: layer_norm_eps must be between 0 and 1, got {value!r}"
            )
        return float(value)
