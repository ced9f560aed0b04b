"""One platform for all tests that only use it, and one of their own for tests that break it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smile.embedded import PlatformOptions, start, stop
from smile.embedded.processes import processes_of
from smile.model.toy import write_toy_backbone
from tests.e2e.platforms import Platform

# a dead worker's job is taken over after seconds, not after a minute
SETTINGS = {"SMILE_TRAINER_LEASE_S": "2", "SMILE_TRAINER_RECONCILE_S": "1"}


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy backbone, as `--backbones` takes it."""
    return f"toy=dir:{write_toy_backbone(tmp_path_factory.mktemp('backbone') / 'toy')}"


@contextmanager
def _settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        for name in ("SMILE_API_KEY", "SMILE_ENDPOINTS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """For what a test starts itself. Of each test, so that those elsewhere see nothing of it."""
    with _settings():
        yield


def _platform(data: Path, backbones: str) -> Iterator[Platform]:
    options = PlatformOptions(data=data, port_base=0, backbones=backbones, leashed=True)
    try:
        with _settings():
            state = start(options)
        yield Platform(data, state)
    finally:
        stop(data)
        assert processes_of(data.resolve()) == []


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory, backbones: str) -> Iterator[Platform]:
    """The platform that all tests share; none of them may break it."""
    yield from _platform(tmp_path_factory.mktemp("shared") / "data", backbones)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory, backbones: str) -> Iterator[Platform]:
    """A platform to kill parts of; each test leaves it ready again."""
    yield from _platform(tmp_path_factory.mktemp("fragile") / "data", backbones)
