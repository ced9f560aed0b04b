"""Requests of vPLMs' versions."""

from __future__ import annotations

from smile.v1 import storage_pb2
from tests.contract.every_rpc.area import Area
from tests.contract.every_rpc.messages import new_id, put_version

AREA = Area(
    requests={
        "StorageService.PutVersion": lambda own, weights: put_version(own.vplm(), weights),
        "StorageService.GetVersion": lambda own, _: storage_pb2.GetVersionRequest(
            name=f"{own.vplm()}/versions/2"
        ),
        "StorageService.ResolveAlias": lambda own, _: storage_pb2.ResolveAliasRequest(
            name=own.vplm()
        ),
        "StorageService.FetchAlias": lambda own, _: storage_pb2.FetchAliasRequest(name=own.vplm()),
        "StorageService.ListVersions": lambda own, _: storage_pb2.ListVersionsRequest(
            parent=own.vplm()
        ),
        "StorageService.DownloadVersion": lambda own, _: storage_pb2.DownloadVersionRequest(
            name=f"{own.vplm()}/versions/1"
        ),
        "StorageService.SetAlias": lambda own, _: storage_pb2.SetAliasRequest(
            name=own.vplm(), alias="next", version=1, request_id=new_id()
        ),
        "StorageService.RollbackAlias": lambda own, _: storage_pb2.RollbackAliasRequest(
            name=own.vplm(), alias="moved", request_id=new_id()
        ),
        "StorageService.ListAliasMoves": lambda own, _: storage_pb2.ListAliasMovesRequest(
            parent=own.vplm()
        ),
        "StorageService.DeleteVersion": lambda own, _: storage_pb2.DeleteVersionRequest(
            name=f"{own.vplm()}/versions/3", request_id=new_id()
        ),
        "StorageService.UndeleteVersion": lambda own, _: storage_pb2.UndeleteVersionRequest(
            name=f"{own.vplm()}/versions/4", request_id=new_id()
        ),
        "StorageService.DiffVersions": lambda own, _: storage_pb2.DiffVersionsRequest(
            base=f"{own.vplm()}/versions/1", other=f"{own.vplm()}/versions/2"
        ),
        "StorageService.GetUsage": lambda own, _: storage_pb2.GetUsageRequest(name=own.parent),
    },
    names=frozenset(
        {
            "PutVersionHeader.parent",
            "GetVersionRequest.name",
            "ResolveAliasRequest.name",
            "FetchAliasRequest.name",
            "ListVersionsRequest.parent",
            "DownloadVersionRequest.name",
            "SetAliasRequest.name",
            "RollbackAliasRequest.name",
            "ListAliasMovesRequest.parent",
            "DeleteVersionRequest.name",
            "UndeleteVersionRequest.name",
            "DiffVersionsRequest.base",
            "DiffVersionsRequest.other",
            "GetUsageRequest.name",
        }
    ),
    unusable=frozenset(
        {
            "PutVersionHeader.training_job",
        }
    ),
    free=frozenset(
        {
            "page_token",
            "request_id",
            "etag",
            "note",
            "paths",
            "alias",
            "aliases",
            "canaries",
        }
    ),
)
