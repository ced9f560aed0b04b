"""The nouns of versions' history, origin and differences, as frozen values. `smile.resources` has
them all, with the other nouns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from smile.errors import FailedPrecondition
from smile.model.specs import SERVED, ModuleSpec
from smile.names import VersionName

FULL_MODEL_NOT_SERVED = "FULL_MODEL_NOT_SERVED"


def check_served(name: VersionName, spec: ModuleSpec) -> None:
    """Raise `FailedPrecondition` for a version that is a whole model, which shares nothing."""
    if spec.pet.kind not in SERVED:
        raise FailedPrecondition(
            f"{name} is a whole model, and the processor serves modules on shared backbones; "
            f"export it: smile vplms export {name.vplm.vplm} FOLDER --version {name.number}",
            reason=FULL_MODEL_NOT_SERVED,
            metadata={"resource": str(name), "kind": spec.pet.kind},
        )


@dataclass(frozen=True, slots=True)
class Canary:
    """A second version that answers `weight` (0 to 1) of an alias's requests."""

    version: int
    weight: float


@dataclass(frozen=True, slots=True)
class AliasMoved:
    """A move of an alias: what it pointed to from `time` on. Moves of an alias count from 1.

    Attributes:
        by: Who moved it: the API key's name, or `service` (a job that promoted its version).
        restores: Of a rollback: the number of the move that it went back to; 0 for other moves.
    """

    alias: str
    number: int
    version: int
    canary: Canary | None = None
    time: datetime | None = None
    by: str = ""
    restores: int = 0

    @property
    def target(self) -> tuple[int, Canary | None]:
        """What it pointed to."""
        return self.version, self.canary


@dataclass(frozen=True, slots=True)
class Derivation:
    """What a version's module was taken from: `publicAdapters/{a}` or a version of the same tenant,
    and the digest of its bytes.
    """

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class PublicAdapter:
    """A module that the operator offers to every tenant; `source` says where it came from."""

    name: str
    spec: ModuleSpec
    digest: str
    size_bytes: int
    create_time: datetime | None = None
    display_name: str = ""
    description: str = ""
    license: str = ""
    source: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field, as text, of the first version and of the second; empty where one has none."""

    field: str
    base: str
    other: str


@dataclass(frozen=True, slots=True)
class MetricPair:
    """A metric of both versions; None where one has not measured it."""

    name: str
    base: float | None
    other: float | None


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How far a tensor moved, elementwise in float64.

    Attributes:
        base_shape, other_shape: Empty where one version has no such tensor; where the shapes
            differ, nothing is compared.
        l2: Euclidean norm of the difference.
        max_abs: Its largest magnitude.
        relative: `l2` over the norm of the first version's tensor; None where that is zero.
    """

    name: str
    base_shape: tuple[int, ...]
    other_shape: tuple[int, ...]
    l2: float = 0.0
    max_abs: float = 0.0
    relative: float | None = None

    @property
    def comparable(self) -> bool:
        """Whether both have it, in one shape."""
        return bool(self.base_shape) and self.base_shape == self.other_shape


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """What differs between two versions, `base` and `other` by name; only what does.

    Attributes:
        same_bytes: Both have one digest.
        spec: Fields of backbone, PET module, head and precision.
        labels_added, labels_removed: Of the head.
        training: Settings of the jobs that made them, environments included.
        metrics: All of both, by name.
        tensors: All of both, by name, equal ones included.
        l2, relative: Over all comparable tensors together.
    """

    base: str
    other: str
    same_bytes: bool
    spec: tuple[FieldChange, ...] = ()
    labels_added: tuple[str, ...] = ()
    labels_removed: tuple[str, ...] = ()
    training: tuple[FieldChange, ...] = ()
    metrics: tuple[MetricPair, ...] = ()
    tensors: tuple[TensorDiff, ...] = ()
    l2: float = 0.0
    relative: float | None = None
