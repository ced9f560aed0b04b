"""Versions in storage, for the service that serves them: which one an alias points to, and its
bytes.

For use outside of any request, with a channel that presents the service key; every call acts for
the tenant of the name it is about.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import grpc

from smile import codec
from smile.errors import Aborted, DataCorrupted, DeadlineExceeded, Unavailable
from smile.limits import MIB
from smile.names import VersionName, VplmName
from smile.resources import VplmVersion
from smile.rpc.channel import acting_for
from smile.rpc.status import calling
from smile.v1 import storage_pb2, storage_pb2_grpc

AHEAD_BYTES_MAX = 64 * MIB


class VersionReader:
    """Reads versions. Every method raises `smile.errors`; another tenant's version is `NotFound`.

    Bytes that came with `fetch` are kept until the `download` that follows, the oldest not longer
    than memory of `AHEAD_BYTES_MAX` allows.

    Args:
        channel: To storage.
        resolve_timeout_s: Of finding a version.
        download_timeout_s: Of fetching its bytes.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        resolve_timeout_s: float = 2.0,
        download_timeout_s: float = 30.0,
    ) -> None:
        self._stub = storage_pb2_grpc.StorageServiceStub(channel)
        self._resolve_timeout_s = resolve_timeout_s
        self._download_timeout_s = download_timeout_s
        self._ahead: OrderedDict[tuple[VersionName, str], bytes] = OrderedDict()
        self._ahead_bytes = 0

    async def resolve(self, name: VplmName, alias: str) -> VplmVersion:
        """The version `alias` points to now."""
        request = storage_pb2.ResolveAliasRequest(name=str(name), alias=alias)
        with _answering(), acting_for(name.tenant):
            found = await self._stub.ResolveAlias(request, timeout=self._resolve_timeout_s)
        return codec.version_from_pb(found)

    async def fetch(self, name: VplmName, alias: str) -> VplmVersion:
        """As `resolve`, for a version whose bytes are wanted next: small ones come along."""
        request = storage_pb2.FetchAliasRequest(name=str(name), alias=alias)
        with _answering(), acting_for(name.tenant):
            found = await self._stub.FetchAlias(request, timeout=self._resolve_timeout_s)
        version = codec.version_from_pb(found.version)
        if found.content:
            self._keep((VersionName.parse(version.name), version.digest), found.content)
        return version

    async def get(self, name: VersionName) -> VplmVersion:
        """One version's manifest."""
        request = storage_pb2.GetVersionRequest(name=str(name))
        with _answering(), acting_for(name.vplm.tenant):
            found = await self._stub.GetVersion(request, timeout=self._resolve_timeout_s)
        return codec.version_from_pb(found)

    async def download(self, name: VersionName, digest: str) -> AsyncGenerator[bytes, None]:
        """The version's bytes in pieces. Who takes them checks that they have this digest.

        Raises:
            Aborted: the name is another version's now, whose manifest has another digest.
        """
        if (data := self._ahead.pop((name, digest), None)) is not None:
            self._ahead_bytes -= len(data)
            yield data
            return
        request = storage_pb2.DownloadVersionRequest(name=str(name))
        with acting_for(name.vplm.tenant):
            call = self._stub.DownloadVersion(request, timeout=self._download_timeout_s)
        try:
            with _answering():
                async for message in call:
                    part = message.WhichOneof("part")
                    if part == "chunk":
                        yield message.chunk
                    elif part == "version" and message.version.digest != digest:
                        raise Aborted(
                            f"{name} has the digest {message.version.digest} now, and had {digest} "
                            f"when it was looked up: it was deleted and created again"
                        )
                    elif part is None:
                        raise DataCorrupted(f"{name}: storage sent a message that is empty")
        finally:
            call.cancel()  # ends the stream where the bytes were refused half-way

    def _keep(self, version: tuple[VersionName, str], data: bytes) -> None:
        self._ahead_bytes += len(data) - len(self._ahead.pop(version, b""))
        self._ahead[version] = data
        while self._ahead_bytes > AHEAD_BYTES_MAX:
            _, oldest = self._ahead.popitem(last=False)
            self._ahead_bytes -= len(oldest)


@contextmanager
def _answering() -> Iterator[None]:
    """Turn gRPC's errors inside into ours. Time that ran out here was ours, not a caller's."""
    try:
        with calling():
            yield
    except DeadlineExceeded as error:
        raise Unavailable("storage did not answer in time") from error
