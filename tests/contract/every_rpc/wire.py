"""Calls as they stand on the wire, and what comes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from smile.errors import SmileError
from smile.rpc.status import code_of, from_rpc_error, from_status
from tests.contract.every_rpc.contracts import HOMES, METHODS, path_of
from tests.contract.platform_world import Platform

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """What came of a call. `error` is None where it went well."""

    code: grpc.StatusCode
    responses: tuple[Message, ...] = ()
    error: SmileError | None = None

    @property
    def reason(self) -> str:
        return self.error.reason if self.error else ""

    @property
    def message(self) -> str:
        return self.error.message if self.error else ""

    def without(self, name: str) -> tuple[object, ...]:
        """All that a caller can see of a refusal, but for the name asked for."""
        assert self.error is not None, self.responses
        return (
            self.code,
            self.reason,
            self.message.replace(name, "NAME"),
            sorted((k, v.replace(name, "NAME")) for k, v in self.error.metadata.items()),
            self.error.retry_after,
            [(f, d.replace(name, "NAME")) for f, d in self.error.violations],
        )


class Wire:
    """Raw calls: nothing is added that a test did not ask for."""

    def __init__(self, platform: Platform, channels: dict[str, grpc.aio.Channel]) -> None:
        self._platform = platform
        self._channels = channels

    async def call(
        self,
        name: str,
        request: Message | bytes | Sequence[Message] | AsyncIterator[Message],
        *,
        key: str | None = None,
        tenant: str | None = None,
        timeout_s: float | None = TIMEOUT_S,
    ) -> Outcome:
        """Call an RPC by its label. `tenant` is sent as `smile-tenant`."""
        metadata = [("authorization", f"Bearer {key}")] if key else []
        metadata += [("smile-tenant", tenant)] if tenant is not None else []
        while True:
            outcome = await self._outcome(METHODS[name], request, tuple(metadata), timeout_s)
            if outcome.reason != "ANSWER_LOST" or not isinstance(request, list):
                return outcome  # else see smile.rpc.status: it is asked again

    async def _outcome(
        self, method: MethodDescriptor, request: Any, metadata: Any, timeout_s: float | None
    ) -> Outcome:
        call = self._start(method, request, metadata, timeout_s)
        parse = message_factory.GetMessageClass(method.output_type).FromString
        try:
            if method.server_streaming:
                found = [parse(data) async for data in call]
            else:
                found = [parse(await call)]
        except grpc.aio.AioRpcError as error:
            return Outcome(error.code(), error=from_rpc_error(error))
        for entry in getattr(found[0], "entries", ()) if found else ():
            if entry.HasField("error"):  # a fan-out refuses its targets one by one
                refused = from_status(entry.error)
                return Outcome(code_of(refused), tuple(found), refused)
        return Outcome(grpc.StatusCode.OK, tuple(found))

    def _start(
        self, method: MethodDescriptor, request: Any, metadata: Any, timeout_s: float | None
    ) -> Any:
        channel = self._channels[HOMES.get(method.containing_service.name, "storage")]
        first = "stream" if method.client_streaming else "unary"
        second = "stream" if method.server_streaming else "unary"
        make = getattr(channel, f"{first}_{second}")
        multi = make(path_of(method), request_serializer=_serialized)
        if method.client_streaming and isinstance(request, Message | bytes):
            request = [request]
        return multi(request, metadata=metadata, timeout=timeout_s)


def _serialized(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


@asynccontextmanager
async def wire(platform: Platform) -> AsyncIterator[Wire]:
    """Raw connections to all services."""
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)])
            )
            for name, address in platform.addresses.items()
        }
        yield Wire(platform, channels)
