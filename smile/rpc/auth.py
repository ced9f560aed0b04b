"""Keys to principals: how a server learns whose key a call carries.

Storage owns tenants and keys; every other service asks it through `IdentityService.ResolveApiKey`
and remembers the answer for as long as a revoked key may keep working: until 5 s after it was last
known to be good, by having been asked for or by a change feed. While storage is away, keys known to
be good lately keep working, so serving outlives it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, replace
from random import uniform
from typing import Protocol

import grpc

from smile import errors
from smile.errors import PermissionDenied, Unauthenticated
from smile.logs import get_logger
from smile.names import ApiKeyName, TenantId, tenant_id
from smile.rpc.context import AUTHORIZATION_KEY, TENANT_KEY
from smile.rpc.freshness import Freshness, Lookup
from smile.rpc.keys import KeyKind, KeyParts, same, unauthenticated
from smile.rpc.principal import Principal, Role, current_principal, not_found, own
from smile.rpc.status import calling
from smile.v1 import identity_pb2, identity_pb2_grpc, options_pb2

__all__ = [
    "Authenticator",
    "CacheTimes",
    "KeyKind",
    "KeyParts",
    "Principal",
    "RemoteAuthenticator",
    "Role",
    "ServiceKey",
    "current_principal",
    "not_found",
    "own",
    "refuse_tenant_header",
    "service_metadata",
]

SERVICE_KEY_INVALID = "SERVICE_KEY_INVALID"
KEYS_REMEMBERED_MAX = 50_000
RESOLVE_TIMEOUT_S = 2.0
_AWAY = (errors.Unavailable, errors.DeadlineExceeded, errors.Overloaded)


class Authenticator(Protocol):
    """Turns a key into its holder.

    `recheck_s` is how long a stream of answers may go on before its key is looked at again.
    """

    recheck_s: float

    async def authenticate(self, key: str, tenant_header: str | None) -> Principal:
        """The holder of `key`.

        Raises:
            Unauthenticated: the key is malformed, unknown or revoked.
            PermissionDenied: `smile-tenant` was sent with something else than a service key.
            Unavailable: who keeps the keys is away, and nothing recent is remembered.
        """
        ...


class ServiceKey:
    """The credential that services share; every authenticator checks it the same way."""

    def __init__(self, key: str) -> None:
        if KeyParts.parse(key).kind is not KeyKind.SERVICE:
            raise unauthenticated()
        self._key = key

    def principal(self, parts: KeyParts, tenant_header: str | None) -> Principal:
        """The holder of a key of the service form. Raises `Unauthenticated`, `InvalidName`."""
        if parts.kind is not KeyKind.SERVICE or not same(parts.text, self._key):
            raise Unauthenticated(
                "the service key is not the one this platform uses", reason=SERVICE_KEY_INVALID
            )
        return Principal(Role.SERVICE, None if tenant_header is None else tenant_id(tenant_header))


def refuse_tenant_header(tenant_header: str | None) -> None:
    """Raise `PermissionDenied` where a tenant or an operator names the tenant to act for."""
    if tenant_header is not None:
        raise PermissionDenied(
            f"the metadata '{TENANT_KEY}' is for services only; the tenant of a call is its key's",
            reason="TENANT_HEADER_NOT_ALLOWED",
        )


def service_metadata(service_key: str, tenant: TenantId | None) -> tuple[tuple[str, str], ...]:
    """Metadata with which a service calls another, for `tenant` where there is one."""
    metadata = [(AUTHORIZATION_KEY, f"Bearer {service_key}")]
    if tenant is not None:
        metadata.append((TENANT_KEY, tenant))
    return tuple(metadata)


@dataclass(frozen=True, slots=True)
class CacheTimes:
    """How long answers about keys are used, in seconds."""

    good_s: float = 5.0
    bad_s: float = 2.0
    stale_s: float = 300.0
    ask_again_s: float = 1.0  # while storage is away: how often a remembered key asks for it

    def __post_init__(self) -> None:
        if not 0 <= self.bad_s <= self.good_s <= self.stale_s:
            raise ValueError(f"expected 0 <= bad_s <= good_s <= stale_s, got {self}")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What storage said about a key at `at`; `principal` is None for a key it refused.

    `name` is what a change feed calls a tenant's key by, which no feed covers where it is empty.
    From `confirm` on it is asked for again, whatever a feed says.
    """

    principal: Principal | None
    at: float
    asked_at: float
    name: str
    confirm: float
    storage_away: bool = False  # at `asked_at`, the last time it was asked


