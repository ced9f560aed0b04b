"""Requests of creator."""

from __future__ import annotations

from google.protobuf import field_mask_pb2

from smile.v1 import creator_pb2, resources_pb2
from tests.contract.every_rpc.area import Area
from tests.contract.every_rpc.messages import create_vplm, import_vplm, new_id

AREA = Area(
    requests={
        "CreatorService.ListBackbones": lambda own, _: creator_pb2.ListBackbonesRequest(),
        "CreatorService.GetBackbone": lambda own, _: creator_pb2.GetBackboneRequest(
            name="backbones/toy"
        ),
        "CreatorService.CreateVplm": lambda own, _: create_vplm(own),
        "CreatorService.ImportVplm": import_vplm,
        "CreatorService.GetVplm": lambda own, _: creator_pb2.GetVplmRequest(name=own.vplm()),
        "CreatorService.ListVplms": lambda own, _: creator_pb2.ListVplmsRequest(parent=own.parent),
        "CreatorService.UpdateVplm": lambda own, _: creator_pb2.UpdateVplmRequest(
            vplm=resources_pb2.Vplm(name=own.vplm(), display_name="Topics"),
            update_mask=field_mask_pb2.FieldMask(paths=["display_name"]),
            request_id=new_id(),
        ),
        "CreatorService.DeleteVplm": lambda own, _: creator_pb2.DeleteVplmRequest(
            name=own.vplm("doomed"), request_id=new_id()
        ),
        "CreatorService.UndeleteVplm": lambda own, _: creator_pb2.UndeleteVplmRequest(
            name=own.vplm("gone"), request_id=new_id()
        ),
        "CreatorService.ListPublicAdapters": lambda own, _: creator_pb2.ListPublicAdaptersRequest(),
        "CreatorService.GetPublicAdapter": lambda own, _: creator_pb2.GetPublicAdapterRequest(
            name="publicAdapters/general"
        ),
    },
    holding={
        ("CreatorService.CreateVplm", "base"): lambda own, _: create_vplm(
            own, backbone="", pet=None, head=None, base=own.vplm()
        ),
    },
    names=frozenset(
        {
            "CreateVplmRequest.parent",
            "CreateVplmRequest.base",
            "GetVplmRequest.name",
            "ListVplmsRequest.parent",
            "ImportVplmHeader.parent",
            "Vplm.name",
            "DeleteVplmRequest.name",
            "UndeleteVplmRequest.name",
        }
    ),
    shared=frozenset(
        {
            "GetBackboneRequest.name",
            "CreateVplmRequest.backbone",
            "CreateVplmRequest.public_adapter",
            "GetPublicAdapterRequest.name",
            "CreateVplmRequest.domain",
            "ModuleSpec.backbone",
            "ModuleSpec.domain",
            "TrainingSummary.domain",
        }
    ),
    output=frozenset(
        {
            "Vplm.uid",
        }
    ),
    free=frozenset(
        {
            "vplm_id",
            "uid",
            "labels",
            "backbone_digest",
            "spec_digest",
            "encoder_digest",
            "domain_digest",
        }
    ),
)
