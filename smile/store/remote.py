"""Stores that do conditional writes themselves, over obstore: S3 services, and memory for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

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
from smile.store.bucket import S3Bucket
from smile.store.objects import (
    LIST_KEYS_MAX,
    PROBE_PREFIX,
    Object,
    ObjectInfo,
    Reading,
    S3Options,
    check_key,
    check_prefix,
    probe_store,
    read_one_by_one,
)

if TYPE_CHECKING:
    from obstore import UpdateVersion

PART_BYTES = 8 * MIB
PARTS_AT_ONCE = 4
RETRIES_MAX = 2
RETRY_AFTER_S = 1.0
STREAM_S_MAX = 3600.0  # one whole request; a stalled one ends by its read timeout
_DENIED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403 Forbidden")

T = TypeVar("T")
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
    return RemoteStore(backend, name, timeout_s=options.timeout_s, bucket=S3Bucket(bucket, options))


class RemoteStore:
    """`ObjectStore` over an obstore backend with conditional writes.

    Args:
        backend: Where the bytes are.
        name: What messages call it.
        timeout_s: For every operation on one small object.
        bucket: What it lies in, if it is S3.
    """

    def __init__(
        self, backend: _Backend, name: str, *, timeout_s: float, bucket: S3Bucket | None = None
    ) -> None:
        self._backend = backend
        self._name = name
        self._timeout_s = timeout_s
        self._bucket = bucket

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

    async def read(self, reading: Reading[T]) -> T:
        return await read_one_by_one(self.get, reading)

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

    @property
    def name(self) -> str:
        return self._name

    @property
    def shared(self) -> bool:
        return self._bucket is not None

    @property
    def durable(self) -> bool:
        return self._bucket is not None

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._faults():
            try:
                async with asyncio.timeout(self._timeout_s):
                    data = await obstore.get_range_async(
                        self._backend, check_key(key), start=start, length=length
                    )
            except FileNotFoundError as error:
                self._missing_key(error)
                raise NotFound(f"object {key} does not exist") from None
        return bytes(data)

    async def versioned(self) -> bool:
        return self._bucket is not None and await self._bucket.versioned()

    async def prepare(self) -> None:
        if self._bucket is None:
            return
        try:
            await self.get(f"{PROBE_PREFIX}none")
        except FailedPrecondition as error:
            if error.reason != "BUCKET_MISSING" or not self._bucket.may_be_made:
                raise
            await self._bucket.create()
        if self._bucket.keeps_versions and not await self._bucket.versioned():
            await self._bucket.keep_versions()

    async def probe(self) -> None:
        try:
            await probe_store(self)
        except FailedPrecondition as error:
            if error.reason != "BUCKET_MISSING" or self._bucket is None:
                raise
            await self.prepare()
            await probe_store(self)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """obstore's errors as ours. What the store said is kept as cause, not told to callers."""
        try:
            yield
        except TimeoutError as error:
            raise self._away(f"no answer within {self._timeout_s:g} s") from error
        except FileNotFoundError as error:
            self._missing_key(error)
            raise self._away("what was being written is gone") from error  # an upload of parts
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
