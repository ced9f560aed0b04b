"""What the documents say of settings is what the code reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.creator.config import CreatorSettings
from services.processor.config import ProcessorSettings
from services.storage.config import StorageSettings
from services.trainer.config import TrainerSettings
from smile.config import ServiceSettings, variable

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
SERVICES = (CreatorSettings, ProcessorSettings, StorageSettings, TrainerSettings)
SHARED_FIELDS = set(ServiceSettings.model_fields)
PREFIXED_FIELDS = (
    "host",
    "port",
    "max_message_bytes",
    "concurrent_rpcs_max",
    "call_bytes_max",
    "drain_s",
)


@pytest.mark.parametrize("settings", SERVICES)
def test_every_setting_is_documented(settings: type[ServiceSettings]) -> None:
    own = [name for name in settings.model_fields if name not in PREFIXED_FIELDS]
    missing = [variable(settings, n) for n in own if f"`{variable(settings, n)}`" not in PAGE]
    assert missing == []


def test_every_documented_setting_exists() -> None:
    known = {variable(settings, name) for settings in SERVICES for name in settings.model_fields}
    documented = set(re.findall(r"^\|.*?`(SMILE_[A-Z0-9_]+)`", PAGE, re.MULTILINE))
    assert documented - known == set()


def test_what_services_share_is_documented() -> None:
    for name in PREFIXED_FIELDS:
        assert name in SHARED_FIELDS
        assert f"`..._{name.upper()}`" in PAGE
