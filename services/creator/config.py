"""Settings of the creator, from `SMILE_CREATOR_*` and the shared variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from smile.backbone_config import BackboneServiceSettings

PORT_DEFAULT = 7102


class CreatorSettings(BackboneServiceSettings):
    """What the creator needs to know. `catalogue_retry_s` is the first wait between two tries to
    read a backbone that is not there yet; waits double up to 30 s."""

    model_config = SettingsConfigDict(
        env_prefix="SMILE_CREATOR_", frozen=True, extra="ignore", populate_by_name=True
    )

    port: int = Field(default=PORT_DEFAULT, ge=0, le=65_535)
    catalogue_retry_s: float = Field(default=1.0, gt=0.0, le=30.0)
