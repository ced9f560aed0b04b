"""For operators: local encoders, tables and domains in storage's catalogue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from smile.artifacts import ENCODER_FILE, Artifact, ArtifactFile, ArtifactKind
from smile.client.artifact_files import described, make_folder_of
from smile.client.calls import (
    PAGE_ROWS,
    READ_TIMEOUT_S,
    TRANSFER_TIMEOUT_S,
    WRITE_TIMEOUT_S,
    Calls,
    asking,
    every,
    new_request_id,
)
from smile.client.chunks import MeasuredFile, Sending, save
from smile.client.retry import retried
from smile.codec.artifacts import artifact_from_pb, artifact_to_pb
from smile.errors import AlreadyExists, InvalidArgument
from smile.names import ArtifactName
from smile.v1 import artifacts_pb2


class ArtifactCalls(Calls):
    """Local encoders, tables, domains. All of it is for the operator's key."""

    async def push_artifact(
        self,
        artifact: str,
        path: str | os.PathLike[str],
        *,
        note: str = "",
        on_progress: Callable[[int, int], None] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Artifact:
        """Stores a local encoder's file, a table's folder, or a folder of domains under an id.
        Files that are stored already are not sent again, so a push that broke off goes on where it
        was.

        Args:
            on_progress: Hears bytes sent and bytes in all.
            timeout: Seconds, for one file.

        Raises:
            InvalidArgument: there is none of these at `path`, or a domain's parent is not there.
            DataCorrupted: it is damaged.
            AlreadyExists: there is an artifact of this name; artifacts never change.
        """
        name = ArtifactName.parse(_full(artifact))
        found, paths = await asyncio.to_thread(described, str(name), Path(path), note)
        files = {file: await MeasuredFile.measure(one) for file, one in paths.items()}
        total, sent = sum(file.size_bytes for file in files.values()), 0
        for file in files.values():
            await self._put(file, timeout or TRANSFER_TIMEOUT_S)
            sent += file.size_bytes
            if on_progress is not None:
                on_progress(sent, total)
        wanted = artifact_to_pb(found)
        wanted.files.extend(
            artifacts_pb2.ArtifactFile(name=each, size_bytes=file.size_bytes, digest=file.digest)
            for each, file in files.items()
        )
        request = artifacts_pb2.CreateArtifactRequest(
            artifact_id=name.artifact,
            artifact=wanted,
            request_id=request_id or new_request_id(),
        )
        with asking():
            made = await self._connection.artifacts.CreateArtifact(request, timeout=WRITE_TIMEOUT_S)
        return artifact_from_pb(made)

    async def pull_artifact(
        self,
        artifact: str,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,
    ) -> Artifact:
        """Fetches an artifact to `path`, which is new: a local encoder's file, a table's folder, or
        a folder of domains. It appears only when complete and checked.

        Raises:
            NotFound: there is no such artifact.
            AlreadyExists: there is something at `path`.
            DataCorrupted: bytes are not those that were stored.
        """
        place = Path(path)
        if await asyncio.to_thread(place.exists):
            raise AlreadyExists(f"{place} is there already")
        found = await self.artifact(artifact)
        try:
            await asyncio.to_thread(place.parent.mkdir, parents=True, exist_ok=True)
            with TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as folder:
                whole = Path(folder) / "whole"
                await asyncio.to_thread(whole.mkdir)
                for file in found.files:
                    chunks = self._chunks(found, file, timeout or TRANSFER_TIMEOUT_S)
                    await asyncio.to_thread(make_folder_of, whole / file.name)
                    await save(chunks, whole / file.name, digest=file.digest)
                source = whole
                if found.kind is ArtifactKind.ENCODER:
                    source = whole / ENCODER_FILE
                await asyncio.to_thread(source.rename, place)
        except OSError as error:
            raise InvalidArgument(
                f"cannot write {place}: {error.strerror or type(error).__name__}",
                reason="FILE_UNWRITABLE",
            ) from error
        return found

    async def artifact(self, artifact: str, *, timeout: float | None = None) -> Artifact:
        """One artifact's manifest. Raises `NotFound`."""
        request = artifacts_pb2.GetArtifactRequest(name=_full(artifact))
        with asking():
            found = await self._connection.artifacts.GetArtifact(
                request, timeout=timeout or READ_TIMEOUT_S
            )
        return artifact_from_pb(found)

    async def artifacts(
        self, *, page_size: int = PAGE_ROWS, timeout: float | None = None
    ) -> AsyncGenerator[Artifact, None]:
        """All artifacts by id, read page by page; `timeout` is for a page."""

        async def page(token: str) -> tuple[list[Artifact], str]:
            request = artifacts_pb2.ListArtifactsRequest(page_size=page_size, page_token=token)
            with asking():
                answer = await self._connection.artifacts.ListArtifacts(
                    request, timeout=timeout or READ_TIMEOUT_S
                )
            return [artifact_from_pb(each) for each in answer.artifacts], answer.next_page_token

        async for artifact in every(page):
            yield artifact

    async def delete_artifact(self, artifact: str, *, timeout: float | None = None) -> None:
        """Deletes an artifact; who has fetched it goes on with it. Raises `NotFound`."""
        request = artifacts_pb2.DeleteArtifactRequest(
            name=_full(artifact), request_id=new_request_id()
        )
        with asking():
            await self._connection.artifacts.DeleteArtifact(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )

    async def _put(self, file: MeasuredFile, timeout: float) -> None:
        header = artifacts_pb2.PutArtifactFileHeader(size_bytes=file.size_bytes, digest=file.digest)

        async def messages() -> AsyncIterator[artifacts_pb2.PutArtifactFileRequest]:
            yield artifacts_pb2.PutArtifactFileRequest(header=header)
            async for chunk in file.chunks():
                yield artifacts_pb2.PutArtifactFileRequest(chunk=chunk)

        async def attempt() -> None:
            sending = Sending(messages())
            with asking(), sending.telling():
                await self._connection.artifacts.PutArtifactFile(aiter(sending), timeout=timeout)

        await retried(attempt)

    async def _chunks(
        self, artifact: Artifact, file: ArtifactFile, timeout: float
    ) -> AsyncIterator[bytes]:
        request = artifacts_pb2.ReadArtifactFileRequest(name=artifact.name, file=file.name)
        with asking():
            async for part in self._connection.artifacts.ReadArtifactFile(request, timeout=timeout):
                yield part.chunk


def _full(artifact: str) -> str:
    """A full name from an id or a full name. Raises `InvalidName`."""
    return str(ArtifactName.parse(artifact if "/" in artifact else f"artifacts/{artifact}"))