class RemoteAuthenticator:
    """Asks storage about keys, once per key at a time, and remembers a bounded number of answers.

    Args:
        channel: A channel to storage that presents the service key.
        service_key: The key services share; calls that carry it are answered without storage.
        times: How long answers are used.
        clock: Monotonic seconds.
        freshness: What a change feed tells; without one, an answer is as old as its question.
    """

    recheck_s = 0.0  # a look at what is remembered costs nothing

    def __init__(
        self,
        channel: grpc.aio.Channel,
        service_key: str,
        *,
        times: CacheTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
        freshness: Freshness | None = None,
    ) -> None:
        self._freshness = freshness or Freshness()
        self._stub = identity_pb2_grpc.IdentityServiceStub(channel)
        self._service_key = ServiceKey(service_key)
        self._times = times or CacheTimes()
        self._clock = clock
        self._good: OrderedDict[bytes, _Answer] = OrderedDict()
        self._bad: OrderedDict[bytes, _Answer] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Answer]] = {}

    async def authenticate(self, key: str, tenant_header: str | None) -> Principal:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        if digest not in self._good:  # else it was taken apart when it was asked for
            parts = KeyParts.parse(key)
            if parts.kind is KeyKind.SERVICE:
                return self._service_key.principal(parts, tenant_header)
        principal = (await self._answer(digest, key)).principal
        if principal is None:
            raise unauthenticated()
        refuse_tenant_header(tenant_header)
        return principal

    async def _answer(self, digest: bytes, key: str) -> _Answer:
        """What is known of the well-formed `key`, or what storage says of it."""
        now = self._clock()
        if (known := self._bad.get(digest)) and now - known.at < self._times.bad_s:
            return known
        known = self._good.get(digest)
        age_s = self._age_s(known, now)
        if known is None or age_s > self._times.stale_s:
            self._freshness.lookups[Lookup.KEY_ASKED] += 1
            return await asyncio.shield(self._ask_once(digest, key))
        self._good.move_to_end(digest)
        if age_s < self._times.good_s:
            self._freshness.lookups[Lookup.KEY_REMEMBERED] += 1
            if now >= known.confirm and now - known.asked_at >= self._times.ask_again_s:
                self._ask_once(digest, key)
            return known
        self._freshness.lookups[Lookup.KEY_ASKED] += 1
        if not known.storage_away:
            try:
                return await asyncio.shield(self._ask_once(digest, key))
            except _AWAY:
                get_logger().warning("storage is away, using remembered keys")
        elif now - known.asked_at >= self._times.ask_again_s:
            self._ask_once(digest, key)  # its answer is for the next call: this one need not wait
        return known

    def _age_s(self, known: _Answer | None, now: float) -> float:
        """For how long it has not been known that a key is good; one being revoked is not."""
        if known is None or self._freshness.outdated(known.name, known.at):
            return float("inf")
        if not known.name:
            return now - known.at
        return now - self._freshness.fresh_at(known.name, known.at, now)

    def _ask_once(self, digest: bytes, key: str) -> asyncio.Task[_Answer]:
        """One question per key at a time, which no asker's cancellation or deadline ends."""
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._ask(digest, KeyParts.parse(key)), context=Context()
            )
            self._asking[digest] = task
            task.add_done_callback(lambda done: self._asked(digest, done))
        return task

    def _asked(self, digest: bytes, task: asyncio.Task[_Answer]) -> None:
        del self._asking[digest]
        if not task.cancelled():
            task.exception()  # taken, so that a question all askers left does not warn

    async def _ask(self, digest: bytes, parts: KeyParts) -> _Answer:
        asked = self._clock()  # an answer is as old as its question: the key may be revoked since
        try:
            principal = await self._resolve(parts)
        except _AWAY:
            if known := self._good.get(digest):
                self._good[digest] = replace(known, asked_at=self._clock(), storage_away=True)
            raise
        named = parts.tenant is not None and parts.key_id is not None
        answer = _Answer(
            principal,
            asked,
            asked,
            name=f"tenants/{parts.tenant}/apiKeys/{parts.key_id}" if named else "",
            confirm=asked + self._freshness.confirm_s * uniform(0.5, 1.0),  # noqa: S311
        )
        if principal is None:
            self._good.pop(digest, None)
            self._remember(self._bad, digest, answer)
        else:
            self._bad.pop(digest, None)
            self._remember(self._good, digest, answer)
        return answer

    async def _resolve(self, parts: KeyParts) -> Principal | None:
        request = identity_pb2.ResolveApiKeyRequest(key=parts.text)
        try:
            with calling():
                response = await self._stub.ResolveApiKey(request, timeout=RESOLVE_TIMEOUT_S)
        except Unauthenticated as error:
            if error.reason == SERVICE_KEY_INVALID:
                raise errors.Internal("storage refused this service's own key") from error
            return None
        principal = _principal(response)
        if principal.tenant != parts.tenant:
            raise errors.Internal("storage named another tenant than the key does")
        return principal

    @staticmethod
    def _remember(answers: OrderedDict[bytes, _Answer], digest: bytes, answer: _Answer) -> None:
        answers[digest] = answer
        answers.move_to_end(digest)
        if len(answers) > KEYS_REMEMBERED_MAX:
            answers.popitem(last=False)


def _principal(response: identity_pb2.ResolveApiKeyResponse) -> Principal:
    if response.role == options_pb2.ROLE_OPERATOR:
        return Principal(Role.OPERATOR)
    if response.role != options_pb2.ROLE_TENANT:
        raise errors.Internal("storage gave a key a role this service does not know")
    return Principal(
        Role.TENANT, tenant_id(response.tenant), ApiKeyName.parse(response.api_key).key
    )
