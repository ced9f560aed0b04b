"""A local encoder as one file: safetensors in float16, with what it was made of and how good it is.

numpy only. Bytes are checked as a stranger's: names, shapes, types and finiteness are those of the
form that the metadata states, and its digest is the SHA-256 of the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument
from smile.limits import MIB
from smile.model.skip.form import EncoderForm
from smile.model.skip.policy import MissPolicy

Numbers: TypeAlias = NDArray[np.float32]

FORMAT = "smile.local-encoder.v1"
FILE_BYTES_MAX = 256 * MIB
LENGTH_BYTES = 8
HEADER_BYTES_MAX = MIB


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What an encoder's file says of itself.

    Attributes:
        backbone: Name of the backbone it was distilled from.
        backbone_digest: Of the very backbone whose upper layers it feeds.
        corpus_digest: Of the texts it saw; empty if it saw none.
        parent: Digest of the encoder that it began as; empty if it began with random numbers.
        texts, tokens: How many it saw once an epoch.
        seconds: How long distillation took.
        measures: How close it came, by name.
        policy: What it was distilled for.
    """

    backbone: str
    backbone_digest: str
    form: EncoderForm
    seed: int = 0
    epochs: int = 0
    corpus: str = ""
    corpus_digest: str = ""
    parent: str = ""
    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    measures: Mapping[str, float] = field(default_factory=dict)
    policy: MissPolicy = MissPolicy.COMPUTE


@dataclass(frozen=True, slots=True)
class EncoderFile:
    """A local encoder as it is stored.

    Attributes:
        digest: SHA-256 of the file's bytes, in hex.
        tensors: float16, by the form's names.
    """

    facts: EncoderFacts
    tensors: Mapping[str, NDArray[np.float16]]
    digest: str
    bytes: int

    def check(self, backbone_digest: str, boundary: int | None = None) -> None:
        """Raises FailedPrecondition if it is for another backbone, or another boundary."""
        if self.facts.backbone_digest != backbone_digest:
            raise FailedPrecondition(
                f"the local encoder was made for a backbone with digest "
                f"{self.facts.backbone_digest}, this one has {backbone_digest}",
                reason="BACKBONE_MISMATCH",
            )
        if boundary is not None and self.facts.form.boundary != boundary:
            raise FailedPrecondition(
                f"the local encoder is for boundary {self.facts.form.boundary}, not {boundary}",
                reason="BOUNDARY_MISMATCH",
            )


def encode(facts: EncoderFacts, tensors: Mapping[str, Numbers]) -> bytes:
    """The file's bytes; the same for the same facts and tensors.

    Raises:
        InvalidArgument: tensors are not those of the form, or do not fit float16.
    """
    wanted = facts.form.tensors()
    if {name: tensor.shape for name, tensor in tensors.items()} != wanted:
        raise InvalidArgument("tensors are not those of the local encoder's form")
    stored: dict[str, NDArray[np.float16]] = {}
    for name in sorted(wanted):
        with np.errstate(over="ignore"):
            stored[name] = tensors[name].astype(np.float16)
        if not np.isfinite(stored[name]).all():
            raise InvalidArgument(f"tensor '{name}' has numbers that float16 cannot hold")
    return save(stored, {FORMAT: json.dumps(dataclasses.asdict(facts), sort_keys=True)})


def decode(data: bytes) -> EncoderFile:
    """Reads and checks a file's bytes.

    Raises:
        DataCorrupted: they are not a local encoder's file; the message says why.
    """
    facts = _facts(_metadata(data))
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise DataCorrupted(f"a local encoder's file cannot be read: {error}") from error
    wanted = facts.form.tensors()
    if tensors.keys() != wanted.keys():
        odd = sorted(tensors.keys() ^ wanted.keys())
        raise DataCorrupted(
            f"a local encoder's file: {len(odd)} tensors missing or extra, {odd[0]}"
        )
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float16:
            raise DataCorrupted(
                f"tensor '{name}' must be float16 {shape}, got {tensor.dtype} {tensor.shape}"
            )
        if not np.isfinite(tensor).all():
            raise DataCorrupted(f"tensor '{name}' has numbers that are not finite")
    return EncoderFile(facts, tensors, hashlib.sha256(data).hexdigest(), len(data))


def read(path: Path) -> EncoderFile:
    """Reads a file.

    Raises:
        FailedPrecondition: there is none.
        DataCorrupted: as `decode`, or it is larger than any encoder.
    """
    if not path.is_file():
        raise FailedPrecondition(f"no local encoder at {path}")
    size = path.stat().st_size
    if size > FILE_BYTES_MAX:
        raise DataCorrupted(f"{path} must have at most {FILE_BYTES_MAX} bytes, got {size}")
    return decode(path.read_bytes())


def _metadata(data: bytes) -> object:
    """The value under our one key of the header's metadata."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or length > min(HEADER_BYTES_MAX, len(data) - LENGTH_BYTES):
        raise DataCorrupted("a local encoder's file: its header is cut off")
    try:
        header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
        return json.loads(header["__metadata__"][FORMAT])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataCorrupted(f"no local encoder's file: its header has no {FORMAT}") from error


def _facts(stated: object) -> EncoderFacts:
    if not isinstance(stated, dict):
        raise DataCorrupted("a local encoder's file: its facts are not an object")
    try:
        form = EncoderForm(**{k: _whole(v) for k, v in dict(stated.pop("form")).items()})
        measures = {str(k): float(v) for k, v in dict(stated.pop("measures")).items()}
        policy = MissPolicy(stated.pop("policy", MissPolicy.COMPUTE))
        facts = EncoderFacts(form=form, measures=measures, policy=policy, **stated)
        for name in ("backbone", "backbone_digest", "corpus", "corpus_digest", "parent"):
            if not isinstance(getattr(facts, name), str):
                raise TypeError(f"{name} must be a text")
        for name in ("seed", "epochs", "texts", "tokens"):
            _whole(getattr(facts, name))
        float(facts.seconds)
    except (KeyError, TypeError, ValueError, InvalidArgument) as error:
        raise DataCorrupted(f"a local encoder's file: its facts are wrong: {error}") from error
    return facts


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"must be an integer, got {value!r}")
    return value
