"""Versions of a vPLM, their bytes and the aliases that point to them: what storage answers."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

from smile import codec
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
from smile.errors import DataCorrupted, InvalidArgument
from smile.resources import (
    SERVING,
    AliasMoved,
    Canary,
    VersionDiff,
    VersionOrigin,
    Vplm,
    VplmVersion,
)
from smile.v1 import resources_pb2, storage_pb2


class VersionCalls(Calls):
    """Listing, moving, downloading and uploading versions."""

    async def versions(
        self,
        vplm: str,
        *,
        show_deleted: bool = False,
        page_size: int = PAGE_ROWS,
        timeout: float | None = None,
    ) -> AsyncGenerator[VplmVersion, None]:
        """A vPLM's versions, newest first, read page by page; `timeout` is for a page. With
        `show_deleted` also those that can be had back: they have a `delete_time`.
        """
        parent = str(self._scope.vplm(vplm))

        async def page(token: str) -> tuple[list[VplmVersion], str]:
            with asking():
                response = await self._connection.storage.ListVersions(
                    storage_pb2.ListVersionsRequest(
                        parent=parent,
                        page_size=page_size,
                        page_token=token,
                        show_deleted=show_deleted,
                    ),
                    timeout=timeout or READ_TIMEOUT_S,
                )
            return [codec.version_from_pb(v) for v in response.versions], response.next_page_token

        async for version in every(page):
            yield version

    async def version(
        self, vplm: str, number: int | None = None, *, timeout: float | None = None
    ) -> VplmVersion:
        """Version `number` of a vPLM; without a number, the one that serves. Raises `NotFound`."""
        if number is None:
            return await self._resolve(vplm, SERVING, timeout)
        with asking():
            request = storage_pb2.GetVersionRequest(name=str(self._scope.version(vplm, number)))
            found = await self._connection.storage.GetVersion(
                request, timeout=timeout or READ_TIMEOUT_S
            )
        return codec.version_from_pb(found)

    async def set_alias(
        self,
        vplm: str,
        alias: str,
        version: int,
        *,
        canary: int | None = None,
        weight: float | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> Vplm:
        """Points `alias` to a version; `serving` is what inference uses.

        With `canary`, another version answers the share `weight` (0 to 1) of the requests; which
        ones, their routing keys decide. The next call ends a split: naming either version alone
        promotes or aborts the canary.

        Raises:
            NotFound: there is no such vPLM or version.
            InvalidArgument: a canary without a weight, or the reverse, or of the same version.
            Aborted: `etag` is given and the vPLM has changed since.
        """
        if (canary is None) is not (weight is None):
            raise InvalidArgument(
                f"a canary has a version and a weight, got version {canary} and weight {weight}"
            )
        with asking():
            request = storage_pb2.SetAliasRequest(
                name=str(self._scope.vplm(vplm)),
                alias=alias,
                version=version,
                etag=etag,
                request_id=new_request_id(),
            )
            if canary is not None and weight is not None:
                request.canary.CopyFrom(codec.canary_to_pb(Canary(canary, weight)))
            moved = await self._connection.storage.SetAlias(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return codec.vplm_from_pb(moved)

    async def roll_back(
        self, vplm: str, alias: str = SERVING, *, etag: str = "", timeout: float | None = None
    ) -> Vplm:
        """Takes an alias back to what it pointed to before, a split of its traffic included; once
        more, one move further.

        Raises:
            NotFound: there is no such vPLM or alias.
            FailedPrecondition: no earlier target is remembered, or its version is deleted.
            Aborted: `etag` is given and the vPLM has changed since.
        """
        with asking():
            request = storage_pb2.RollbackAliasRequest(
                name=str(self._scope.vplm(vplm)),
                alias=alias,
                etag=etag,
                request_id=new_request_id(),
            )
            moved = await self._connection.storage.RollbackAlias(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return codec.vplm_from_pb(moved)

    async def alias_moves(
        self, vplm: str, alias: str = "", *, timeout: float | None = None
    ) -> list[AliasMoved]:
        """The last moves of an alias, newest first; without an alias, of all. Raises `NotFound`."""
        with asking():
            request = storage_pb2.ListAliasMovesRequest(
                parent=str(self._scope.vplm(vplm)), alias=alias
            )
            found = await self._connection.storage.ListAliasMoves(
                request, timeout=timeout or READ_TIMEOUT_S
            )
        return [codec.alias_moved_from_pb(move) for move in found.moves]

    async def delete_version(
        self,
        vplm: str,
        number: int,
        *,
        for_good: bool = False,
        etag: str = "",
        timeout: float | None = None,
    ) -> VplmVersion:
        """Deletes a version that no alias names. `undelete_version` has it back until the
        `purge_time` of what is returned; with `for_good` nothing has.

        Raises:
            NotFound: there is no such version.
            FailedPrecondition: an alias names it.
            Aborted: `etag` is given and the vPLM has changed since.
        """
        with asking():
            request = storage_pb2.DeleteVersionRequest(
                name=str(self._scope.version(vplm, number)),
                etag=etag,
                request_id=new_request_id(),
                for_good=for_good,
            )
            deleted = await self._connection.storage.DeleteVersion(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return codec.version_from_pb(deleted)

    async def undelete_version(
        self, vplm: str, number: int, *, timeout: float | None = None
    ) -> VplmVersion:
        """Has a deleted version back. Raises `NotFound` where that is too late."""
        with asking():
            request = storage_pb2.UndeleteVersionRequest(
                name=str(self._scope.version(vplm, number)), request_id=new_request_id()
            )
            back = await self._connection.storage.UndeleteVersion(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return codec.version_from_pb(back)

    async def diff_versions(
        self,
        vplm: str,
        base: int,
        other: int,
        *,
        other_vplm: str = "",
        timeout: float | None = None,
    ) -> VersionDiff:
        """What differs from version `base` to version `other`, which may be another vPLM's.

        Raises:
            NotFound: there is no such version.
            DataCorrupted: the stored bytes of one are damaged.
        """
        with asking():
            request = storage_pb2.DiffVersionsRequest(
                base=str(self._scope.version(vplm, base)),
                other=str(self._scope.version(other_vplm or vplm, other)),
            )
            diff = await self._connection.storage.DiffVersions(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return codec.diff_from_pb(diff)

    async def download_version(
        self,
        vplm: str,
        path: str | os.PathLike[str],
        *,
        number: int | None = None,
        timeout: float | None = None,
    ) -> VplmVersion:
        """Writes a version's safetensors bytes to `path`; without a number, the one that serves.

        Raises:
            DataCorrupted: the bytes do not match the version's digest; `path` is left as it was.
            InvalidArgument: `path` cannot be written.
        """
        version = await self.version(vplm, number)
        chunks = self._download(version, timeout or TRANSFER_TIMEOUT_S)
        async with aclosing(chunks):
            await save(chunks, Path(path), digest=version.digest)
        return version

    async def upload_version(
        self,
        vplm: str,
        path: str | os.PathLike[str],
        *,
        note: str = "",
        on_progress: Callable[[int, int], None] | None = None,
        timeout: float | None = None,
    ) -> VplmVersion:
        """Stores the safetensors file at `path` as one more version of a vPLM, served by nobody
        until an alias points to it. `on_progress` hears bytes sent and bytes in all.

        Raises:
            InvalidArgument: the file cannot be read, is empty, or does not hold exactly the tensors
                of the vPLM's spec, all finite.
        """
        file = await MeasuredFile.measure(Path(path))
        header = storage_pb2.PutVersionHeader(
            parent=str(self._scope.vplm(vplm)),
            size_bytes=file.size_bytes,
            digest=file.digest,
            origin=codec.ORIGINS.to_pb(VersionOrigin.IMPORT),
            note=note,
            request_id=new_request_id(),
        )

        async def messages() -> AsyncIterator[storage_pb2.PutVersionRequest]:
            yield storage_pb2.PutVersionRequest(header=header)
            async for chunk in file.chunks(on_progress):
                yield storage_pb2.PutVersionRequest(chunk=chunk)

        async def attempt() -> resources_pb2.VplmVersion:
            sending = Sending(messages())
            with asking(), sending.telling():
                return await self._connection.storage.PutVersion(
                    aiter(sending), timeout=timeout or TRANSFER_TIMEOUT_S
                )

        return codec.version_from_pb(await retried(attempt))

    async def _resolve(self, vplm: str, alias: str, timeout: float | None) -> VplmVersion:
        with asking():
            request = storage_pb2.ResolveAliasRequest(name=str(self._scope.vplm(vplm)), alias=alias)
            found = await self._connection.storage.ResolveAlias(
                request, timeout=timeout or READ_TIMEOUT_S
            )
        return codec.version_from_pb(found)

    async def _download(self, version: VplmVersion, timeout: float) -> AsyncGenerator[bytes, None]:
        request = storage_pb2.DownloadVersionRequest(name=version.name)
        with asking():
            call = self._connection.storage.DownloadVersion(request, timeout=timeout)
            try:
                async for response in call:
                    if response.WhichOneof("part") == "chunk":
                        yield response.chunk
                    elif response.version.digest != version.digest:
                        raise DataCorrupted(f"{version.name} changed its digest, which it must not")
            finally:
                call.cancel()
