"""The service config: valid for gRPC, retries where they are safe."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from pydantic import SecretStr

from smile.config import ServiceSettings
from smile.names import TenantId
from smile.rpc import channel, server
from smile.rpc.channel import ApiKey, ServiceCredential, service_config
from smile.rpc.keys import KeyKind, new_key
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


def test_every_option_is_one_that_grpc_knows() -> None:
    """What it does not know it ignores: connections that are silent for minutes were ended."""
    (library,) = (Path(grpc.__file__).parent / "_cython").glob("cygrpc*.so")
    known = library.read_bytes()
    served = server._options(
        ServiceSettings(port=0, service_key=SecretStr(new_key(KeyKind.SERVICE).text))
    )
    for name, _ in (*channel._options(1), *served):
        assert name.encode() + b"\0" in known, name
    assert dict(served)["grpc.http2.min_ping_interval_without_data_ms"] <= channel.KEEPALIVE_MS
