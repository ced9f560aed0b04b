"""Settings of storage, from `SMILE_STORAGE_*` and the shared variables."""

from __future__ import annotations

import enum
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from services.storage.signing import Keyring
from smile.accounting import NO_LIMIT, Limit, Limits
from smile.config import ServiceSettings
from smile.errors import InvalidArgument
from smile.limits import (
    DATASET_BYTES_MAX,
    GIB,
    MIB,
    MODULE_BYTES_MAX,
    TENANT_BYTES_MAX,
    TENANT_VPLMS_MAX,
)
from smile.maintenance import StoreMode
from smile.store.objects import S3Options, open_store
from smile.store.redis import connect

PORT_DEFAULT = 7101
URL_EXAMPLE = "file:///var/lib/smile"


class Unsigned(enum.StrEnum):
    """What becomes of records without a signature where there are signing keys."""

    REFUSE = "refuse"
    ACCEPT = "accept"


class Versioning(enum.StrEnum):
    """What is asked of the bucket about old versions of its objects."""

    ANY = "any"
    REQUIRED = "required"
    ENABLE = "enable"


class StorageSettings(ServiceSettings):
    """What storage needs to know. `operator_key_sha256` is the SHA-256, in hex, of the part of the
    operator's key after `smileop_`; without it there is no operator."""

    model_config = SettingsConfigDict(
        env_prefix="SMILE_STORAGE_", frozen=True, extra="ignore", populate_by_name=True
    )

    port: int = Field(default=PORT_DEFAULT, ge=0, le=65_535)
    url: str = Field(min_length=1, examples=[URL_EXAMPLE])
    s3_endpoint: str = Field(default="", pattern=r"^$|^https?://[^/\s]+/?$")
    s3_access_key: str = ""
    s3_secret_key: SecretStr = SecretStr("")
    s3_region: str = Field(default="us-east-1", min_length=1)
    s3_timeout_s: float = Field(default=30.0, gt=0.0, le=600.0)
    s3_create_bucket: bool = True
    s3_versioning: Versioning = Versioning.ANY
    signing_keys: SecretStr = SecretStr("")
    signing_keys_file: Path | None = None
    unsigned: Unsigned = Unsigned.REFUSE
    operator_key_sha256: str = Field(default="", pattern=r"^$|^[0-9a-f]{64}$")
    dataset_bytes_max: int = Field(default=DATASET_BYTES_MAX, ge=1, le=1024 * GIB)
    upload_bytes_max: int = Field(default=512 * MIB, ge=MODULE_BYTES_MAX)
    sweep_every_s: float = Field(default=3600.0, ge=1.0)
    delete_grace_s: float = Field(default=604_800.0, ge=0.0, le=31_536_000.0)
    gc_grace_s: float = Field(default=86_400.0, ge=3600.0)
    redis_url: SecretStr = SecretStr("")
    tenant_bytes_max: int = Field(default=TENANT_BYTES_MAX, ge=1, le=NO_LIMIT)
    tenant_vplms_max: int = Field(default=TENANT_VPLMS_MAX, ge=0, le=NO_LIMIT)
    tenant_requests_per_day: int = Field(default=NO_LIMIT, ge=0, le=NO_LIMIT)
    tenant_texts_per_day: int = Field(default=NO_LIMIT, ge=0, le=NO_LIMIT)
    tenant_tokens_per_day: int = Field(default=NO_LIMIT, ge=0, le=NO_LIMIT)
    tenant_training_s_per_day: int = Field(default=NO_LIMIT, ge=0, le=NO_LIMIT)
    close_days_every_s: float = Field(default=600.0, ge=1.0)

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        """Wrong for good, whatever else is set: told at start."""
        try:
            open_store(value, S3Options("http://endpoint"))
        except InvalidArgument as error:
            raise ValueError(error.message) from None
        parts = urlsplit(value)
        if parts.scheme == "file" and Path(parts.path).is_file():
            raise ValueError("expected a directory, and this is a file")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            try:
                connect(value.get_secret_value())
            except InvalidArgument as error:
                raise ValueError(error.message) from None
        return value

    @model_validator(mode="after")
    def _check_signing(self) -> StorageSettings:
        if self.signing_keys.get_secret_value() and self.signing_keys_file is not None:
            raise ValueError(
                "SMILE_STORAGE_SIGNING_KEYS and SMILE_STORAGE_SIGNING_KEYS_FILE are not set "
                "together"
            )
        try:
            _ = self.keyring
        except InvalidArgument as error:
            raise ValueError(f"signing keys: {error.message}") from None
        return self

    @model_validator(mode="after")
    def _check_s3(self) -> StorageSettings:
        if not self.url.startswith("s3:"):
            return self
        if not self.s3_endpoint:
            raise ValueError("SMILE_STORAGE_S3_ENDPOINT is not set, and SMILE_STORAGE_URL is s3://")
        if bool(self.s3_access_key) != bool(self.s3_secret_key.get_secret_value()):
            raise ValueError(
                "SMILE_STORAGE_S3_ACCESS_KEY and SMILE_STORAGE_S3_SECRET_KEY are set together"
            )
        return self

    @property
    def limits(self) -> Limits:
        """Of tenants that have none of their own."""
        return {
            Limit.STORED_BYTES: self.tenant_bytes_max,
            Limit.VPLMS: self.tenant_vplms_max,
            Limit.REQUESTS_PER_DAY: self.tenant_requests_per_day,
            Limit.TEXTS_PER_DAY: self.tenant_texts_per_day,
            Limit.TOKENS_PER_DAY: self.tenant_tokens_per_day,
            Limit.TRAINING_SECONDS_PER_DAY: self.tenant_training_s_per_day,
        }

    @property
    def write_s_max(self) -> float:
        """No single write takes longer: a lock is waited for, S3 has its timeout and is retried."""
        return max(60.0, 2 * self.s3_timeout_s) if self.url.startswith("s3:") else 30.0

    @property
    def keyring(self) -> Keyring | None:
        """The keys records are signed with; None where they are not signed."""
        accepted = self.unsigned is Unsigned.ACCEPT
        if self.signing_keys_file is not None:
            return Keyring.read(self.signing_keys_file, unsigned_accepted=accepted)
        if text := self.signing_keys.get_secret_value():
            return Keyring.parse(text, unsigned_accepted=accepted)
        return None

    @property
    def modes(self) -> frozenset[StoreMode]:
        """What the store must be good for."""
        wanted = {StoreMode.RECORDS}
        if self.redis_url.get_secret_value():
            wanted.add(StoreMode.REPLICAS)
        if self.s3_versioning is not Versioning.ANY:
            wanted.add(StoreMode.VERSIONED)
        return frozenset(wanted)

    @property
    def delete_grace(self) -> timedelta:
        """How long what tenants delete can be had back."""
        return timedelta(seconds=self.delete_grace_s)

    @property
    def gc_grace(self) -> timedelta:
        """How long garbage lies before it is put aside, and then in quarantine."""
        return timedelta(seconds=self.gc_grace_s)

    @property
    def s3(self) -> S3Options | None:
        """How to reach S3, where the URL asks for it."""
        if not self.url.startswith("s3:"):
            return None
        return S3Options(
            endpoint=self.s3_endpoint.rstrip("/"),
            access_key=self.s3_access_key,
            secret_key=self.s3_secret_key.get_secret_value(),
            region=self.s3_region,
            timeout_s=self.s3_timeout_s,
            create_bucket=self.s3_create_bucket,
            keep_versions=self.s3_versioning is Versioning.ENABLE,
        )
