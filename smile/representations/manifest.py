"""What a table's snapshot says of itself: whose rows, of which texts, in which files.

A snapshot is a folder: the manifest, and the files that it names with their sizes and digests.
Standard library only, so that the command line can show one without anything else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from smile.errors import DataCorrupted, FailedPrecondition

FORMAT = "smile.table.v1"
MANIFEST_FILE = "manifest.json"
KEYS_FILE = "keys.bin"  # [rows] int64, the most frequent first
COUNTS_FILE = "counts.bin"  # [rows] int64, how often each was seen
INDEX_FILE = "index.bin"  # [buckets, 8] int64, see smile.model.kernels.ngrams
ROWS_FILE = "rows.bin"  # [rows, row_bytes], see smile.model.ngram_rows
FILES = (KEYS_FILE, COUNTS_FILE, INDEX_FILE, ROWS_FILE)
MANIFEST_BYTES_MAX = 1 << 20
ROWS_MAX = (1 << 31) - 1
GENERAL = "general"
READ_BYTES = 1 << 22

_TYPES = {"int": int, "str": str, "float": float}
_Facts = TypeVar("_Facts")


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose rows: tables of different origins never mix.

    Attributes:
        boundary: First layer of the backbone that is still computed.
        width: Numbers in one of a row's three views: the backbone's hidden width.
        precision, kernels: In what they were computed, and by what: the last bits of a row depend
            on both. Empty in manifests from before these were told.
    """

    backbone: str
    backbone_digest: str
    encoder_digest: str
    boundary: int
    width: int
    precision: str = ""
    kernels: str = ""

    def check(self, wanted: Origin) -> None:
        """Refuses rows of anything but `wanted`.

        Raises:
            FailedPrecondition: another backbone, boundary or local encoder.
        """
        if self.backbone_digest != wanted.backbone_digest:
            told = _foreign("backbone", self.backbone_digest, wanted.backbone_digest)
            raise FailedPrecondition(told, reason="BACKBONE_MISMATCH")
        if self.boundary != wanted.boundary:
            told = _foreign("boundary", self.boundary, wanted.boundary)
            raise FailedPrecondition(told, reason="BOUNDARY_MISMATCH")
        if self.encoder_digest != wanted.encoder_digest:
            told = _foreign("local encoder", self.encoder_digest, wanted.encoder_digest)
            raise FailedPrecondition(told, reason="ENCODER_MISMATCH")

    def same_bits(self, other: Origin) -> str:
        """Why rows of the same n-grams may differ in their last bits from `other`'s; empty: they
        do not, given the same encoder."""
        mine, theirs = (f"{one.precision} by kernels {one.kernels}" for one in (self, other))
        if not (self.precision and other.precision):
            return "its manifest does not tell in what precision and by which kernels"
        return "" if mine == theirs else f"rows were computed in {mine}, here it is {theirs}"


def _foreign(what: str, own: str | int, wanted: str | int) -> str:
    return f"the table is for {what} {own}, wanted is one for {wanted}"


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """What was counted.

    Attributes:
        digest: SHA-256 over the texts in order; empty if there were none.
        tokens: All of them: each has one n-gram.
        ngrams: Different ones.
        covered: Tokens whose n-gram has a row.
    """

    digest: str
    texts: int
    tokens: int
    ngrams: int
    covered: int


