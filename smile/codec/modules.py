"""Backbones and what a module consists of: PET spec, head spec, module spec."""

from __future__ import annotations

from collections.abc import Mapping

from smile import resources as r
from smile.codec.tables import KINDS, POOLINGS, PRECISIONS, PROJECTIONS, TASKS
from smile.model.specs import BackboneShape, HeadSpec, ModuleSpec, PetKind, PetSpec, Projection
from smile.names import BackboneName
from smile.v1 import resources_pb2

ADAPTER_RANK_DEFAULT = 24
LORA_RANK_DEFAULT = 8
DENSITIES_DEFAULT: Mapping[PetKind, float] = {
    PetKind.DIFF_PRUNING: 0.005,  # as Guo et al. 2021 report it
    PetKind.MASK_BERT: 0.05,  # as Zhao et al. 2020 start
}


def backbone_to_pb(backbone: r.Backbone) -> resources_pb2.Backbone:
    shape = backbone.shape
    return resources_pb2.Backbone(
        name=backbone.name,
        family=backbone.family,
        digest=backbone.digest,
        layers=shape.layers,
        hidden=shape.hidden,
        intermediate=shape.intermediate,
        heads=shape.heads,
        tokens_max=shape.tokens_max,
        parameters=shape.parameters,
        size_bytes=shape.bytes,
    )


def backbone_from_pb(message: resources_pb2.Backbone) -> r.Backbone:
    shape = BackboneShape(
        layers=message.layers,
        hidden=message.hidden,
        intermediate=message.intermediate,
        heads=message.heads,
        tokens_max=message.tokens_max,
        parameters=message.parameters,
        bytes=message.size_bytes,
    )
    return r.Backbone(message.name, message.family, message.digest, shape)


def pet_to_pb(pet: PetSpec) -> resources_pb2.PetSpec:
    return resources_pb2.PetSpec(
        kind=KINDS.to_pb(pet.kind),
        first_layer=pet.first_layer,
        rank=pet.rank,
        alpha=pet.alpha,
        targets=[PROJECTIONS.to_pb(target) for target in pet.targets],
        density=pet.density,
    )


def pet_from_pb(message: resources_pb2.PetSpec) -> PetSpec:
    """The spec with the platform's defaults in place of unset fields."""
    kind = KINDS.from_pb(message.kind)
    targets = tuple(
        sorted({PROJECTIONS.from_pb(t) for t in message.targets}, key=_projection_order)
    )
    rank, alpha = message.rank, message.alpha
    if kind in (PetKind.PFEIFFER, PetKind.HOULSBY):
        rank = rank or ADAPTER_RANK_DEFAULT
    if kind is PetKind.LORA:
        rank = rank or LORA_RANK_DEFAULT
        alpha = alpha or 2.0 * rank
        targets = targets or (Projection.QUERY, Projection.VALUE)
    first_layer = message.first_layer if message.HasField("first_layer") else None
    density = message.density or DENSITIES_DEFAULT.get(kind, 0.0)
    return PetSpec(kind, first_layer, rank, alpha, targets, density)


def _projection_order(projection: Projection) -> int:
    return list(Projection).index(projection)


def head_to_pb(head: HeadSpec) -> resources_pb2.HeadSpec:
    return resources_pb2.HeadSpec(
        task=TASKS.to_pb(head.task), labels=head.labels, pooling=POOLINGS.to_pb(head.pooling)
    )


def head_from_pb(message: resources_pb2.HeadSpec) -> HeadSpec:
    return HeadSpec(
        TASKS.from_pb(message.task), tuple(message.labels), POOLINGS.from_pb(message.pooling)
    )


def spec_to_pb(spec: ModuleSpec) -> resources_pb2.ModuleSpec:
    return resources_pb2.ModuleSpec(
        backbone=str(BackboneName(spec.backbone)),
        backbone_digest=spec.backbone_digest,
        pet=pet_to_pb(spec.pet),
        head=head_to_pb(spec.head),
        precision=PRECISIONS.to_pb(spec.dtype),
        domain=spec.domain,
    )


def spec_from_pb(message: resources_pb2.ModuleSpec) -> ModuleSpec:
    return ModuleSpec(
        backbone=BackboneName.parse(message.backbone).backbone,
        backbone_digest=message.backbone_digest,
        pet=pet_from_pb(message.pet),
        head=head_from_pb(message.head),
        dtype=PRECISIONS.from_pb(message.precision),
        domain=message.domain,
    )
