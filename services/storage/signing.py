"""Signed records: whoever can write to the bucket alone cannot change what a record says.

Each JSON document ends with a member `signature`: the HMAC-SHA-256 (RFC 2104) of its key and of its
bytes without that member. The key in the store is signed, too, so that no record passes for
another; an earlier state of the same record does pass, which only versioning of the bucket tells.
Records are signed with the first key and count with any, so a key can be changed without a pause:
put the new one first, `smile storage rebuild`, take the old one away.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from services.storage import keys
from smile.errors import DataCorrupted, InvalidArgument
from smile.limits import CHUNK_BYTES_MAX
from smile.maintenance import Signing
from smile.store.objects import LIST_KEYS_MAX, Object, ObjectInfo, ObjectStore, Reading

SECRET_BYTES_MIN = 32
T = TypeVar("T")
_SUFFIX = re.compile(
    rb',"signature":\{"key":"([a-z0-9][a-z0-9-]{0,31})","hmac_sha256":"([0-9a-f]{64})"\}\}\Z'
)
_KEY_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)


class SignatureState(enum.StrEnum):
    """What is known of a record's signature."""

    CURRENT = "current"
    OLD = "old"  # good, by a key that signs no more
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys by id; the first signs, all verify. `unsigned_accepted`: also records without one."""

    secrets: Mapping[str, bytes] = field(repr=False)
    unsigned_accepted: bool = False

    @classmethod
    def parse(cls, text: str, *, unsigned_accepted: bool = False) -> Keyring:
        """Keys as `id:secret`, by comma or line, the one that signs first; `#` begins a comment.

        Raises:
            InvalidArgument: there is none, or one is malformed; no secret is told.
        """
        found: dict[str, bytes] = {}
        for line in text.splitlines():
            for entry in line.partition("#")[0].split(","):
                if not entry.strip():
                    continue
                name, _, secret = entry.strip().partition(":")
                if not _KEY_ID.fullmatch(name) or name in found:
                    raise InvalidArgument(
                        "a signing key is `id:secret` with an id of its own of 1 to 32 of a-z, 0-9 "
                        f"and '-', got entry {len(found) + 1} without"
                    )
                found[name] = _secret(name, secret)
        if not found:
            raise InvalidArgument("there is no signing key in what was given")
        return cls(found, unsigned_accepted)

    @classmethod
    def read(cls, path: Path, *, unsigned_accepted: bool = False) -> Keyring:
        """The keys in a file. Raises `InvalidArgument`."""
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{path} cannot be read: {type(error).__name__}") from None
        return cls.parse(text, unsigned_accepted=unsigned_accepted)

    @property
    def current(self) -> str:
        """The id of the key that signs."""
        return next(iter(self.secrets))

    def view(self) -> Signing:
        """What operators are told."""
        return Signing(self.current, tuple(self.secrets), self.unsigned_accepted)

    def sign(self, key: str, document: bytes) -> bytes:
        """A document, which is a JSON object, with its signature."""
        mac = self._mac(self.current, key, document)
        member = f',"signature":{{"key":"{self.current}","hmac_sha256":"{mac}"}}}}'
        return document[:-1] + member.encode()

    def opened(self, key: str, data: bytes) -> tuple[bytes, SignatureState]:
        """A document without its signature, and what that was. Raises `DataCorrupted`."""
        match = _SUFFIX.search(data)
        if match is None:
            if self.unsigned_accepted:
                return data, SignatureState.MISSING
            raise _refused(key, "SIGNATURE_MISSING", "has no signature")
        document, name = data[: match.start()] + b"}", match[1].decode()
        if name not in self.secrets:
            raise _refused(key, "SIGNATURE_KEY_UNKNOWN", f"is signed with unknown key '{name}'")
        if not hmac.compare_digest(self._mac(name, key, document), match[2].decode()):
            raise _refused(key, "SIGNATURE_INVALID", "is not what was signed")
        state = SignatureState.CURRENT if name == self.current else SignatureState.OLD
        return document, state

    def _mac(self, name: str, key: str, document: bytes) -> str:
        message = b"smile record 1\n" + key.encode() + b"\n" + document
        return hmac.new(self.secrets[name], message, hashlib.sha256).hexdigest()


class SignedStore:
    """An object store whose records are signed when written and checked when read."""

    def __init__(self, inner: ObjectStore, keyring: Keyring) -> None:
        self._inner = inner
        self._keyring = keyring

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        return await self._inner.put_if_absent(key, self._sealed(key, data))

    async def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> str:
        return await self._inner.compare_and_swap(key, self._sealed(key, data), etag)

    async def get(self, key: str) -> Object | None:
        return self._opened(key, await self._inner.get(key))

    async def read(self, reading: Reading[T]) -> T:
        return await self._inner.read(self._checked(reading))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        await self._inner.put_stream(key, chunks)

    def get_stream(self, key: str, chunk_bytes: int = CHUNK_BYTES_MAX) -> AsyncIterator[bytes]:
        return self._inner.get_stream(key, chunk_bytes)

    async def list_objects(
        self, prefix: str, *, after: str | None = None, limit: int = LIST_KEYS_MAX
    ) -> list[ObjectInfo]:
        return await self._inner.list_objects(prefix, after=after, limit=limit)

    async def list_folders(self, prefix: str) -> list[str]:
        return await self._inner.list_folders(prefix)

    async def delete(self, key: str) -> None:
        await self._inner.delete(key)

    async def probe(self) -> None:
        await self._inner.probe()

    async def signature(self, key: str) -> SignatureState | None:
        """What a record's signature is; None where there is no record. Raises `DataCorrupted`."""
        found = await self._inner.get(key)
        if found is None or not keys.is_record(key):
            return None
        return self._keyring.opened(key, found.data)[1]

    async def sign_again(self, key: str) -> None:
        """Sign a record that counts with the present key. Raises `Aborted`, `DataCorrupted`."""
        if (found := await self._inner.get(key)) is not None:
            document, _ = self._keyring.opened(key, found.data)
            sealed = self._keyring.sign(key, document)
            await self._inner.compare_and_swap(key, sealed, found.etag)

    def _opened(self, key: str, found: Object | None) -> Object | None:
        """An object without its signature, if it is a record. Raises `DataCorrupted`."""
        if found is None or not keys.is_record(key):
            return found
        document, _ = self._keyring.opened(key, found.data)
        return Object(document, found.etag)

    def _checked(self, reading: Reading[T]) -> Reading[T]:
        """A reading that is sent what was signed."""
        try:
            key = next(reading)
            while True:
                key = reading.send(self._opened(key, (yield key)))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _sealed(self, key: str, data: bytes) -> bytes:
        return self._keyring.sign(key, data) if keys.is_record(key) else data


def _secret(name: str, text: str) -> bytes:
    try:
        secret = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"the secret of signing key '{name}' is not base64url") from None
    if len(secret) < SECRET_BYTES_MIN:
        raise InvalidArgument(
            f"the secret of signing key '{name}' has {len(secret)} bytes, at least "
            f"{SECRET_BYTES_MIN} are needed"
        )
    return secret


def _refused(key: str, reason: str, how: str) -> DataCorrupted:
    resource = keys.resource(key)
    return DataCorrupted(
        f"the record of {resource} {how}; restore it from a backup",
        reason=reason,
        metadata={"resource": resource},
    )
