"""Modules that are public: what a vPLM made of one begins with. Pure.

With the adapter's own head, a vPLM's first version is the adapter, byte for byte. With other labels
its module is the adapter's, and its head is as fresh as that of any new vPLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from smile.errors import FailedPrecondition, InvalidSpec
from smile.model import weights
from smile.model.initial import initial_tensors
from smile.model.specs import DType, HeadSpec, ModuleSpec
from smile.names import AdapterName, VplmName
from smile.resources import Backbone, PublicAdapter

HEAD_PREFIX = "head."


@dataclass(frozen=True, slots=True)
class Derived:
    """What a tenant asks for. `head` None means the adapter's own; `seed` is of a fresh one."""

    name: VplmName
    adapter: AdapterName
    head: HeadSpec | None = None
    dtype: DType | None = None
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    domain: str = ""


@dataclass(frozen=True, slots=True)
class HeadSource:
    """What a fresh head depends on."""

    backbone: Backbone
    seed: int


def derived_spec(wanted: Derived, adapter: PublicAdapter, backbone: Backbone) -> ModuleSpec:
    """The spec of a vPLM made of an adapter.

    Raises:
        FailedPrecondition: the adapter is for other weights of the backbone.
        InvalidSpec: another precision is asked for than the adapter has.
    """
    if adapter.spec.backbone_digest != backbone.digest:
        raise FailedPrecondition(
            f"{adapter.name} was made for digest {adapter.spec.backbone_digest} of "
            f"{backbone.name}, which has {backbone.digest} now",
            reason="BACKBONE_MISMATCH",
        )
    if wanted.dtype not in (None, adapter.spec.dtype):
        raise InvalidSpec(
            f"{adapter.name} is stored as {adapter.spec.dtype}, got precision {wanted.dtype}"
        )
    head = wanted.head or adapter.spec.head
    return replace(adapter.spec, head=head, domain=wanted.domain or adapter.spec.domain)


def with_fresh_head(
    data: bytes, adapter: PublicAdapter, spec: ModuleSpec, head: HeadSource
) -> bytes:
    """The bytes of a module that is the adapter's but for its head.

    Raises:
        DataCorrupted: `data` are not the adapter's tensors.
    """
    tensors = initial_tensors(spec, head.backbone.shape, head.seed)
    trained = weights.decode(data, adapter.spec, head.backbone.shape)
    tensors |= {name: t for name, t in trained.items() if not name.startswith(HEAD_PREFIX)}
    return weights.encode(tensors, spec)
