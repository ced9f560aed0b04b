"""vPLM records in storage, for the service that makes them.

For use with a channel that presents the service key; calls act for the tenant of `acting_for`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from smile import codec
from smile.client.adapter_records import OfferedAdapter
from smile.client.chunks import Sending, pieces
from smile.client.retry import retried
from smile.names import TenantName, VplmName
from smile.resources import Backbone, Derivation, Exactness, VersionOrigin, Vplm
from smile.rpc.status import calling
from smile.v1 import resources_pb2, storage_pb2, storage_pb2_grpc


@dataclass(frozen=True, slots=True)
class FirstVersion:
    """The stored form of a new vPLM's version 1. `digest` is its SHA-256 in hex; `backbone` decides
    which tensors this and later versions must hold; `derived_from` is the public adapter whose
    module it has."""

    data: bytes = field(repr=False)
    digest: str
    backbone: Backbone
    derived_from: Derivation | None = None


@dataclass(frozen=True, slots=True)
class ArrivingVersion:
    """A version 1 whose bytes are still on their way, as its sender declared it."""

    size_bytes: int
    digest: str
    backbone: Backbone
    note: str = ""


@dataclass(frozen=True, slots=True)
class VplmChange:
    """A change to a vPLM. Of the new values only those in `fields` count; `etag` may be empty."""

    name: VplmName
    fields: tuple[str, ...]
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    exactness: Exactness | None = None


@dataclass(frozen=True, slots=True)
class VplmDeletion:
    """A vPLM to delete; `for_good` without a way back. `etag` may be empty."""

    name: VplmName
    request_id: str
    etag: str = ""
    for_good: bool = False


class VplmRecords:
    """Commits, reads, changes and deletes vPLM records. Every method raises `smile.errors`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = storage_pb2_grpc.StorageServiceStub(channel)

    async def commit(self, vplm: Vplm, version: FirstVersion, request_id: str) -> Vplm:
        """Store a new vPLM with its first version: all or nothing, once per `request_id`."""

        async def messages() -> AsyncIterator[storage_pb2.CommitVplmRequest]:
            header = storage_pb2.CommitVplmHeader(
                vplm=codec.vplm_to_pb(vplm),
                size_bytes=len(version.data),
                digest=version.digest,
                request_id=request_id,
                backbone=codec.backbone_to_pb(version.backbone),
            )
            if version.derived_from is not None:
                header.derived_from.CopyFrom(codec.derivation_to_pb(version.derived_from))
                header.origin = codec.ORIGINS.to_pb(VersionOrigin.ADAPTER)
            yield storage_pb2.CommitVplmRequest(header=header)
            for chunk in pieces(version.data):
                yield storage_pb2.CommitVplmRequest(chunk=chunk)

        async def attempt() -> resources_pb2.Vplm:
            with calling():
                return await self._stub.CommitVplm(messages())

        return codec.vplm_from_pb(await retried(attempt))

    async def refer(self, vplm: Vplm, offered: OfferedAdapter, request_id: str) -> Vplm:
        """Store a new vPLM whose first version is a public adapter as it is, without its bytes."""
        header = storage_pb2.CommitVplmHeader(
            vplm=codec.vplm_to_pb(vplm),
            size_bytes=offered.adapter.size_bytes,
            digest=offered.adapter.digest,
            request_id=request_id,
            backbone=codec.backbone_to_pb(offered.backbone),
            origin=codec.ORIGINS.to_pb(VersionOrigin.ADAPTER),
            derived_from=codec.derivation_to_pb(
                Derivation(offered.adapter.name, offered.adapter.digest)
            ),
            by_reference=True,
        )

        async def messages() -> AsyncIterator[storage_pb2.CommitVplmRequest]:
            yield storage_pb2.CommitVplmRequest(header=header)

        async def attempt() -> resources_pb2.Vplm:
            with calling():
                return await self._stub.CommitVplm(messages())

        return codec.vplm_from_pb(await retried(attempt))

    async def adopt(
        self,
        vplm: Vplm,
        version: ArrivingVersion,
        chunks: AsyncIterator[bytes],
        request_id: str,
    ) -> Vplm:
        """Store a new vPLM with weights of its owner's, passed on as they come and never held.

        Not retried: the bytes are gone. Who sent them sends them again under the same id.
        """

        async def messages() -> AsyncIterator[storage_pb2.CommitVplmRequest]:
            header = storage_pb2.CommitVplmHeader(
                vplm=codec.vplm_to_pb(vplm),
                size_bytes=version.size_bytes,
                digest=version.digest,
                request_id=request_id,
                backbone=codec.backbone_to_pb(version.backbone),
                origin=codec.ORIGINS.to_pb(VersionOrigin.IMPORT),
                note=version.note,
            )
            yield storage_pb2.CommitVplmRequest(header=header)
            async for chunk in chunks:
                yield storage_pb2.CommitVplmRequest(chunk=chunk)

        sending = Sending(messages())
        with calling(), sending.telling():
            made = await self._stub.CommitVplm(aiter(sending))
        return codec.vplm_from_pb(made)

    async def get(self, name: VplmName) -> Vplm:
        with calling():
            return codec.vplm_from_pb(
                await self._stub.GetVplm(storage_pb2.GetVplmRecordRequest(name=str(name)))
            )

    async def page(
        self, tenant: TenantName, page_size: int, page_token: str, *, show_deleted: bool = False
    ) -> tuple[list[Vplm], str]:
        """Up to `page_size` vPLMs by id, and the token of the next page."""
        request = storage_pb2.ListVplmRecordsRequest(
            parent=str(tenant),
            page_size=page_size,
            page_token=page_token,
            show_deleted=show_deleted,
        )
        with calling():
            response = await self._stub.ListVplms(request)
        return [codec.vplm_from_pb(vplm) for vplm in response.vplms], response.next_page_token

    async def update(self, change: VplmChange, request_id: str) -> Vplm:
        request = storage_pb2.UpdateVplmRecordRequest(
            vplm=resources_pb2.Vplm(
                name=str(change.name),
                display_name=change.display_name,
                labels=dict(change.labels),
                etag=change.etag,
                exactness=codec.exactness_to_pb(change.exactness),
            ),
            update_mask=FieldMask(paths=change.fields),
            request_id=request_id,
        )
        with calling():
            return codec.vplm_from_pb(await self._stub.UpdateVplm(request))

    async def delete(self, deletion: VplmDeletion) -> None:
        request = storage_pb2.DeleteVplmRecordRequest(
            name=str(deletion.name),
            etag=deletion.etag,
            request_id=deletion.request_id,
            for_good=deletion.for_good,
        )
        with calling():
            await self._stub.DeleteVplm(request)

    async def undelete(self, name: VplmName, uid: str, etag: str, request_id: str) -> Vplm:
        """The vPLM as it is again."""
        request = storage_pb2.UndeleteVplmRecordRequest(
            name=str(name), uid=uid, etag=etag, request_id=request_id
        )
        with calling():
            return codec.vplm_from_pb(await self._stub.UndeleteVplm(request))
