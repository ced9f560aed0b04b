"""Settings: defaults that hold together, and relations that are told."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
from pydantic import SecretStr

from services.processor.config import ProcessorSettings
from services.processor.materialize.options import INCLUDED
from services.processor.options import Device
from smile.rpc.keys import KeyKind, new_key

KEY = new_key(KeyKind.SERVICE).text


def settings(**changes: Any) -> ProcessorSettings:
    return ProcessorSettings(service_key=SecretStr(KEY), **changes)


def test_defaults() -> None:
    found = settings()
    assert found.port == 7104
    assert found.max_message_bytes == 16 * 2**20
    assert found.device is Device.CPU
    assert found.queue_limits.tenant.texts >= 10_000
    assert found.chunk_limits.chunk_tokens_max == found.batch_limits.quantum_tokens
    assert found.chunk_limits.chunk_texts_max <= found.batch_limits.texts_max


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"queue_texts_max": 10_000}, "QUEUE_TEXTS_MAX=10000 .* one request of 10000 texts"),
        ({"queue_tokens_max": 100}, "QUEUE_TOKENS_MAX=100 .* a batch of 1024 tokens"),
        ({"host_bytes_max": 1_000}, "HOST_BYTES_MAX=1000 must hold the largest module"),
        ({"device_bytes_max": 1_000}, "DEVICE_BYTES_MAX=1000 must hold the largest module"),
        ({"pinned_share": 0.9}, "PINNED_SHARE=0.9 may pin"),
        ({"backbones": "x=tape:y"}, "kind must be one of"),
        (
            {"skip": "minilm"},
            "PROCESSOR_SKIP: expected 'backbone=/absolute/path' or 'backbone=included' or "
            "'backbone=artifacts/id', "
            "got 'minilm'",
        ),
        ({"skip": "minilm=/a", "tables": "minilm=included"}, "got 'minilm=included'"),
        ({"skip": "minilm=here"}, "expected 'backbone=/absolute/path'"),
        ({"skip": "minilm=/a,minilm=/b"}, "backbone 'minilm' repeats"),
        ({"skip": "other=/a"}, "PROCESSOR_SKIP=other=/a: backbone 'other' is not served"),
        ({"tables": "minilm=/t"}, "TABLES=minilm=/t: backbone 'minilm' has no local encoder"),
        ({"domains": "minilm=/d"}, "DOMAINS=minilm=/d: backbone 'minilm' has no local encoder"),
        ({"skip": "minilm=/a", "domains": "minilm=d"}, "got 'minilm=d'"),
        ({"learn_tenants_min": 0}, "greater than or equal to 1"),
        ({"device": "tpu"}, "cpu"),
        ({"batch_wait_ms_max": -1}, "greater than or equal to 0"),
    ],
)
def test_what_does_not_hold_together_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=told):
        settings(**changes)


def test_the_local_encoder_that_comes_along() -> None:
    place = settings(skip="minilm=included").stand_ins["minilm"]
    assert (place.encoder, place.table) == (INCLUDED, None)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMILE_SERVICE_KEY", KEY)
    monkeypatch.setenv("SMILE_PROCESSOR_BATCH_TOKENS_MAX", "512")
    monkeypatch.setenv("SMILE_STORAGE_ADDRESS", "storage:1")
    found = ProcessorSettings()  # type: ignore[call-arg]
    assert (found.batch_tokens_max, found.storage_address) == (512, "storage:1")


def test_memory_of_both_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings().memory_options.device_bytes_max == settings().host_bytes_max
    monkeypatch.setenv("SMILE_PROCESSOR_MODULES_BYTES_MAX", str(2**30))
    monkeypatch.setenv("SMILE_PROCESSOR_DEVICE_BYTES_MAX", str(2**29))
    memory = settings().memory_options
    assert (memory.host_bytes_max, memory.device_bytes_max) == (2**30, 2**29)
    monkeypatch.setenv("SMILE_PROCESSOR_HOST_BYTES_MAX", str(2**31))
    assert settings().host_bytes_max == 2**31, "its own name counts"
