"""Public adapters: the modules that the operator offers to every tenant."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Unpack

from smile import codec
from smile.client import options as o
from smile.client.calls import (
    PAGE_ROWS,
    READ_TIMEOUT_S,
    TRANSFER_TIMEOUT_S,
    WRITE_TIMEOUT_S,
    asking,
    every,
    new_request_id,
)
from smile.client.chunks import Sending, pieces
from smile.client.options import AdapterOptions
from smile.client.porting import encoded, installed, read_folder
from smile.client.retry import retried
from smile.client.vplms import VplmCalls
from smile.names import VersionName
from smile.resources import PublicAdapter
from smile.v1 import creator_pb2, resources_pb2


class AdapterCalls(VplmCalls):
    """Finding public adapters; for the operator, also offering them."""

    async def adapters(
        self, *, page_size: int = PAGE_ROWS, timeout: float | None = None
    ) -> AsyncGenerator[PublicAdapter, None]:
        """The public adapters by id, read page by page; `timeout` is for a page."""

        async def page(token: str) -> tuple[list[PublicAdapter], str]:
            with asking():
                response = await self._connection.creator.ListPublicAdapters(
                    creator_pb2.ListPublicAdaptersRequest(page_size=page_size, page_token=token),
                    timeout=timeout or READ_TIMEOUT_S,
                )
            found = [codec.adapter_from_pb(each) for each in response.public_adapters]
            return found, response.next_page_token

        async for adapter in every(page):
            yield adapter

    async def adapter(self, adapter: str, *, timeout: float | None = None) -> PublicAdapter:
        """One public adapter. Raises `NotFound`."""
        with asking():
            request = creator_pb2.GetPublicAdapterRequest(name=str(self._scope.adapter(adapter)))
            found = await self._connection.creator.GetPublicAdapter(
                request, timeout=timeout or READ_TIMEOUT_S
            )
        return codec.adapter_from_pb(found)

    async def publish_adapter(
        self,
        adapter: str,
        path: str | os.PathLike[str],
        *,
        backbone: str,
        **options: Unpack[AdapterOptions],
    ) -> PublicAdapter:
        """Offers what a folder holds to every tenant: what `import_vplm` reads. For the operator.
        Keywords: `AdapterOptions`.

        Raises:
            InvalidArgument, FailedPrecondition: as `import_vplm`.
            AlreadyExists: there is an adapter of this name.
        """
        o.known(options, AdapterOptions)
        found = await self.backbone(backbone)
        with installed():
            module = await asyncio.to_thread(read_folder, Path(path), found, options)
        data = await asyncio.to_thread(encoded, module)
        with asking():
            header = self._header(adapter, options)
            header.public_adapter.spec.CopyFrom(codec.spec_to_pb(module.spec))
            header.public_adapter.size_bytes = len(data)
            header.public_adapter.digest = hashlib.sha256(data).hexdigest()
        return await self._publish(header, data, options)

    async def publish_version(
        self, adapter: str, version: str, **options: Unpack[AdapterOptions]
    ) -> PublicAdapter:
        """Offers a tenant's version, by its full name, to every tenant. For the operator; its
        tenant has pointed the alias `public` to it. Keywords: `AdapterOptions`, those that say what
        it is.

        Raises:
            NotFound: there is no such version.
            FailedPrecondition: its tenant does not offer it.
            AlreadyExists: there is an adapter of this name.
        """
        o.known(options, AdapterOptions)
        with asking():
            header = self._header(adapter, options)
            header.version = str(VersionName.parse(version))
        return await self._publish(header, b"", options)

    async def delete_adapter(self, adapter: str, *, timeout: float | None = None) -> None:
        """Offers an adapter no more; what was made of it stays. For the operator. `NotFound`."""
        with asking():
            request = creator_pb2.DeletePublicAdapterRequest(
                name=str(self._scope.adapter(adapter)), request_id=new_request_id()
            )
            await self._connection.creator.DeletePublicAdapter(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )

    def _header(
        self, adapter: str, options: AdapterOptions
    ) -> creator_pb2.CreatePublicAdapterHeader:
        return creator_pb2.CreatePublicAdapterHeader(
            public_adapter_id=self._scope.adapter(adapter).adapter,
            public_adapter=resources_pb2.PublicAdapter(
                display_name=options.get("display_name", ""),
                description=options.get("description", ""),
                license=options.get("license", ""),
                source=options.get("source", ""),
                tags=dict(options.get("tags", {})),
            ),
            request_id=options.get("request_id") or new_request_id(),
        )

    async def _publish(
        self,
        header: creator_pb2.CreatePublicAdapterHeader,
        data: bytes,
        options: AdapterOptions,
    ) -> PublicAdapter:
        async def messages() -> AsyncIterator[creator_pb2.CreatePublicAdapterRequest]:
            yield creator_pb2.CreatePublicAdapterRequest(header=header)
            for chunk in pieces(data):
                yield creator_pb2.CreatePublicAdapterRequest(chunk=chunk)

        async def attempt() -> resources_pb2.PublicAdapter:
            sending = Sending(messages())
            with asking(), sending.telling():
                return await self._connection.creator.CreatePublicAdapter(
                    aiter(sending), timeout=options.get("timeout", TRANSFER_TIMEOUT_S)
                )

        return codec.adapter_from_pb(await retried(attempt))
