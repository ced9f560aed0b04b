"""Stores that do conditional writes themselves, over obstore: S3 services, and memory for tests."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import MemoryStore, S3Store

from smile.errors import Aborted, FailedPrecondition, NotFound, Unavailable
from smile.limits import CHUNK_BYTES_MAX, MIB
from smile.store.objects import (
    LIST_KEYS_MAX,
    Object,
    ObjectInfo,
    S3Options,
    check_key,
    check_prefix,
    probe_store,
)

if TYPE_CHECKING:
    from obstore import UpdateVersion

PART_BYTES = 8 * MIB
PARTS_AT_ONCE = 4
RETRIES_MAX = 2
RETRY_AFTER_S = 1.0
CREATE_BUCKET_S_MAX = 10.0
STREAM_S_MAX = 3600.0  # one whole request; a stalled one ends by its read timeout
_DENIED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403 Forbidden")

_Backend: TypeAlias = S3Store | MemoryStore


def memory_store() -> RemoteStore:
    """A store that is gone with the process."""
    return RemoteStore(MemoryStore(), "memory", timeout_s=10.0)


def s3_store(bucket: str, options: S3Options) -> RemoteStore:
    """The bucket of an S3 service, which the first probe makes where it is missing."""
    signed = bool(options.access_key)
    keys = (
        {"access_key_id": options.access_key, "secret_access_key": options.secret_key}
        if signed
        else {"skip_signature": True}
    )
    backend = S3Store(
        bucket,
        endpoint=options.endpoint,
        region=options.region,
        virtual_hosted_style_request=False,
        client_options={
            "allow_http": options.endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=options.connect_timeout_s),
            "timeout": timedelta(seconds=STREAM_S_MAX),
            "read_timeout": timedelta(seconds=options.timeout_s),
        },
        retry_config={
            "max_retries": RETRIES_MAX,
            "retry_timeout": timedelta(seconds=options.retry_s),
        },
        **keys,
    )
    name = f"S3 bucket '{bucket}' at {options.endpoint}"
    return RemoteStore(backend, name, timeout_s=options.timeout_s, bucket_signed=signed)


class RemoteStore:
    """`ObjectStore` over an obstore backend with conditional writes.

    Args:
        backend: Where the bytes are.
        name: What messages call it.
        timeout_s: For every operation on one small object.
        bucket_signed: Whether the bucket may be made by a signed request.
    """

    def __init__(
        self, backend: _Backend, name: str, *, timeout_s: float, bucket_signed: bool = False
    ) -> None:
        self._backend = backend
        self._name = name
        self._timeout_s = timeout_s
        self._bucket_signed = bucket_signed

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._faults():
            try:
                async with asyncio.timeout(self._timeout_s):
                    await obstore.put_async(self._backend, check_key(key), data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        with self._faults():
            try:
                return await self._swap(check_key(key), data, etag)
            except (AlreadyExistsError, PreconditionError) as error:
                raise Aborted(f"{key} was changed by someone else") from error

    async def _swap(self, key: str, data: bytes, etag: str | None) -> str:
        """One conditional write. Some servers (Ceph RGW 16) compare `If-Match` without its quotes,
        so a refused tag is sent once more bare; an object that did change refuses both forms."""
        if etag is None:
            return await self._put(key, data, "create")
        try:
            return await self._put(key, data, {"e_tag": etag})
        except PreconditionError:
            if etag.strip('"') == etag:
                raise
            return await self._put(key, data, {"e_tag": etag.strip('"')})

    async def _put(self, key: str, data: bytes, mode: Literal["create"] | UpdateVersion) -> str:
        async with asyncio.timeout(self._timeout_s):
            result = await obstore.put_async(self._backend, key, data, mode=mode)
        return _tag(result["e_tag"])

    async def get(self, key: str) -> Object | None:
        with self._faults():
            try:
                async with asyncio.timeout(self._timeout_s):
                    result = await obstore.get_async(self._backend, check_key(key))
                    data = bytes(await result.bytes_async())
            except FileNotFoundError as error:
                self._missing_key(error)
                return None
        return Object(data, _tag(result.meta["e_tag"]))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        with self._faults():
            await obstore.put_async(
                self._backend,
                check_key(key),
                chunks,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )

    async def get_stream(
        self, key: str, chunk_bytes: int = CHUNK_BYTES_MAX
    ) -> AsyncIterator[bytes]:
        with self._faults():
            try:
                result = await obstore.get_async(self._backend, check_key(key))
            except FileNotFoundError as error:
                self._missing_key(error)
                raise NotFound(f"object {key} does not exist") from None
            async for data in result.stream(chunk_bytes):
                whole = bytes(data)
                for start in range(0, len(whole), chunk_bytes):
                    yield whole[start : start + chunk_bytes]

    async def list_objects(
        self, prefix: str, *, after: str | None = None, limit: int = LIST_KEYS_MAX
    ) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        with self._faults():
            async with asyncio.timeout(self._timeout_s):
                async for page in obstore.list(
                    self._backend, check_prefix(prefix), offset=after, chunk_size=min(limit, 1000)
                ):
                    found += [ObjectInfo(m["path"], m["size"], m["last_modified"]) for m in page]
                    if len(found) >= limit:
                        break
        return found[:limit]

    async def list_folders(self, prefix: str) -> list[str]:
        with self._faults():
            async with asyncio.timeout(self._timeout_s):
                result = await obstore.list_with_delimiter_async(
                    self._backend, check_prefix(prefix)
                )
        return sorted(path.rpartition("/")[2] for path in result["common_prefixes"])

    async def delete(self, key: str) -> None:
        with self._faults():
            async with asyncio.timeout(self._timeout_s):
                try:
                    await obstore.delete_async(self._backend, check_key(key))
                except FileNotFoundError:
                    return

    async def probe(self) -> None:
        try:
            await probe_store(self)
        except FailedPrecondition as error:
            if error.reason != "BUCKET_MISSING" or not self._bucket_signed:
                raise
            await self._create_bucket()
            await probe_store(self)

    async def _create_bucket(self) -> None:
        """PUT on the bucket itself, which obstore has no call for, with a signature it makes."""
        assert isinstance(self._backend, S3Store)
        with self._faults():
            url = await obstore.sign_async(self._backend, "PUT", "", timedelta(seconds=60))
        await asyncio.to_thread(self._put_bucket, url)

    def _put_bucket(self, url: str) -> None:
        request = urllib.request.Request(url, method="PUT")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=CREATE_BUCKET_S_MAX):  # noqa: S310
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 409:
                return  # someone else made it meanwhile
            raise self._denied(f"answered {error.code} when asked to make it") from None
        except OSError as error:
            raise self._away(type(error).__name__) from None

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """obstore's errors as ours. What the store said is kept as cause, not told to callers."""
        try:
            yield
        except TimeoutError as error:
            raise self._away(f"no answer within {self._timeout_s:g} s") from error
        except FileNotFoundError as error:
            self._missing_key(error)
            raise
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._denied("refused the credentials") from error
        except BaseError as error:
            text = str(error)
            if "NoSuchBucket" in text:
                raise self._bucket_missing() from error
            if any(word in text for word in _DENIED):
                raise self._denied("refused the credentials") from error
            raise self._away("the request failed") from error

    def _missing_key(self, error: FileNotFoundError) -> None:
        """Raise where not the key is missing, but the bucket."""
        if "NoSuchBucket" in str(error):
            raise self._bucket_missing() from error

    def _bucket_missing(self) -> FailedPrecondition:
        return FailedPrecondition(f"{self._name} does not exist", reason="BUCKET_MISSING")

    def _denied(self, what: str) -> FailedPrecondition:
        return FailedPrecondition(f"{self._name} {what}", reason="STORE_ACCESS_DENIED")

    def _away(self, what: str) -> Unavailable:
        return Unavailable(
            f"{self._name} is away: {what}",
            reason="STORE_UNAVAILABLE",
            retry_after=RETRY_AFTER_S,
        )


def _tag(etag: str | None) -> str:
    if not etag:
        raise FailedPrecondition(
            "this object store cannot be used: it gives no entity tags", reason="STORE_UNSUITABLE"
        )
    return etag
