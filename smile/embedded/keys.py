"""The platform's own secrets: made at the first start, kept in a file only its owner can read."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from smile.embedded.directory import DataDirectory, write_atomically
from smile.errors import DataCorrupted
from smile.rpc.keys import KeyKind, KeyParts, new_key


@dataclass(frozen=True, slots=True)
class PlatformSecrets:
    """Keys of the platform.

    Attributes:
        operator_key: Creates tenants and keys.
        service_key: What services present to each other.
        redis_password: What the trainer presents to Redis.
        first_tenant_request_id: Makes creating the first tenant repeatable without a second effect.
    """

    operator_key: str = field(repr=False)
    service_key: str = field(repr=False)
    redis_password: str = field(repr=False)
    first_tenant_request_id: str

    @property
    def operator_key_sha256(self) -> str:
        """SHA-256, hex, of the operator key's secret: all that storage needs to know of it."""
        return KeyParts.parse(self.operator_key).secret_sha256

    @classmethod
    def new(cls) -> PlatformSecrets:
        """Fresh secrets from the system's random source."""
        return cls(
            operator_key=new_key(KeyKind.OPERATOR).text,
            service_key=new_key(KeyKind.SERVICE).text,
            redis_password=new_key(KeyKind.SERVICE).secret,
            first_tenant_request_id=str(uuid.uuid4()),
        )


_ADAPTER = TypeAdapter(PlatformSecrets)


def load_or_create_secrets(path: Path) -> PlatformSecrets:
    """The secrets in `path`, made there if absent (mode 0600). Raises `DataCorrupted`."""
    if not path.exists():
        made = PlatformSecrets.new()
        write_atomically(path, _ADAPTER.dump_json(made, indent=2), mode=0o600)
        return made
    return load_secrets(path)


def make_signing_keys(directory: DataDirectory) -> None:
    """The key that storage signs records with, if there is none yet, in a file of mode 0600.

    Where records are older than that, they are accepted without a signature: `smile storage
    rebuild` signs them, and then the file `unsigned-accepted` can go.
    """
    if directory.signing_keys.exists():
        return
    if any((directory.objects / folder).exists() for folder in ("identity", "tenants")):
        why = b"records are older than the signing key; see docs/deployment.md\n"
        write_atomically(directory.unsigned_accepted, why)
    line = f"k{uuid.uuid4().hex[:8]}:{secrets.token_urlsafe(32)}\n"
    write_atomically(directory.signing_keys, line.encode(), mode=0o600)


def load_secrets(path: Path) -> PlatformSecrets:
    """The secrets in `path`. Raises `DataCorrupted`, `FileNotFoundError`."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataCorrupted(
            f"{path} does not hold a platform's secrets ({error.error_count()} faults); restore it "
            f"from a backup, or start on another data directory"
        ) from error
