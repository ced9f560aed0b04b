"""Outgoing calls: one way to build a channel.

Every call through it carries a deadline (what was asked, within what the request being served has
left), a request id and a credential. UNAVAILABLE is retried by gRPC itself on all calls but client-
streaming ones: reads are safe, and mutations carry a `request_id`. RESOURCE_EXHAUSTED is never
retried by itself; its `retry_after` is for the caller to obey.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
from google.protobuf import descriptor

import smile.v1
from smile import limits
from smile.names import TenantId
from smile.rpc.auth import service_metadata
from smile.rpc.context import (
    AUTHORIZATION_KEY,
    REQUEST_ID_KEY,
    TENANT_KEY,
    current_request_id,
    outgoing_timeout_s,
    request_id_or_new,
)
from smile.rpc.status import calling
from smile.rpc.windows import WINDOWS

__all__ = ["ApiKey", "Credential", "ServiceCredential", "acting_for", "build_channel", "calling"]

TIMEOUT_S_DEFAULT = 30.0
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
RETRY_ATTEMPTS_MAX = 4
# Opened again and again by who follows them, which must not use up the retries of other calls.
FOLLOWED = ("smile.v1.ChangeFeedService.WatchChanges",)
RECONNECT_MS_MAX = 1_000  # below what the retries of a call wait in all, so that one gets through
RESOLVE_MS_MIN = 1_000  # gRPC's 30 s would keep a restarted container's old address so long

_Pair: TypeAlias = "tuple[str, str | bytes]"
_acting_for: ContextVar[TenantId | None] = ContextVar("smile_acting_for", default=None)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A tenant's or an operator's key."""

    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServiceCredential:
    """The key services share. Without a `tenant`, calls act for the one of `acting_for`, if any."""

    key: str = field(repr=False)
    tenant: TenantId | None = None


Credential = ApiKey | ServiceCredential


@contextmanager
def acting_for(tenant: TenantId) -> Iterator[None]:
    """Calls made inside with a `ServiceCredential` act for `tenant`."""
    token = _acting_for.set(tenant)
    try:
        yield
    finally:
        _acting_for.reset(token)


def build_channel(
    address: str,
    *,
    credentials: Credential | None,
    timeout_s: float = TIMEOUT_S_DEFAULT,
    message_bytes_max: int = limits.PROCESSOR_MESSAGE_BYTES_MAX,
    bulk: bool = False,
) -> grpc.aio.Channel:
    """A channel to `address` (`host:port`, or any gRPC target such as `unix:/path`).

    Args:
        credentials: What to present; None for servers that ask for none.
        timeout_s: Deadline of calls that name none, outside of a request being served.
        message_bytes_max: Largest reply taken, in bytes.
        bulk: Much comes over it, as between services: gRPC finds out how much at a time.
    """
    target = address if ":/" in address or address.startswith("unix:") else f"dns:///{address}"
    return _Channel(
        grpc.aio.insecure_channel(target, options=_options(message_bytes_max, bulk)),
        credentials,
        timeout_s,
    )


def _options(message_bytes_max: int, bulk: bool = False) -> list[tuple[str, str | int]]:
    return [
        *(() if bulk else WINDOWS),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        # Its own connections: shared ones would hand on the back-off of whoever failed before.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", service_config()),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
        ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MS_MIN),
    ]


@cache
def service_config() -> str:
    """Round robin over addresses; retries for all but client-streaming methods of `smile.v1`."""
    retry = {
        "maxAttempts": RETRY_ATTEMPTS_MAX,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    once = [
        {"service": method.containing_service.full_name, "method": method.name}
        for method in _methods()
        if method.client_streaming or method.full_name in FOLLOWED
    ]
    method_configs: list[dict[str, object]] = [{"name": [{}], "retryPolicy": retry}]
    if once:
        method_configs.append({"name": once})
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": method_configs,
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
    return json.dumps(config)


def _methods() -> Iterator[descriptor.MethodDescriptor]:
    for module in pkgutil.iter_modules(smile.v1.__path__, "smile.v1."):
        if module.name.endswith("_pb2"):
            file: descriptor.FileDescriptor = importlib.import_module(module.name).DESCRIPTOR
            for service in file.services_by_name.values():
                yield from service.methods


class _Sent(grpc.aio.Metadata):
    """Metadata of one call, which is walked once and then forgotten: pairs, without a list of
    values for each key."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: tuple[_Pair, ...]) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[_Pair]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


class _Callable:
    """A multi-callable of any shape whose calls carry deadline, request id and credential."""

    def __init__(self, inner: Callable[..., Any], credential: Credential | None, timeout_s: float):
        self._inner = inner
        self._credential = credential
        self._timeout_s = timeout_s
        self._presented: tuple[_Pair, ...] = ()
        if isinstance(credential, ApiKey):
            self._presented = ((AUTHORIZATION_KEY, f"Bearer {credential.key}"),)

    def __call__(
        self,
        request: object = None,
        timeout: float | None = None,
        metadata: grpc.aio.Metadata | None = None,
        **options: object,
    ) -> Any:
        return self._inner(
            request,
            timeout=outgoing_timeout_s(timeout, self._timeout_s),
            metadata=_Sent(self._metadata(metadata)),
            **options,
        )

    def _metadata(
        self, asked: grpc.aio.Metadata | Sequence[tuple[str, str | bytes]] | None
    ) -> tuple[_Pair, ...]:
        metadata = tuple(asked) if asked else ()
        given = {key for key, _ in metadata}
        if REQUEST_ID_KEY not in given:
            metadata += ((REQUEST_ID_KEY, current_request_id() or request_id_or_new()),)
        if AUTHORIZATION_KEY in given:
            return metadata
        if isinstance(self._credential, ServiceCredential):
            tenant = None if TENANT_KEY in given else self._credential.tenant or _acting_for.get()
            return metadata + service_metadata(self._credential.key, tenant)
        return metadata + self._presented


class _Channel(grpc.aio.Channel):
    """A channel whose multi-callables are `_Callable`s.

    Wrapping is used instead of `grpc.aio` client interceptors: those need one class per call shape
    and start a task per call.
    """

    def __init__(
        self, inner: grpc.aio.Channel, credential: Credential | None, timeout_s: float
    ) -> None:
        self._inner = inner
        self._credential = credential
        self._timeout_s = timeout_s

    def _wrapped(self, inner: Any) -> Any:
        return _Callable(inner, self._credential, self._timeout_s)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(self._inner.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(self._inner.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(self._inner.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(self._inner.stream_stream(*args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()
