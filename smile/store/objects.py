"""Durable bytes under keys: the one interface to a directory, to S3 and to memory.

Keys are '/'-separated, like `tenants/acme/vplms/topics/vplm.json`. What all stores promise, also
between processes: `put_if_absent` lets one writer win, `compare_and_swap` loses no update,
`put_stream` shows nothing before the last byte is durable, and listings are in byte order of the
whole key.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from smile.errors import FailedPrecondition, InvalidArgument
from smile.limits import CHUNK_BYTES_MAX

KEY_CHARS_MAX = 512
LIST_KEYS_MAX = 1000
ETAG_CHARS = 32
PROBE_PREFIX = "probe/"
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Object:
    """An object's bytes, and the tag that changes with them: the store's, else of their digest."""

    data: bytes
    given_etag: str = ""

    @property
    def etag(self) -> str:
        return self.given_etag or hashlib.sha256(self.data).hexdigest()[:ETAG_CHARS]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of an object. `size` in bytes."""

    key: str
    size: int
    modified: datetime


T = TypeVar("T")
Reading: TypeAlias = Generator[str, Object | None, T]


class ObjectStore(Protocol):
    """Bytes under keys.

    Every method may raise `Unavailable`, and `FailedPrecondition` where permission is missing.
    """

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a key that has no bytes yet; False where it has."""
        ...

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        """Replace the bytes tagged `etag` (None: there are none yet). The new tag, or `Aborted`."""
        ...

    async def get(self, key: str) -> Object | None:
        """A small object whole."""
        ...

    async def read(self, reading: Reading[T]) -> T:
        """What `reading` returns, which yields keys and is sent the objects there, or None: for
        objects one of which names the next. It may run in another thread, and may raise.
        """
        ...

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Write or replace a key; nothing is visible unless `chunks` ends without raising."""
        ...

    def get_stream(self, key: str, chunk_bytes: int = CHUNK_BYTES_MAX) -> AsyncIterator[bytes]:
        """The bytes in chunks of at most `chunk_bytes`. `NotFound` where there are none."""
        ...

    async def list_objects(
        self, prefix: str, *, after: str | None = None, limit: int = LIST_KEYS_MAX
    ) -> list[ObjectInfo]:
        """At most `limit` objects under the folder `prefix` (ending in '/'), keys past `after`."""
        ...

    async def list_folders(self, prefix: str) -> list[str]:
        """Names directly under the folder `prefix` that hold objects further down, sorted."""
        ...

    async def delete(self, key: str) -> None:
        """Remove a key; absent is fine."""
        ...

    async def probe(self) -> None:
        """Write, read, refuse to overwrite, and delete: raises where the store cannot be used."""
        ...


class ProbedStore(ObjectStore, Protocol):
    """What a store tells of itself, and can do besides.

    Attributes:
        name: What messages and operators call it; no credentials.
        shared: Whether other processes see the same.
        durable: Whether it outlives this process.
    """

    @property
    def name(self) -> str: ...

    @property
    def shared(self) -> bool: ...

    @property
    def durable(self) -> bool: ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the end. `NotFound` where there are none."""
        ...

    async def versioned(self) -> bool:
        """Whether what is overwritten or deleted can be had back. `FailedPrecondition` if that is
        not told.
        """
        ...

    async def prepare(self) -> None:
        """Make what is missing and was asked for: a bucket, its versioning. For every start."""
        ...


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach an S3 service. Empty keys leave requests unsigned.

    Attributes:
        create_bucket: Make the bucket where it is missing; wants signed requests.
        keep_versions: Have the bucket keep old versions.
    """

    endpoint: str
    access_key: str = ""
    secret_key: str = ""
    region: str = "us-east-1"
    timeout_s: float = 30.0
    connect_timeout_s: float = 3.0
    retry_s: float = 5.0
    create_bucket: bool = True
    keep_versions: bool = False


def open_store(url: str, s3: S3Options | None = None) -> ProbedStore:
    """The store at `file:///path`, `s3://bucket` or `memory://`. Does no I/O.

    Raises:
        InvalidArgument: the URL is none of these, or S3's options are missing.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _directory(url)
    if parts.scheme == "s3":
        return _s3(url, s3)
    if parts.scheme == "memory" and not parts.netloc and not parts.path:
        from smile.store.remote import memory_store  # noqa: PLC0415

        return memory_store()
    raise InvalidArgument(
        f"expected file:///absolute/path, s3://bucket or memory://, got {url[:80]!r}"
    )


def _directory(url: str) -> ProbedStore:
    from smile.store.directory import DirectoryStore  # noqa: PLC0415

    parts = urlsplit(url)
    path = unquote(parts.path)
    if (
        parts.netloc not in ("", "localhost")
        or not path.strip("/")
        or path[0] != "/"
        or parts.query
        or parts.fragment
    ):
        raise InvalidArgument(f"expected file:///absolute/path, got {url[:80]!r}")
    return DirectoryStore(Path(path))


def _s3(url: str, options: S3Options | None) -> ProbedStore:
    from smile.store.remote import s3_store  # noqa: PLC0415

    parts = urlsplit(url)
    bucket = parts.netloc
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket) or parts.path.strip("/"):
        raise InvalidArgument(f"expected s3://bucket, 3 to 63 of a-z 0-9 . -, got {url[:80]!r}")
    if options is None:
        raise InvalidArgument("an s3:// store needs an endpoint")
    return s3_store(bucket, options)


def check_key(key: str) -> str:
    """`key` if it is well-formed; keys are made by us, so a bad one is refused loudly.

    Raises:
        InvalidArgument: it is empty, too long, absolute, or has a segment like '..'.
    """
    if len(key) > KEY_CHARS_MAX or not all(_SEGMENT.fullmatch(part) for part in key.split("/")):
        raise InvalidArgument(
            f"an object key has at most {KEY_CHARS_MAX} characters in segments of A-Z a-z 0-9 . _ "
            f"= - that begin with a letter or digit, got {key[:80]!r} ({len(key)} characters)",
            reason="OBJECT_KEY_INVALID",
        )
    return key


def check_prefix(prefix: str) -> str:
    """`prefix` if it names a folder: empty, or a key and '/'. Raises `InvalidArgument`."""
    if prefix:
        check_key(prefix.removesuffix("/") if prefix.endswith("/") else "")
    return prefix


async def read_one_by_one(get: Callable[[str], Awaitable[Object | None]], reading: Reading[T]) -> T:
    """What `read` of a store does whose every `get` is a call of its own."""
    try:
        key = next(reading)
        while True:
            key = reading.send(await get(key))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def probe_store(store: ObjectStore) -> None:
    """What `probe` of every store does.

    Raises:
        FailedPrecondition: the store accepts requests and does not keep its promises.
    """
    key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    written = await store.put_if_absent(key, b"1")
    try:
        found = await store.get(key)
        _promised(written and found is not None and found.data == b"1", "gives back what it took")
        _promised(not await store.put_if_absent(key, b"2"), "refuses to create a key twice")
    finally:
        await store.delete(key)


def _promised(kept: bool, promise: str) -> None:
    if not kept:
        raise FailedPrecondition(
            f"this object store cannot be used: it is not one that {promise}",
            reason="STORE_UNSUITABLE",
        )
