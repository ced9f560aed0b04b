"""Settings: environment variables to frozen objects, read once by each `__main__`.

A service subclasses `ServiceSettings`, sets `env_prefix` and adds its fields; `load` reads them
and, where any is wrong, names all of them at once and exits with 78 (EX_CONFIG).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from typing import NoReturn, Self, TypeVar

import pydantic
from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from smile import limits
from smile.errors import Unauthenticated
from smile.logs import LogFormat, LogLevel, redacted_text
from smile.rpc.keys import KeyKind, KeyParts

EXIT_CONFIG = 78
SHOWN_CHARS_MAX = 100
LIKENESS_MIN = 0.9  # of two names where one may be meant for the other; see `difflib`
_SECRET_WORDS = ("KEY", "SECRET", "PASSWORD", "TOKEN")

_Settings = TypeVar("_Settings", bound=BaseSettings)


class ServiceSettings(BaseSettings):
    """What every service needs. Aliased fields have one variable for all services."""

    model_config = SettingsConfigDict(
        env_prefix="SMILE_", frozen=True, extra="ignore", populate_by_name=True
    )

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(ge=0, le=65_535)
    log_level: LogLevel = Field(default=LogLevel.INFO, validation_alias="SMILE_LOG_LEVEL")
    log_format: LogFormat = Field(default=LogFormat.JSON, validation_alias="SMILE_LOG_FORMAT")
    service_key: SecretStr = Field(validation_alias="SMILE_SERVICE_KEY")
    max_message_bytes: int = Field(
        default=limits.MESSAGE_BYTES_MAX, ge=limits.KIB, le=256 * limits.MIB
    )
    concurrent_rpcs_max: int = Field(default=1024, ge=1, le=100_000)
    call_bytes_max: int = Field(default=limits.CALL_BYTES_MAX, ge=limits.KIB)
    drain_s: float = Field(default=10.0, ge=0.0, le=600.0)

    @model_validator(mode="after")
    def _check_call_bytes(self) -> Self:
        if self.call_bytes_max < self.max_message_bytes:
            prefix = self.model_config.get("env_prefix", "")
            raise ValueError(
                f"{prefix}CALL_BYTES_MAX={self.call_bytes_max} must hold one message of "
                f"{prefix}MAX_MESSAGE_BYTES={self.max_message_bytes}"
            )
        return self

    @field_validator("service_key")
    @classmethod
    def _check_service_key(cls, value: SecretStr) -> SecretStr:
        try:
            kind = KeyParts.parse(value.get_secret_value()).kind
        except Unauthenticated:
            kind = None
        if kind is not KeyKind.SERVICE:
            raise ValueError(
                "expected 'smilesvc_' and 43 characters of base64url (32 random bytes)"
            )
        return value


def load(cls: type[_Settings]) -> _Settings:
    """The settings in this process's environment.

    Wrong ones are reported on standard error, all at once, and end the process with exit code 78.
    """
    try:
        return cls()
    except pydantic.ValidationError as error:
        _refuse([_fault(cls, fault) for fault in error.errors(include_url=False)])
    except SettingsError as error:  # a structured field whose text is not even JSON
        _refuse([redacted_text(str(error))])


def inherited_environment() -> dict[str, str]:
    """This process's whole environment, for processes it starts."""
    return dict(os.environ)


def misspelt(cls: type[BaseSettings]) -> Mapping[str, str]:
    """Variables of this process that nothing reads, by what each may have been meant to be.

    Other names are let pass: platforms inject variables of their own.
    """
    known = {name for field in cls.model_fields for name in _names(cls, field)}
    prefix = str(cls.model_config.get("env_prefix", ""))
    unread = {name for name in map(str.upper, os.environ) if name.startswith(prefix)} - known
    likely = {name: get_close_matches(name, known, 1, LIKENESS_MIN) for name in sorted(unread)}
    return {name: meant[0] for name, meant in likely.items() if meant}


def _names(cls: type[BaseSettings], field: str) -> set[str]:
    """Every variable that sets `field`, former names too."""
    alias = cls.model_fields[field].validation_alias
    former = alias.choices if isinstance(alias, AliasChoices) else ()
    return {variable(cls, field), *(name.upper() for name in former if isinstance(name, str))}


def variable(cls: type[BaseSettings], field: str) -> str:
    """The environment variable that sets `field` of `cls`."""
    info = cls.model_fields.get(field)
    alias = info.validation_alias if info else None
    if isinstance(alias, AliasChoices):
        alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
    if isinstance(alias, str):
        return alias.upper()
    return f"{cls.model_config.get('env_prefix', '')}{field}".upper()


def _fault(cls: type[BaseSettings], fault: ErrorDetails) -> str:
    if not fault["loc"]:
        return fault["msg"].removeprefix("Value error, ")
    first = str(fault["loc"][0])
    name = variable(cls, first) if first in cls.model_fields else first.upper()
    expected = fault["msg"].removeprefix("Value error, ")
    value = os.environ.get(name)
    if value is None:
        return f"{name} is not set ({expected.lower()})"
    return f"{name}={_shown(name, value)}: {expected}"


def _shown(name: str, value: str) -> str:
    if any(word in name.split("_") for word in _SECRET_WORDS):  # but not BATCH_TOKENS_MAX
        return f"'...' ({len(value)} characters, not shown)"
    short = value if len(value) <= SHOWN_CHARS_MAX else value[: SHOWN_CHARS_MAX - 3] + "..."
    return repr(redacted_text(short))


def _refuse(faults: list[str]) -> NoReturn:
    count = "1 setting is" if len(faults) == 1 else f"{len(faults)} settings are"
    lines = "".join(f"  {fault}\n" for fault in faults)
    sys.stderr.write(f"{count} wrong:\n{lines}")
    raise SystemExit(EXIT_CONFIG)