@dataclass(frozen=True, slots=True)
class DeltaFacts:
    """How the n-grams of a domain's table were chosen.

    Attributes:
        alpha: Share of the corpus's tokens that the frequent ones cover.
        difference_min: How far a row is from its parent's at least, in lengths of the parent's.
        frequent: How many n-grams were frequent; the table has those of them that differ.
        parent_table: Digest of the parent's table; empty where the parent is general.
    """

    alpha: float
    difference_min: float
    frequent: int
    parent_table: str


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file: its size and its SHA-256 in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TableManifest:
    """What a snapshot's folder holds.

    Attributes:
        domain: `general`, or the domain whose delta this is.
        parent: The domain that has what this one lacks; empty for the general one.
        parent_encoder: Digest of the local encoder of that domain's rows, which these differ from;
            empty for the general one.
        dtype: How rows are stored: float16 or int8.
        files: By name: exactly those of `FILES`.
        delta: How a domain's n-grams were chosen; None for the general one.
    """

    domain: str
    parent: str
    parent_encoder: str
    origin: Origin
    dtype: str
    rows: int
    corpus: CorpusFacts
    files: Mapping[str, FileFacts]
    delta: DeltaFacts | None = None

    def encode(self) -> bytes:
        """The manifest's file; the same bytes for the same facts."""
        body = {"format": FORMAT, **dataclasses.asdict(self)}
        if self.delta is None:
            del body["delta"]
        if not self.origin.precision:  # from before it was told: the digest stays
            del body["origin"]["precision"], body["origin"]["kernels"]
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, in hex: the table's identity. A domain's names its parent's, and
        so on: it stands for all rows that texts of the domain get."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(file.bytes for file in self.files.values())


def decode(data: bytes) -> TableManifest:
    """Reads and checks a manifest.

    Raises:
        DataCorrupted: it is none; the message says why.
    """
    try:
        body = json.loads(data)
        if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
            raise TypeError(f"its format is not {FORMAT}")
        origin = _checked(Origin, {"precision": "", "kernels": "", **body.pop("origin")})
        corpus = _checked(CorpusFacts, body.pop("corpus"))
        files = {name: _checked(FileFacts, one) for name, one in body.pop("files").items()}
        chosen = body.pop("delta", None)
        parts = {
            "origin": origin,
            "corpus": corpus,
            "files": files,
            "delta": None if chosen is None else _checked(DeltaFacts, chosen),
        }
        made = _checked(TableManifest, {**body, **parts})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataCorrupted(f"no table's manifest: {error}") from error
    if files.keys() != set(FILES):
        raise DataCorrupted(f"a table's files must be {', '.join(FILES)}, got {sorted(files)}")
    if (made.delta is None) is not (made.domain == GENERAL):
        raise DataCorrupted("a domain's table, and no other, must say how it was chosen")
    if not 1 <= made.rows <= ROWS_MAX:
        raise DataCorrupted(f"a table must have 1 to {ROWS_MAX} rows, got {made.rows}")
    return made


def read(folder: Path) -> TableManifest:
    """The manifest of a snapshot's folder.

    Raises:
        FailedPrecondition: there is none.
        DataCorrupted: as `decode`, or it is larger than any manifest.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise FailedPrecondition(f"no table at {folder}: it has no {MANIFEST_FILE}")
    size = path.stat().st_size
    if size > MANIFEST_BYTES_MAX:
        raise DataCorrupted(f"{path} must have at most {MANIFEST_BYTES_MAX} bytes, got {size}")
    return decode(path.read_bytes())


def check_size(folder: Path, name: str, facts: FileFacts) -> Path:
    """The path of a snapshot's file, which is there in full.

    Raises:
        DataCorrupted: it is missing, or of another size.
    """
    path = folder / name
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataCorrupted(f"the table at {folder} has lost its {name}") from None
    if size != facts.bytes:
        raise DataCorrupted(f"{path} must have {facts.bytes} bytes, got {size}")
    return path


def check_digest(folder: Path, name: str, facts: FileFacts) -> None:
    """Reads all of a snapshot's file.

    Raises:
        DataCorrupted: it is missing, of another size, or not what was written.
    """
    path = check_size(folder, name, facts)
    found = file_sha256(path)
    if found != facts.sha256:
        raise DataCorrupted(f"{path} must have SHA-256 {facts.sha256}, got {found}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _checked(kind: type[_Facts], stated: Mapping[str, object]) -> _Facts:
    """`kind` of exactly its fields, each of its type; numbers are at least 0, and finite."""
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        wanted, value = _TYPES.get(str(field.type)), stated[field.name]
        if wanted is not None and type(value) is not wanted:
            raise TypeError(f"{field.name} must be {field.type}, got {value!r}")
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            raise ValueError(f"{field.name} must be at least 0, got {value}")
    return kind(**stated)
