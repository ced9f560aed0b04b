"""`AdapterRecordService`: public adapters in and out, for the creator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
from google.protobuf import empty_pb2

from services.storage.adapters import Adapters, AdapterTexts, NewAdapter
from services.storage.blobs import Declared
from smile import codec
from smile.errors import InvalidArgument
from smile.names import AdapterName, VersionName
from smile.pages import page_size
from smile.rpc.auth import current_principal, own
from smile.rpc.streams import opened
from smile.v1 import adapters_pb2, adapters_pb2_grpc, resources_pb2

FULL_NAME = "smile.v1.AdapterRecordService"

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class AdapterRecordServicer(adapters_pb2_grpc.AdapterRecordServiceServicer):
    """Decodes, asks the adapters, encodes."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    async def CommitAdapter(
        self, request: AsyncIterator[adapters_pb2.CommitAdapterRequest], context: Context
    ) -> resources_pb2.PublicAdapter:
        first, chunks = await opened(request)
        header = first.header
        name = AdapterName.parse(header.adapter.name)
        if not header.version:
            return codec.adapter_to_pb(await self._adapters.commit(_new(name, header), chunks))
        version = own(header.version, VersionName.parse, current_principal())
        async for _ in chunks:
            raise InvalidArgument(
                "no bytes follow the name of a version, got some", reason="STREAM_TOO_LONG"
            )
        texts = _texts(header.adapter)
        made = await self._adapters.publish(name, version, texts, header.request_id)
        return codec.adapter_to_pb(made)

    async def GetAdapter(
        self, request: adapters_pb2.GetAdapterRequest, context: Context
    ) -> adapters_pb2.AdapterRecord:
        adapter, backbone = await self._adapters.get(AdapterName.parse(request.name))
        return adapters_pb2.AdapterRecord(
            adapter=codec.adapter_to_pb(adapter), backbone=codec.backbone_to_pb(backbone)
        )

    async def ListAdapters(
        self, request: adapters_pb2.ListAdaptersRequest, context: Context
    ) -> adapters_pb2.ListAdaptersResponse:
        adapters, token = await self._adapters.list_page(
            page_size(request.page_size), request.page_token
        )
        return adapters_pb2.ListAdaptersResponse(
            adapters=map(codec.adapter_to_pb, adapters), next_page_token=token
        )

    async def DownloadAdapter(
        self, request: adapters_pb2.DownloadAdapterRequest, context: Context
    ) -> AsyncIterator[adapters_pb2.DownloadAdapterResponse]:
        async for chunk in await self._adapters.open(AdapterName.parse(request.name)):
            yield adapters_pb2.DownloadAdapterResponse(chunk=chunk)

    async def DeleteAdapter(
        self, request: adapters_pb2.DeleteAdapterRequest, context: Context
    ) -> empty_pb2.Empty:
        await self._adapters.delete(AdapterName.parse(request.name), request.request_id)
        return empty_pb2.Empty()


def _new(name: AdapterName, header: adapters_pb2.CommitAdapterHeader) -> NewAdapter:
    adapter = codec.adapter_from_pb(header.adapter)
    return NewAdapter(
        name=name,
        spec=adapter.spec,
        backbone=codec.backbone_from_pb(header.backbone),
        declared=Declared(adapter.size_bytes, adapter.digest),
        request_id=header.request_id,
        texts=_texts(header.adapter),
    )


def _texts(adapter: resources_pb2.PublicAdapter) -> AdapterTexts:
    return AdapterTexts(
        display_name=adapter.display_name,
        description=adapter.description,
        license=adapter.license,
        source=adapter.source,
        tags=dict(adapter.tags),
        metrics=dict(adapter.metrics),
    )
