"""API keys: the only place that parses, makes or hashes them.

    smile_{tenant}_{key id}_{secret}   a tenant's
    smileop_{secret}                   the operator's
    smilesvc_{secret}                  the one that services share

A secret is 32 random bytes in base64url (43 characters), so an unsalted SHA-256 keeps it: there is
nothing to guess. Every malformed key gives the same `Unauthenticated` as a wrong one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

from smile.errors import InvalidName, Unauthenticated
from smile.names import TenantId, tenant_id

SECRET_PATTERN = r"[A-Za-z0-9_-]{43}"  # noqa: S105
KEY_ID_PATTERN = r"k[a-z2-7]{15}"
_SECRET = re.compile(SECRET_PATTERN)
_KEY_ID = re.compile(KEY_ID_PATTERN)
_KEY_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


class KeyKind(StrEnum):
    """Whose key it is; the value is its prefix."""

    TENANT = "smile"
    OPERATOR = "smileop"
    SERVICE = "smilesvc"


@dataclass(frozen=True, slots=True)
class KeyParts:
    """A well-formed key, taken apart. `tenant` and `key_id` are set for tenant keys only."""

    kind: KeyKind
    secret: str = field(repr=False)
    tenant: TenantId | None = None
    key_id: str | None = None

    @classmethod
    def parse(cls, key: str) -> KeyParts:
        """The parts of `key`. Raises `Unauthenticated` for anything malformed."""
        prefix, _, rest = key.partition("_")
        if prefix == KeyKind.TENANT:
            return cls._parse_tenant(rest)
        if prefix not in (KeyKind.OPERATOR, KeyKind.SERVICE) or not _SECRET.fullmatch(rest):
            raise unauthenticated()
        return cls(KeyKind(prefix), rest)

    @classmethod
    def _parse_tenant(cls, rest: str) -> KeyParts:
        parts = rest.split("_", 2)
        if len(parts) != 3 or not _KEY_ID.fullmatch(parts[1]) or not _SECRET.fullmatch(parts[2]):
            raise unauthenticated()
        try:
            tenant = tenant_id(parts[0])
        except InvalidName:
            raise unauthenticated() from None
        return cls(KeyKind.TENANT, parts[2], tenant, parts[1])

    @property
    def text(self) -> str:
        """The whole key as the caller sends it."""
        if self.kind is KeyKind.TENANT:
            return f"{self.kind}_{self.tenant}_{self.key_id}_{self.secret}"
        return f"{self.kind}_{self.secret}"

    @property
    def secret_sha256(self) -> str:
        """SHA-256 of the secret's characters, in hex: what storage keeps."""
        return hashlib.sha256(self.secret.encode("ascii")).hexdigest()


def new_tenant_key(tenant: TenantId) -> KeyParts:
    """A fresh key of `tenant`, from the system's random source."""
    key_id = "k" + "".join(secrets.choice(_KEY_ID_ALPHABET) for _ in range(15))
    return KeyParts(KeyKind.TENANT, secrets.token_urlsafe(32), tenant, key_id)


def new_key(kind: KeyKind) -> KeyParts:
    """A fresh operator or service key."""
    if kind is KeyKind.TENANT:
        raise ValueError("a tenant key needs its tenant: use new_tenant_key")
    return KeyParts(kind, secrets.token_urlsafe(32))


def same(left: str, right: str) -> bool:
    """Whether two secrets or hashes are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(left.encode("utf-8", "replace"), right.encode("utf-8", "replace"))


def unauthenticated() -> Unauthenticated:
    """The one answer to a missing, malformed, unknown or revoked key."""
    return Unauthenticated(
        "the call needs a valid API key in its metadata: 'authorization: Bearer <key>'"
    )
