"""vPLMs whose weights come from elsewhere: what must hold before a byte of them is taken. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from smile.errors import InvalidArgument, InvalidSpec
from smile.limits import MODULE_BYTES_MAX
from smile.model import layout
from smile.model.specs import ModuleSpec, check_made
from smile.names import VplmName
from smile.resources import Backbone


@dataclass(frozen=True, slots=True)
class ImportedVplm:
    """What a tenant says of a module it brings. `digest` is the SHA-256 of its bytes, hex."""

    name: VplmName
    spec: ModuleSpec
    size_bytes: int
    digest: str
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def checked(spec: ModuleSpec, backbone: Backbone) -> ModuleSpec:
    """The spec placed on its backbone.

    Raises:
        InvalidArgument: it was made for other weights of the backbone.
        InvalidSpec: the PET module does not fit the backbone, or takes more than 64 MiB.
    """
    check_made(spec.pet)
    if spec.backbone_digest != backbone.digest:
        raise InvalidArgument(
            f"the module was made for digest {spec.backbone_digest} of {backbone.name}, which has "
            f"{backbone.digest} here",
            reason="BACKBONE_MISMATCH",
        )
    placed = replace(spec, pet=spec.pet.placed(backbone.shape))
    size = layout.bytes_total(placed, backbone.shape)
    if size > MODULE_BYTES_MAX:
        raise InvalidSpec(
            f"a module takes at most {MODULE_BYTES_MAX} bytes, this one takes {size}",
            metadata={"limit": str(MODULE_BYTES_MAX), "value": str(size)},
        )
    return placed
