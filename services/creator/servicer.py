"""`CreatorService` on the wire: decode, ask the domain, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty

from services.creator.adapters import Derived
from services.creator.catalogue import Catalogue
from services.creator.imports import ImportedVplm, checked
from services.creator.recipes import Recipe
from services.creator.vplms import Stored, VplmMaker
from smile import codec
from smile.client.adapter_records import OfferedAdapter
from smile.client.records import VplmChange, VplmDeletion
from smile.names import AdapterName, BackboneName, TenantName, VersionName, VplmName, check_id
from smile.resources import PublicAdapter, Vplm
from smile.rpc.auth import current_principal, own
from smile.rpc.channel import acting_for
from smile.rpc.streams import opened
from smile.v1 import creator_pb2, creator_pb2_grpc, resources_pb2

FULL_NAME = creator_pb2.DESCRIPTOR.services_by_name["CreatorService"].full_name

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Name = TypeVar("_Name", VplmName, TenantName)


class CreatorServicer(creator_pb2_grpc.CreatorServiceServicer):
    """Answers tenants about backbones and vPLMs; calls to storage act for the tenant asking."""

    def __init__(self, catalogue: Catalogue, stored: Stored) -> None:
        self._catalogue = catalogue
        self._records = stored.records
        self._adapters = stored.adapters
        self._maker = VplmMaker(catalogue, stored)

    async def ListBackbones(
        self, request: creator_pb2.ListBackbonesRequest, context: _Context
    ) -> creator_pb2.ListBackbonesResponse:
        backbones, token = self._catalogue.page(request.page_size, request.page_token)
        return creator_pb2.ListBackbonesResponse(
            backbones=map(codec.backbone_to_pb, backbones), next_page_token=token
        )

    async def GetBackbone(
        self, request: creator_pb2.GetBackboneRequest, context: _Context
    ) -> resources_pb2.Backbone:
        return codec.backbone_to_pb(self._catalogue.get(BackboneName.parse(request.name)))

    async def CreateVplm(
        self, request: creator_pb2.CreateVplmRequest, context: _Context
    ) -> resources_pb2.Vplm:
        tenant = _mine(request.parent, TenantName.parse).tenant
        if request.public_adapter or request.base:
            return codec.vplm_to_pb(await self._derive(request, VplmName(tenant, request.vplm_id)))
        recipe = _recipe(request, VplmName(tenant, request.vplm_id))
        backbone = BackboneName.parse(request.backbone)
        with acting_for(tenant):
            if request.validate_only:
                return codec.vplm_to_pb(await self._maker.check(recipe, backbone))
            vplm = await self._maker.create(recipe, backbone, request.request_id)
        return codec.vplm_to_pb(vplm)

    async def _derive(self, request: creator_pb2.CreateVplmRequest, name: VplmName) -> Vplm:
        wanted = _derived(request, name)
        with acting_for(name.tenant):
            if request.validate_only:
                return await self._maker.check_derived(wanted)
            return await self._maker.derive(wanted, request.request_id)

    async def ImportVplm(
        self, request: AsyncIterator[creator_pb2.ImportVplmRequest], context: _Context
    ) -> resources_pb2.Vplm:
        first, chunks = await opened(request)
        tenant = _mine(first.header.parent, TenantName.parse).tenant
        new = _imported(first.header, VplmName(tenant, first.header.vplm_id))
        with acting_for(tenant):
            vplm = await self._maker.adopt(new, chunks, first.header.request_id)
        return codec.vplm_to_pb(vplm)

    async def GetVplm(
        self, request: creator_pb2.GetVplmRequest, context: _Context
    ) -> resources_pb2.Vplm:
        name = _mine(request.name, VplmName.parse)
        with acting_for(name.tenant):
            return codec.vplm_to_pb(await self._records.get(name))

    async def ListVplms(
        self, request: creator_pb2.ListVplmsRequest, context: _Context
    ) -> creator_pb2.ListVplmsResponse:
        parent = _mine(request.parent, TenantName.parse)
        with acting_for(parent.tenant):
            vplms, token = await self._records.page(
                parent, request.page_size, request.page_token, show_deleted=request.show_deleted
            )
        return creator_pb2.ListVplmsResponse(
            vplms=map(codec.vplm_to_pb, vplms), next_page_token=token
        )

    async def UpdateVplm(
        self, request: creator_pb2.UpdateVplmRequest, context: _Context
    ) -> resources_pb2.Vplm:
        change = VplmChange(
            name=_mine(request.vplm.name, VplmName.parse),
            fields=tuple(request.update_mask.paths),
            display_name=request.vplm.display_name,
            labels=dict(request.vplm.labels),
            etag=request.vplm.etag,
            exactness=codec.exactness_from_pb(request.vplm.exactness),
        )
        with acting_for(change.name.tenant):
            return codec.vplm_to_pb(await self._records.update(change, request.request_id))

    async def DeleteVplm(self, request: creator_pb2.DeleteVplmRequest, context: _Context) -> Empty:
        name = _mine(request.name, VplmName.parse)
        deletion = VplmDeletion(name, request.request_id, request.etag, request.for_good)
        with acting_for(name.tenant):
            await self._records.delete(deletion)
        return Empty()

    async def UndeleteVplm(
        self, request: creator_pb2.UndeleteVplmRequest, context: _Context
    ) -> resources_pb2.Vplm:
        name = _mine(request.name, VplmName.parse)
        with acting_for(name.tenant):
            back = await self._records.undelete(name, request.uid, request.etag, request.request_id)
        return codec.vplm_to_pb(back)

    async def ListPublicAdapters(
        self, request: creator_pb2.ListPublicAdaptersRequest, context: _Context
    ) -> creator_pb2.ListPublicAdaptersResponse:
        adapters, token = await self._adapters.page(request.page_size, request.page_token)
        return creator_pb2.ListPublicAdaptersResponse(
            public_adapters=map(codec.adapter_to_pb, adapters), next_page_token=token
        )

    async def GetPublicAdapter(
        self, request: creator_pb2.GetPublicAdapterRequest, context: _Context
    ) -> resources_pb2.PublicAdapter:
        offered = await self._adapters.get(AdapterName.parse(request.name))
        return codec.adapter_to_pb(offered.adapter)

    async def CreatePublicAdapter(
        self,
        request: AsyncIterator[creator_pb2.CreatePublicAdapterRequest],
        context: _Context,
    ) -> resources_pb2.PublicAdapter:
        first, chunks = await opened(request)
        header = first.header
        name = AdapterName(check_id(header.public_adapter_id, "public adapter"))
        header.public_adapter.name = str(name)
        if header.version:
            version = VersionName.parse(header.version)
            texts = header.public_adapter
            made = await self._adapters.publish(texts, version, header.request_id)
        else:
            offered = self._offered(codec.adapter_from_pb(header.public_adapter))
            made = await self._adapters.commit(offered, chunks, header.request_id)
        return codec.adapter_to_pb(made)

    async def DeletePublicAdapter(
        self, request: creator_pb2.DeletePublicAdapterRequest, context: _Context
    ) -> Empty:
        await self._adapters.delete(AdapterName.parse(request.name), request.request_id)
        return Empty()

    def _offered(self, adapter: PublicAdapter) -> OfferedAdapter:
        """Raises `InvalidArgument` where it is not made for the backbone here."""
        backbone = self._catalogue.get(BackboneName(adapter.spec.backbone))
        return OfferedAdapter(replace(adapter, spec=checked(adapter.spec, backbone)), backbone)


def _mine(name: str, parser: Callable[[str], _Name]) -> _Name:
    return own(name, parser, current_principal())


def _recipe(request: creator_pb2.CreateVplmRequest, name: VplmName) -> Recipe:
    return Recipe(
        name=name,
        pet=codec.pet_from_pb(request.pet),
        head=codec.head_from_pb(request.head),
        dtype=codec.PRECISIONS.from_pb(request.precision),
        display_name=request.display_name,
        labels=dict(request.labels),
        seed=request.seed,
        domain=request.domain,
        exactness=codec.exactness_from_pb(request.exactness),
    )


def _derived(request: creator_pb2.CreateVplmRequest, name: VplmName) -> Derived:
    return Derived(
        name=name,
        source=_source(request),
        head=codec.head_from_pb(request.head) if request.HasField("head") else None,
        dtype=codec.PRECISIONS.from_pb(request.precision) if request.precision else None,
        display_name=request.display_name,
        labels=dict(request.labels),
        seed=request.seed,
        domain=request.domain,
        exactness=codec.exactness_from_pb(request.exactness),
    )


def _source(request: creator_pb2.CreateVplmRequest) -> AdapterName | VplmName | VersionName:
    if request.public_adapter:
        return AdapterName.parse(request.public_adapter)
    principal = current_principal()
    if "/versions/" in request.base:
        return own(request.base, VersionName.parse, principal)
    return own(request.base, VplmName.parse, principal)


def _imported(header: creator_pb2.ImportVplmHeader, name: VplmName) -> ImportedVplm:
    return ImportedVplm(
        name=name,
        spec=codec.spec_from_pb(header.spec),
        size_bytes=header.size_bytes,
        digest=header.digest,
        display_name=header.display_name,
        labels=dict(header.labels),
        note=header.note,
    )
