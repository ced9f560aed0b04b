"""Modules that are there already, public or a tenant's own: what a vPLM made of one begins with.
Pure.

With the original's own head, a vPLM's first version is the original, byte for byte. With other
labels its module is the original's, and its head is as fresh as that of any new vPLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from smile.errors import FailedPrecondition, InvalidSpec
from smile.model import weights
from smile.model.initial import initial_tensors
from smile.model.specs import DType, HeadSpec, ModuleSpec, check_made
from smile.names import AdapterName, VersionName, VplmName
from smile.resources import Backbone, Exactness, PublicAdapter, VplmVersion

HEAD_PREFIX = "head."
Original: TypeAlias = PublicAdapter | VplmVersion


@dataclass(frozen=True, slots=True)
class Derived:
    """What a tenant asks for. `head` None means the original's own; `seed` is of a fresh one.

    Attributes:
        source: A vPLM stands for the version that serves.
    """

    name: VplmName
    source: AdapterName | VplmName | VersionName
    head: HeadSpec | None = None
    dtype: DType | None = None
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    domain: str = ""
    exactness: Exactness | None = None


@dataclass(frozen=True, slots=True)
class HeadSource:
    """What a fresh head depends on."""

    backbone: Backbone
    seed: int


def derived_spec(wanted: Derived, original: Original, backbone: Backbone) -> ModuleSpec:
    """The spec of a vPLM made of an original.

    Raises:
        FailedPrecondition: the original is for other weights of the backbone.
        InvalidSpec: another precision is asked for than the original has, or it is a whole model.
    """
    check_made(original.spec.pet)
    if original.spec.backbone_digest != backbone.digest:
        raise FailedPrecondition(
            f"{original.name} was made for digest {original.spec.backbone_digest} of "
            f"{backbone.name}, which has {backbone.digest} now",
            reason="BACKBONE_MISMATCH",
        )
    if wanted.dtype not in (None, original.spec.dtype):
        raise InvalidSpec(
            f"{original.name} is stored as {original.spec.dtype}, got precision {wanted.dtype}"
        )
    head = wanted.head or original.spec.head
    return replace(original.spec, head=head, domain=wanted.domain or original.spec.domain)


def with_fresh_head(data: bytes, original: Original, spec: ModuleSpec, head: HeadSource) -> bytes:
    """The bytes of a module that is the original's but for its head.

    Raises:
        DataCorrupted: `data` are not the original's tensors.
    """
    tensors = initial_tensors(spec, head.backbone.shape, head.seed)
    trained = weights.decode(data, original.spec, head.backbone.shape)
    tensors |= {name: t for name, t in trained.items() if not name.startswith(HEAD_PREFIX)}
    return weights.encode(tensors, spec)
