"""Public adapters in storage, for the service that offers them.

For use with a channel that presents the service key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from smile import codec
from smile.client.chunks import Sending
from smile.errors import DataCorrupted
from smile.limits import MODULE_BYTES_MAX
from smile.names import AdapterName, VersionName
from smile.resources import Backbone, PublicAdapter
from smile.rpc.channel import acting_for
from smile.rpc.status import calling
from smile.v1 import adapters_pb2, adapters_pb2_grpc, resources_pb2


@dataclass(frozen=True, slots=True)
class OfferedAdapter:
    """An adapter, and the backbone it is made for."""

    adapter: PublicAdapter
    backbone: Backbone


class AdapterRecords:
    """Commits, reads and deletes adapters. Every method raises `smile.errors`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = adapters_pb2_grpc.AdapterRecordServiceStub(channel)

    async def commit(
        self, offered: OfferedAdapter, chunks: AsyncIterator[bytes], request_id: str
    ) -> PublicAdapter:
        """Store an adapter whose bytes are passed on as they come: all or nothing, once per
        `request_id`. Not retried: the bytes are gone.
        """

        async def messages() -> AsyncIterator[adapters_pb2.CommitAdapterRequest]:
            header = adapters_pb2.CommitAdapterHeader(
                adapter=codec.adapter_to_pb(offered.adapter),
                backbone=codec.backbone_to_pb(offered.backbone),
                request_id=request_id,
            )
            yield adapters_pb2.CommitAdapterRequest(header=header)
            async for chunk in chunks:
                yield adapters_pb2.CommitAdapterRequest(chunk=chunk)

        sending = Sending(messages())
        with calling(), sending.telling():
            return codec.adapter_from_pb(await self._stub.CommitAdapter(aiter(sending)))

    async def publish(
        self, texts: resources_pb2.PublicAdapter, version: VersionName, request_id: str
    ) -> PublicAdapter:
        """Store a version that its tenant offers; `texts` has a name, and what is said of it."""
        header = adapters_pb2.CommitAdapterHeader(
            adapter=texts, version=str(version), request_id=request_id
        )

        async def messages() -> AsyncIterator[adapters_pb2.CommitAdapterRequest]:
            yield adapters_pb2.CommitAdapterRequest(header=header)

        with acting_for(version.vplm.tenant), calling():
            return codec.adapter_from_pb(await self._stub.CommitAdapter(messages()))

    async def get(self, name: AdapterName) -> OfferedAdapter:
        with calling():
            found = await self._stub.GetAdapter(adapters_pb2.GetAdapterRequest(name=str(name)))
        return OfferedAdapter(
            codec.adapter_from_pb(found.adapter), codec.backbone_from_pb(found.backbone)
        )

    async def page(self, page_size: int, page_token: str) -> tuple[list[PublicAdapter], str]:
        """Up to `page_size` adapters by id, and the token of the next page."""
        request = adapters_pb2.ListAdaptersRequest(page_size=page_size, page_token=page_token)
        with calling():
            response = await self._stub.ListAdapters(request)
        return [codec.adapter_from_pb(each) for each in response.adapters], response.next_page_token

    async def download(self, name: AdapterName) -> bytes:
        """An adapter's bytes, which storage has checked."""
        data = bytearray()
        with calling():
            request = adapters_pb2.DownloadAdapterRequest(name=str(name))
            async for response in self._stub.DownloadAdapter(request):
                data += response.chunk
                if len(data) > MODULE_BYTES_MAX:
                    raise DataCorrupted(f"{name} has more than {MODULE_BYTES_MAX} bytes")
        return bytes(data)

    async def delete(self, name: AdapterName, request_id: str) -> None:
        request = adapters_pb2.DeleteAdapterRequest(name=str(name), request_id=request_id)
        with calling():
            await self._stub.DeleteAdapter(request)
