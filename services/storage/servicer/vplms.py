"""`StorageService`: vPLMs, their versions, and what they cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
from google.protobuf import empty_pb2

from services.storage.aliases import AliasMove, Rollback
from services.storage.blobs import Declared
from services.storage.catalog import NewVplm, VplmChange
from services.storage.shelves import Shelves
from services.storage.trash import Restoration, VplmDeletion
from services.storage.usage import UsageAsked
from services.storage.version_trash import VersionDeletion
from services.storage.versions import NewVersion
from smile import codec
from smile.errors import InvalidArgument, PermissionDenied
from smile.names import ApiKeyName, TenantName, VersionName, VplmName
from smile.pages import page_size
from smile.resources import SERVING, VersionOrigin
from smile.rpc.auth import Principal, Role, current_principal, own
from smile.rpc.streams import opened
from smile.v1 import resources_pb2, storage_pb2, storage_pb2_grpc

FULL_NAME = "smile.v1.StorageService"
UPDATABLE = ("display_name", "labels", "exactness")

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class StorageServicer(storage_pb2_grpc.StorageServiceServicer):
    """Decodes, asks the catalog, encodes."""

    def __init__(self, shelves: Shelves) -> None:
        self._catalog = shelves.catalog
        self._versions = shelves.versions
        self._trash = shelves.trash
        self._version_trash = shelves.version_trash
        self._diffs = shelves.diffs
        self._usage = shelves.usage

    async def CommitVplm(
        self, request: AsyncIterator[storage_pb2.CommitVplmRequest], context: Context
    ) -> resources_pb2.Vplm:
        first, chunks = await opened(request)
        return codec.vplm_to_pb(await self._catalog.commit(_new_vplm(first.header), chunks))

    async def GetVplm(
        self, request: storage_pb2.GetVplmRecordRequest, context: Context
    ) -> resources_pb2.Vplm:
        return codec.vplm_to_pb(await self._catalog.get(_vplm(request.name)))

    async def ListVplms(
        self, request: storage_pb2.ListVplmRecordsRequest, context: Context
    ) -> storage_pb2.ListVplmRecordsResponse:
        parent = own(request.parent, TenantName.parse, current_principal())
        shelf = self._trash if request.show_deleted else self._catalog
        vplms, token = await shelf.list_page(
            parent.tenant, page_size(request.page_size), request.page_token
        )
        return storage_pb2.ListVplmRecordsResponse(
            vplms=[codec.vplm_to_pb(vplm) for vplm in vplms], next_page_token=token
        )

    async def UpdateVplm(
        self, request: storage_pb2.UpdateVplmRecordRequest, context: Context
    ) -> resources_pb2.Vplm:
        return codec.vplm_to_pb(await self._catalog.update(_change(request)))

    async def DeleteVplm(
        self, request: storage_pb2.DeleteVplmRecordRequest, context: Context
    ) -> empty_pb2.Empty:
        wanted = VplmDeletion(
            _vplm(request.name), request.request_id, request.etag, request.for_good
        )
        await self._trash.delete(wanted)
        return empty_pb2.Empty()

    async def UndeleteVplm(
        self, request: storage_pb2.UndeleteVplmRecordRequest, context: Context
    ) -> resources_pb2.Vplm:
        wanted = Restoration(_vplm(request.name), request.request_id, request.uid, request.etag)
        return codec.vplm_to_pb(await self._trash.undelete(wanted))

    async def PutVersion(
        self, request: AsyncIterator[storage_pb2.PutVersionRequest], context: Context
    ) -> resources_pb2.VplmVersion:
        first, chunks = await opened(request)
        new = _new_version(first.header, current_principal())
        return codec.version_to_pb(await self._versions.put(new, chunks))

    async def GetVersion(
        self, request: storage_pb2.GetVersionRequest, context: Context
    ) -> resources_pb2.VplmVersion:
        return codec.version_to_pb(await self._versions.get(_version(request.name)))

    async def ResolveAlias(
        self, request: storage_pb2.ResolveAliasRequest, context: Context
    ) -> resources_pb2.VplmVersion:
        found = await self._versions.resolve(_vplm(request.name), request.alias)
        return codec.version_to_pb(found)

    async def FetchAlias(
        self, request: storage_pb2.FetchAliasRequest, context: Context
    ) -> storage_pb2.FetchAliasResponse:
        found, content = await self._versions.fetch(_vplm(request.name), request.alias)
        return storage_pb2.FetchAliasResponse(version=codec.version_to_pb(found), content=content)

    async def ListVersions(
        self, request: storage_pb2.ListVersionsRequest, context: Context
    ) -> storage_pb2.ListVersionsResponse:
        versions, token = await self._versions.list_page(
            _vplm(request.parent),
            page_size(request.page_size),
            request.page_token,
            show_deleted=request.show_deleted,
        )
        return storage_pb2.ListVersionsResponse(
            versions=[codec.version_to_pb(version) for version in versions],
            next_page_token=token,
        )

    async def DownloadVersion(
        self, request: storage_pb2.DownloadVersionRequest, context: Context
    ) -> AsyncIterator[storage_pb2.DownloadVersionResponse]:
        version, chunks = await self._versions.open(_version(request.name))
        yield storage_pb2.DownloadVersionResponse(version=codec.version_to_pb(version))
        async for chunk in chunks:
            yield storage_pb2.DownloadVersionResponse(chunk=chunk)

    async def SetAlias(
        self, request: storage_pb2.SetAliasRequest, context: Context
    ) -> resources_pb2.Vplm:
        move = AliasMove(
            name=_vplm(request.name),
            alias=request.alias,
            version=request.version,
            request_id=request.request_id,
            etag=request.etag,
            canary=codec.canary_from_pb(request.canary) if request.HasField("canary") else None,
            by=_who(),
        )
        return codec.vplm_to_pb(await self._catalog.set_alias(move))

    async def RollbackAlias(
        self, request: storage_pb2.RollbackAliasRequest, context: Context
    ) -> resources_pb2.Vplm:
        rollback = Rollback(
            name=_vplm(request.name),
            alias=request.alias or SERVING,
            request_id=request.request_id,
            etag=request.etag,
            by=_who(),
        )
        return codec.vplm_to_pb(await self._catalog.roll_back(rollback))

    async def ListAliasMoves(
        self, request: storage_pb2.ListAliasMovesRequest, context: Context
    ) -> storage_pb2.ListAliasMovesResponse:
        moves = await self._catalog.alias_moves(_vplm(request.parent), request.alias)
        return storage_pb2.ListAliasMovesResponse(moves=map(codec.alias_moved_to_pb, moves))

    async def DeleteVersion(
        self, request: storage_pb2.DeleteVersionRequest, context: Context
    ) -> resources_pb2.VplmVersion:
        wanted = VersionDeletion(
            _version(request.name), request.request_id, request.etag, request.for_good
        )
        return codec.version_to_pb(await self._version_trash.delete(wanted))

    async def UndeleteVersion(
        self, request: storage_pb2.UndeleteVersionRequest, context: Context
    ) -> resources_pb2.VplmVersion:
        name = _version(request.name)
        return codec.version_to_pb(await self._version_trash.undelete(name, request.request_id))

    async def DiffVersions(
        self, request: storage_pb2.DiffVersionsRequest, context: Context
    ) -> storage_pb2.VersionDiff:
        diff = await self._diffs.between(_version(request.base), _version(request.other))
        return codec.diff_to_pb(diff)

    async def GetUsage(
        self, request: storage_pb2.GetUsageRequest, context: Context
    ) -> storage_pb2.Usage:
        name = own(request.name, TenantName.parse, current_principal())
        days = None
        if request.first_day or request.last_day:
            days = self._usage.accounts.reports.range(request.first_day, request.last_day)
        asked = UsageAsked(page_size(request.page_size), request.page_token, days)
        return codec.usage_to_pb(await self._usage.of(name.tenant, asked))


def _vplm(name: str) -> VplmName:
    return own(name, VplmName.parse, current_principal())


def _who() -> str:
    """Who asks, for the record."""
    principal = current_principal()
    if principal.tenant is not None and principal.key_id is not None:
        return str(ApiKeyName(principal.tenant, principal.key_id))
    return str(principal.role)


def _version(name: str) -> VersionName:
    return own(name, VersionName.parse, current_principal())


def _new_vplm(header: storage_pb2.CommitVplmHeader) -> NewVplm:
    origin = codec.ORIGINS.from_pb(header.origin) if header.origin else VersionOrigin.INITIAL
    derived = header.HasField("derived_from")
    if derived is not (origin is VersionOrigin.ADAPTER) or (header.by_reference and not derived):
        raise InvalidArgument(f"origin 'adapter' alone has an adapter, got origin '{origin}'")
    derived_from = codec.derivation_from_pb(header.derived_from) if derived else None
    return NewVplm(
        name=_vplm(header.vplm.name),
        spec=codec.spec_from_pb(header.vplm.spec),
        backbone=codec.backbone_from_pb(header.backbone),
        declared=Declared(header.size_bytes, header.digest),
        request_id=header.request_id,
        display_name=header.vplm.display_name,
        labels=dict(header.vplm.labels),
        origin=origin,
        note=header.note,
        derived_from=derived_from,
        by_reference=header.by_reference,
        exactness=codec.exactness_from_pb(header.vplm.exactness),
    )


def _new_version(header: storage_pb2.PutVersionHeader, principal: Principal) -> NewVersion:
    origin = codec.ORIGINS.from_pb(header.origin)
    if principal.role is Role.TENANT and origin is not VersionOrigin.IMPORT:
        raise PermissionDenied(
            f"a tenant's own upload has origin 'import', got '{origin}'",
            reason="ORIGIN_NOT_ALLOWED",
        )
    return NewVersion(
        vplm=_vplm(header.parent),
        declared=Declared(header.size_bytes, header.digest),
        origin=origin,
        request_id=header.request_id,
        spec=codec.spec_from_pb(header.spec) if header.HasField("spec") else None,
        training_job=header.training_job,
        metrics=dict(header.metrics),
        note=header.note,
        training=codec.summary_from_pb(header.training) if header.HasField("training") else None,
    )


def _change(request: storage_pb2.UpdateVplmRecordRequest) -> VplmChange:
    paths = set(request.update_mask.paths)
    if not paths or not paths.issubset(UPDATABLE):
        raise InvalidArgument(
            f"update_mask names one or more of {', '.join(UPDATABLE)}, got "
            f"{', '.join(sorted(paths))[:200] or 'nothing'}",
            reason="UPDATE_MASK_INVALID",
        )
    vplm = request.vplm
    return VplmChange(
        name=_vplm(vplm.name),
        request_id=request.request_id,
        etag=vplm.etag,
        display_name=vplm.display_name if "display_name" in paths else None,
        labels=dict(vplm.labels) if "labels" in paths else None,
        exactness=codec.exactness_from_pb(vplm.exactness),
        sets_exactness="exactness" in paths,
    )
