"""The compose file gives services settings that they read, and keys that its tool makes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.creator.config import CreatorSettings
from services.processor.config import ProcessorSettings
from services.storage.config import StorageSettings
from services.trainer.config import TrainerSettings
from smile.config import ServiceSettings, variable
from smile.limits import GIB

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES: dict[str, type[ServiceSettings]] = {
    "storage": StorageSettings,
    "creator": CreatorSettings,
    "trainer": TrainerSettings,
    "processor": ProcessorSettings,
}
EXTENSION = "x-environment"


def blocks() -> dict[str, str]:
    """Text of each service, and of the environment that all share, by name."""
    found = re.split(r"^(?:  )?([a-z0-9-]+):(?: &\w+)?\n", COMPOSE, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def variables(block: str) -> set[str]:
    return set(re.findall(r"^ +(SMILE_[A-Z0-9_]+):", block, re.MULTILINE))


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_of_a_service_is_a_setting_of_it(service: str) -> None:
    settings = SERVICES[service]
    known = {variable(settings, name) for name in settings.model_fields}
    given = variables(blocks()[service])
    assert f"SMILE_{service.upper()}_PORT" in given
    assert given - known == set()


def test_every_shared_variable_is_a_setting_of_some_service() -> None:
    known = {variable(each, name) for each in SERVICES.values() for name in each.model_fields}
    assert variables(blocks()[EXTENSION]) - known == set()
    assert "SMILE_SERVICE_KEY" in variables(blocks()[EXTENSION])


def test_services_have_time_to_drain_and_to_put_away_what_they_keep() -> None:
    (given_s,) = map(int, re.findall(r"^  stop_grace_period: (\d+)s", COMPOSE, re.MULTILINE))
    asked_s = max(settings.model_fields["drain_s"].default for settings in SERVICES.values())
    assert given_s >= 2 * asked_s


def test_a_whole_models_training_fits_the_containers_memory() -> None:
    trainer = blocks()["trainer"]
    (limit_gib,) = map(int, re.findall(r"mem_limit: (\d+)g", trainer))
    (asked,) = map(int, re.findall(r'FULL_BYTES_MAX: "(\d+)"', trainer))
    assert asked <= (limit_gib - 1) * GIB


def test_the_tool_makes_every_key_that_the_file_asks_for() -> None:
    tool = ROOT / "deploy" / "docker" / "make_secrets.py"
    made = subprocess.run([sys.executable, tool], check=True, capture_output=True, text=True)
    names = set(re.findall(r"^([A-Z0-9_]+)=.", made.stdout, re.MULTILINE))
    assert set(re.findall(r"\$\{([A-Z0-9_]+):\?", COMPOSE)) == names


def test_an_installations_keys_are_never_committed() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()
