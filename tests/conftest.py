"""Settings shared by every test: one torch thread, no network for model hubs, no unpickling."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.guard import no_unpickling

no_unpickling.install()


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Programs run in a test's process configure where they log to: a stream that ends with the
    test."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
