"""The service config: valid for gRPC, retries where they are safe."""

from __future__ import annotations

import json

import pytest

from smile.names import TenantId
from smile.rpc.channel import ApiKey, ServiceCredential, service_config
from smile.v1 import storage_pb2


def test_client_streaming_methods_are_never_retried() -> None:
    config = json.loads(service_config())
    everything, once = config["methodConfig"]
    assert everything["name"] == [{}]
    assert everything["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert "retryPolicy" not in once
    named = {(name["service"], name["method"]) for name in once["name"]}
    uploads = {
        (service.full_name, method.name)
        for service in storage_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.client_streaming
    }
    assert uploads
    assert uploads <= named


def test_retries_are_throttled_and_addresses_take_turns() -> None:
    config = json.loads(service_config())
    assert config["retryThrottling"] == {"maxTokens": 100, "tokenRatio": 0.1}
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]


@pytest.mark.parametrize(
    "credential", [ApiKey("planted"), ServiceCredential("planted", TenantId("acme"))]
)
def test_credentials_do_not_show_their_key(credential: object) -> None:
    assert "planted" not in repr(credential)
