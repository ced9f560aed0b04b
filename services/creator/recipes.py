"""A recipe to a new vPLM's first version. Pure: the same recipe gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from smile.errors import InvalidSpec
from smile.limits import MODULE_BYTES_MAX
from smile.model import layout, weights
from smile.model.initial import initial_tensors
from smile.model.specs import DType, HeadSpec, ModuleSpec, PetSpec, check_made
from smile.names import BackboneName, VplmName
from smile.resources import Backbone, Exactness, Vplm

HEADER_BYTES_SPARE = 64 * 1024  # names and shapes in the file's header


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a tenant asks for. `seed` decides the random part of the initial weights."""

    name: VplmName
    pet: PetSpec
    head: HeadSpec
    dtype: DType = DType.FLOAT16
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    domain: str = ""
    exactness: Exactness | None = None


@dataclass(frozen=True, slots=True)
class NewVplm:
    """A vPLM that storage does not have yet, and its first version's stored form."""

    vplm: Vplm
    data: bytes
    digest: str


def module_spec(recipe: Recipe, backbone: Backbone) -> ModuleSpec:
    """The recipe placed on its backbone.

    Raises:
        InvalidSpec: the PET module does not fit the backbone, or takes more than 64 MiB.
    """
    check_made(recipe.pet)
    spec = ModuleSpec(
        backbone=BackboneName.parse(backbone.name).backbone,
        backbone_digest=backbone.digest,
        pet=recipe.pet.placed(backbone.shape),
        head=recipe.head,
        dtype=recipe.dtype,
        domain=recipe.domain,
    )
    size = layout.bytes_total(spec, backbone.shape) + HEADER_BYTES_SPARE
    if size > MODULE_BYTES_MAX:
        raise InvalidSpec(
            f"a module takes at most {MODULE_BYTES_MAX} bytes, this one would take about {size}: "
            "choose a lower rank or density, a higher first layer, or fewer targets",
            metadata={"limit": str(MODULE_BYTES_MAX), "value": str(size)},
        )
    return spec


def build(recipe: Recipe, backbone: Backbone) -> NewVplm:
    """The vPLM a recipe describes, answering as the bare backbone does until it is trained.

    Raises:
        InvalidSpec: the PET module does not fit the backbone, or takes more than 64 MiB.
    """
    spec = module_spec(recipe, backbone)
    data = weights.encode(initial_tensors(spec, backbone.shape, recipe.seed), spec)
    vplm = Vplm(
        name=str(recipe.name),
        spec=spec,
        display_name=recipe.display_name,
        labels=dict(recipe.labels),
        exactness=recipe.exactness,
    )
    return NewVplm(vplm, data, weights.sha256_hex(data))
