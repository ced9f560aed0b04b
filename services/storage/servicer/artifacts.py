"""`ArtifactService`: local encoders and tables in and out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
from google.protobuf import empty_pb2

from services.storage.artifacts import Artifacts, NewArtifact
from services.storage.blobs import Declared
from smile.codec.artifacts import artifact_from_pb, artifact_to_pb
from smile.names import ArtifactName, check_id
from smile.pages import page_size
from smile.rpc.streams import opened
from smile.v1 import artifacts_pb2, artifacts_pb2_grpc

FULL_NAME = "smile.v1.ArtifactService"

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class ArtifactServicer(artifacts_pb2_grpc.ArtifactServiceServicer):
    """Decodes, asks the artifacts, encodes."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    async def PutArtifactFile(
        self, request: AsyncIterator[artifacts_pb2.PutArtifactFileRequest], context: Context
    ) -> empty_pb2.Empty:
        first, chunks = await opened(request)
        declared = Declared(first.header.size_bytes, first.header.digest)
        await self._artifacts.put_file(declared, chunks)
        return empty_pb2.Empty()

    async def CreateArtifact(
        self, request: artifacts_pb2.CreateArtifactRequest, context: Context
    ) -> artifacts_pb2.Artifact:
        name = ArtifactName(check_id(request.artifact_id, "artifact"))
        new = NewArtifact(name, artifact_from_pb(request.artifact), request.request_id)
        return artifact_to_pb(await self._artifacts.create(new))

    async def GetArtifact(
        self, request: artifacts_pb2.GetArtifactRequest, context: Context
    ) -> artifacts_pb2.Artifact:
        return artifact_to_pb(await self._artifacts.get(ArtifactName.parse(request.name)))

    async def ListArtifacts(
        self, request: artifacts_pb2.ListArtifactsRequest, context: Context
    ) -> artifacts_pb2.ListArtifactsResponse:
        found, token = await self._artifacts.list_page(
            page_size(request.page_size), request.page_token
        )
        return artifacts_pb2.ListArtifactsResponse(
            artifacts=map(artifact_to_pb, found), next_page_token=token
        )

    async def ReadArtifactFile(
        self, request: artifacts_pb2.ReadArtifactFileRequest, context: Context
    ) -> AsyncIterator[artifacts_pb2.ReadArtifactFileResponse]:
        async for chunk in await self._artifacts.open(
            ArtifactName.parse(request.name), request.file
        ):
            yield artifacts_pb2.ReadArtifactFileResponse(chunk=chunk)

    async def DeleteArtifact(
        self, request: artifacts_pb2.DeleteArtifactRequest, context: Context
    ) -> empty_pb2.Empty:
        await self._artifacts.delete(ArtifactName.parse(request.name), request.request_id)
        return empty_pb2.Empty()
